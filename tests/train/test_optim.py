"""Optimizers, which parameters decay and at which rate, and the schedule of the learning rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mgran_fast.model import MGRAN
from mgran_fast.train import losses, optim
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.optim import WarmupCosine, WarmupSteps
from mgran_fast.train.run import build

Settings = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def model(settings: Settings) -> MGRAN:
    return build(settings(pooling="gem"), 6)


def made(model: MGRAN, config: TrainConfig, steps: int = 6) -> Any:
    return optim.build(model, losses.build(config, 6, 4, model.ma.trunk.dim), config, steps)


# --- the schedule ---------------------------------------------------------------------------------------------


def test_warmup_and_cosine() -> None:
    rate = WarmupCosine(100, 0.1)
    assert [rate(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert rate(10) == 1.0
    assert rate(55) == pytest.approx(0.5)
    assert rate(10 + 30) == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))
    assert rate(100) == pytest.approx(0.0, abs=1e-12)
    assert rate(150) == pytest.approx(0.0, abs=1e-12), "past the end it stays down"
    falling = [rate(step) for step in range(10, 101)]
    assert falling == sorted(falling, reverse=True)


def test_cosine_falls_to_its_floor() -> None:
    rate = WarmupCosine(100, 0.1, 0.2)
    assert [rate(step) for step in (0, 9, 10)] == pytest.approx([0.1, 1.0, 1.0])
    assert rate(55) == pytest.approx(0.6)
    assert [rate(100), rate(1000)] == pytest.approx([0.2, 0.2])
    assert WarmupCosine(100, 0.0, 1.0)(70) == 1.0


def test_warmup_and_steps() -> None:
    rate = WarmupSteps(120, 0.1, [1 / 3, 7 / 12], 0.1)
    assert [rate(step) for step in (0, 5, 11)] == pytest.approx([1 / 12, 0.5, 1.0])
    assert [rate(step) for step in (12, 39, 40, 69, 70, 119, 500)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.01])
    assert WarmupSteps(100, 0.5, [0.2], 0.5)(24) == pytest.approx(0.25), "both count where they meet"


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
def test_short_schedules(steps: int, warmup: float) -> None:
    for schedule in (WarmupCosine(steps, warmup), WarmupSteps(steps, warmup, [0.5])):
        assert all(0 < schedule(step) <= 1 for step in range(steps))
    assert WarmupCosine(steps, 0.0)(0) == 1.0


def test_milestones_are_epochs(model: MGRAN, settings: Settings) -> None:
    """Rates of every step of a run of four epochs with five steps each."""
    config = settings(
        epochs=4, schedule="steps", milestones=(1, 2.4), gamma=0.5, warmup=0.1, learning_rate=0.8, head_rate=10.0
    )
    optimizer, schedule = made(model, config, 20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[-1]["lr"] == pytest.approx(10 * rates[-1])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.4] + [0.8] * 4 + [0.4] * 7 + [0.2] * 8)


def test_a_schedule_goes_on_from_its_state(model: MGRAN, settings: Settings) -> None:
    config = settings(floor=0.1)
    _, whole = made(model, config, 10)
    _, first = made(model, config, 10)
    for schedule in (whole, first):
        for _ in range(4):
            schedule.optimizer.step()
            schedule.step()
    _, second = made(model, config, 10)
    second.load_state_dict(first.state_dict())
    for schedule in (whole, second):
        schedule.optimizer.step()
        schedule.step()
    assert second.get_last_lr() == whole.get_last_lr()


# --- groups ---------------------------------------------------------------------------------------------------


def named(model: MGRAN, groups: list[dict[str, Any]]) -> list[set[str]]:
    names = {id(p): name for name, p in model.ma.named_parameters()}
    return [{names[id(p)] for p in group["params"]} for group in groups]


def test_groups_of_decay_and_rate(model: MGRAN, settings: Settings) -> None:
    optimizer, _ = made(model, settings(weight_decay=0.05, learning_rate=1e-3, head_rate=3.0, warmup=0.0))
    groups = optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.05, 0.0, 0.05]
    assert [group["initial_lr"] for group in groups] == pytest.approx([1e-3, 1e-3, 3e-3, 3e-3])
    norms, weights, neck, classifiers = named(model, groups)
    assert neck == {"neck.weight"}
    assert classifiers == {"classifiers.weight"}
    assert {"trunk.bn1.weight", "trunk.bn1.bias"} <= norms
    assert {"trunk.conv1.weight", "trunk.layer4.1.conv2.weight", "trunk.layer2.0.downsample.0.weight"} <= weights
    assert all("conv" in name or "downsample.0" in name for name in weights)
    every = [norms, weights, neck, classifiers]
    assert set().union(*every) == {name for name, _ in model.ma.named_parameters()}, "every parameter is trained"
    assert all(not a & b for a, b in itertools.combinations(every, 2))


def test_what_is_not_trained_is_left_out(settings: Settings) -> None:
    config = settings(identity_loss="oim")
    model = build(config, 6)
    assert model.ma.classifiers is not None
    model.ma.classifiers.requires_grad_(False)
    optimizer, _ = made(model, config)
    assert len(optimizer.param_groups) == 3
    assert "classifiers.weight" not in set().union(*named(model, optimizer.param_groups))


def test_parameters_of_the_loss_count_as_those_of_the_head(model: MGRAN, settings: Settings) -> None:
    loss = torch.nn.Linear(3, 2)
    groups = optim.groups(model, loss, settings(head_rate=2.0, learning_rate=1.0, weight_decay=0.1))
    assert any(p is loss.bias for p in groups[2]["params"])
    assert any(p is loss.weight for p in groups[3]["params"])
    assert [group["lr"] for group in groups] == [1.0, 1.0, 2.0, 2.0]


# --- optimizers -----------------------------------------------------------------------------------------------


def test_optimizers(model: MGRAN, settings: Settings) -> None:
    for name, kind in (("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
        optimizer, _ = made(model, settings(optimizer=name, momentum=0.8))
        assert type(optimizer) is kind
        assert optimizer.defaults["fused"]
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.8, True)
    plain, _ = made(model, settings(optimizer="sgd", momentum=0.0))
    assert not plain.defaults["nesterov"]


def test_no_fused_step_where_gradients_are_scaled_and_clipped(model: MGRAN, settings: Settings) -> None:
    assert not made(model, settings(precision="f16", clip=1.0))[0].defaults["fused"]
    assert made(model, settings(precision="f16"))[0].defaults["fused"]
    assert made(model, settings(clip=1.0))[0].defaults["fused"]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_step_follows_the_definition(name: str, settings: Settings) -> None:
    """The first step of each, on one weight of each group."""
    config = settings(optimizer=name, learning_rate=0.01, weight_decay=0.1, head_rate=2.0, warmup=0.0)
    model = build(config, 6)
    optimizer, _ = made(model, config)
    before, wanted = {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, 0.5)
            before[id(parameter)] = parameter.detach().clone()
    for group in optimizer.param_groups:
        rate, decay = group["lr"], group["weight_decay"]
        parameter = group["params"][0]
        w = before[id(parameter)].double()
        gradient = 0.5 + (0.0 if name == "adamw" else decay * w)
        if name == "sgd":
            # Nesterov: the first velocity is the gradient, and the step looks ahead by the momentum.
            change = gradient + 0.9 * gradient
        else:
            # The first step of Adam is the sign of the gradient.
            change = torch.as_tensor(gradient).sign() + (decay * w if name == "adamw" else 0.0)
        wanted[id(parameter)] = w - rate * change
    optimizer.step()
    for group in optimizer.param_groups:
        parameter = group["params"][0]
        torch.testing.assert_close(parameter.detach().double(), wanted[id(parameter)], rtol=1e-4, atol=1e-6)
