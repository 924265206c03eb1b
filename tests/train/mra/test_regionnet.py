"""Training of RegionNet: what the losses count, and that a few steps learn."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mgran_fast.data.labels import LabelledBatch
from mgran_fast.data.synthetic import render
from mgran_fast.mra.regionnet import Maps, RegionNet
from mgran_fast.train.mra.augment import AugmentSettings
from mgran_fast.train.mra.config import MRAConfig
from mgran_fast.train.mra.regionnet import RegionNetModule, losses

SIZE = (64, 32)


def people(n: int = 6) -> LabelledBatch:
    views = [render(person, 0, 0, size=SIZE) for person in range(n)]
    yes = torch.ones(n, dtype=torch.bool)
    return LabelledBatch(
        torch.stack([torch.from_numpy(view.crop) for view in views]),
        torch.stack([torch.from_numpy(view.mask * 255).to(torch.uint8) for view in views]),
        torch.stack([torch.from_numpy(view.keypoints) for view in views]),
        yes,
        yes.clone(),
        torch.ones(n),
        torch.arange(n),
    )


def right(batch: LabelledBatch, sure: float = 30.0) -> Maps:
    """Logits that say what the labels say."""
    height, width = SIZE
    masks = torch.nn.functional.avg_pool2d(batch.masks[:, None].float() / 255, 2)
    heatmaps = torch.full((len(batch), 17, height // 4, width // 4), -sure)
    x = (batch.keypoints[..., 0] / 4).long().clamp(0, width // 4 - 1)
    y = (batch.keypoints[..., 1] / 4).long().clamp(0, height // 4 - 1)
    heatmaps.flatten(2).scatter_(2, (y * (width // 4) + x)[..., None], sure)
    score = batch.keypoints[..., 2].clamp(1e-6, 1 - 1e-6)
    return Maps((masks - 0.5) * 2 * sure, heatmaps, score.logit(), torch.full((len(batch),), sure))


def test_right_answers_cost_less_than_wrong_ones() -> None:
    batch = people()
    good = losses(right(batch, 3.0), batch)
    maps = right(batch, 3.0)
    bad = losses(Maps(-maps.mask, maps.heatmaps.flip(3), -maps.visibility, -maps.presence), batch)
    assert good.keys() == bad.keys() == {"mask", "keypoint", "presence"}
    for name in good:
        assert float(good[name]) < 0.8 * float(bad[name]), name


def test_a_perfect_mask_costs_nothing() -> None:
    batch = people(2)
    hard = dataclasses.replace(batch, masks=torch.zeros_like(batch.masks))
    hard.masks[:, 16:48, 8:24] = 255
    assert float(losses(right(hard), hard)["mask"]) < 1e-3
    nobody = dataclasses.replace(batch, masks=torch.zeros_like(batch.masks))
    assert float(losses(right(nobody), nobody)["mask"]) < 1e-3


@pytest.mark.parametrize("what", ["mask", "keypoint"])
def test_what_has_no_label_teaches_nothing(what: str) -> None:
    batch = people(4)
    field = "has_mask" if what == "mask" else "has_keypoints"
    some = dataclasses.replace(batch, **{field: torch.tensor([True, False, True, False])})
    none = dataclasses.replace(batch, **{field: torch.zeros(4, dtype=torch.bool)})
    generator = torch.Generator().manual_seed(0)
    maps = Maps(*(torch.randn(part.shape, generator=generator).requires_grad_() for part in right(batch)))
    place = 0 if what == "mask" else 1
    (gradient,) = torch.autograd.grad(losses(maps, some)[what], maps[place])
    assert gradient[::2].abs().sum() > 0
    assert not gradient[1::2].any()
    loss = losses(maps, none)[what]
    assert float(loss.detach()) == 0
    assert not torch.autograd.grad(loss, maps[place])[0].any()


def test_a_keypoint_outside_of_the_crop_teaches_no_place() -> None:
    batch = people(2)
    batch.keypoints[..., 2] = 0.9
    batch.keypoints[0, :, 0] = SIZE[1] + 5.0
    maps = Maps(*(part.requires_grad_() for part in right(batch, 1.0)))
    (gradient,) = torch.autograd.grad(losses(maps, batch)["keypoint"], maps.heatmaps)
    assert not gradient[0].any()
    assert gradient[1].abs().sum() > 0
    assert gradient.isfinite().all()


def test_a_few_steps_learn_and_the_average_follows() -> None:
    torch.manual_seed(0)
    batch = people(8)
    model = RegionNet(size=SIZE, channels=16)
    config = MRAConfig(size=SIZE, learning_rate=1e-2, warmup=0.0)
    still = AugmentSettings(
        plain=0, flip=0, zoom=(1, 1), aspect=1, shift=0, rotate=0, cut=0, background=0, second=0, cover=0,
        blur=0, coarse=0, dark=0, noise=0, grey=0, jitter=0, nobody=0,
    )  # fmt: skip
    module = RegionNetModule(model, config, 40, augment=still)
    module.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    chosen = module.configure_optimizers()
    optimizer, schedule = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"]
    module.train()
    seen = []
    for step in range(40):
        loss = module.training_step(batch, step)
        assert loss is not None
        seen.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        module.average.update_parameters(model.network)
    assert all(value == value for value in seen)
    assert seen[-1] < 0.75 * seen[0]
    averaged = module.estimator()
    assert not averaged.training
    assert averaged.arguments == model.arguments
    mask, person = averaged(batch.crops).mask, batch.masks > 127
    assert float(mask[person].mean()) > float(mask[~person].mean()) + 0.02
    # The average is a network of its own.
    assert not torch.equal(averaged.network.facts.weight, model.network.facts.weight)


def test_the_last_step_counts_in_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    monkeypatch.setattr(RegionNetModule, "global_step", property(lambda _: steps))
    module = RegionNetModule(RegionNet(size=SIZE, channels=16), MRAConfig(size=SIZE), 3)
    bias = module.model.network.facts.bias
    before, after = [], []
    for value in (100.0, 200.0, 300.0):
        module.on_before_zero_grad(None)
        before.append(module.estimator().network.facts.bias[0].item())
        with torch.no_grad():
            bias.fill_(value)  # the step
        steps += 1
        after.append(module.estimator().network.facts.bias[0].item())
        assert int(module.average.n_averaged) == steps - 1, "asking changed the average"
    assert after[0] == 100
    # The next step finds what was answered.
    assert before[1:] == after[:-1]


def test_the_trunk_learns_slower() -> None:
    config = MRAConfig(size=SIZE, learning_rate=1e-3)
    module = RegionNetModule(RegionNet(size=SIZE, channels=16), config, 10)
    groups = module.configure_optimizers()["optimizer"].param_groups
    trunk = {id(p) for p in module.model.network.trunk.parameters()}
    counted = 0
    for group in groups:
        slow = {id(p) in trunk for p in group["params"]}
        assert len(slow) == 1
        assert group["initial_lr"] == (5e-4 if slow.pop() else 1e-3)
        assert all((p.dim() > 1) == (group["weight_decay"] > 0) for p in group["params"])
        counted += len(group["params"])
    assert counted == len(list(module.model.parameters()))
