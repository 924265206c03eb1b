"""torchreid's registry and engines: with the package where it is installed, and against its contract everywhere."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mgran_fast import MGRAN, CheckpointError, MGRANError, ops
from mgran_fast.integrations.torchreid import NORM_MEAN, NORM_STD, Model, register

SIZE, CLASSES = (64, 32), 3


@pytest.fixture
def images(scene: Any) -> torch.Tensor:
    """float [6, 3, 64, 32] as torchreid's transforms make them: three people, twice each."""
    boxes = torch.from_numpy(scene.boxes[:3]).repeat_interleave(2, 0)
    boxes[1::2] += 3
    crops = ops.crops(torch.from_numpy(scene.frame), boxes, SIZE).permute(0, 3, 1, 2).float() / 255
    return (crops - torch.tensor(NORM_MEAN).view(3, 1, 1)) / torch.tensor(NORM_STD).view(3, 1, 1)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The contract in small: ``torchreid.models.build_model`` looks a name up and calls what it finds so."""
    models = types.ModuleType("torchreid.models")
    factory: dict[str, Any] = {}
    setattr(models, "__model_factory", factory)

    def build_model(
        name: str, num_classes: int, loss: str = "softmax", pretrained: bool = True, use_gpu: bool = True
    ) -> Any:
        return factory[name](num_classes=num_classes, loss=loss, pretrained=pretrained, use_gpu=use_gpu)

    package = types.ModuleType("torchreid")
    models.build_model = build_model  # type: ignore[attr-defined]
    package.models = models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchreid", package)
    monkeypatch.setitem(sys.modules, "torchreid.models", models)
    return models


def deep_supervision(criterion: Any, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """The contract of torchreid's losses over branches: the mean over a tuple."""
    losses = [criterion(one, targets) for one in (outputs if isinstance(outputs, tuple) else (outputs,))]
    return torch.stack(losses).mean()


def test_in_eval_mode_it_is_the_model(model: MGRAN, images: torch.Tensor) -> None:
    theirs = Model(model).eval()
    pixels = (images * torch.tensor(NORM_STD).view(3, 1, 1) + torch.tensor(NORM_MEAN).view(3, 1, 1)).mul(255).round()
    with torch.no_grad():
        want = model(pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous())
        assert torch.equal(theirs(images), want)
        # Other transforms are undone with their own numbers.
        other = Model(model, norm_mean=(0.5, 0.5, 0.5), norm_std=(0.5, 0.5, 0.5)).eval()
        assert torch.equal(other(pixels / 127.5 - 1), want)
    assert theirs.feature_dim == want.shape[1]
    # Random erasing and patches reach beyond what a pixel can be.
    assert bool(theirs(images * 3).isfinite().all())


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_a_step_of_training(registry: Any, images: torch.Tensor, loss: str) -> None:
    register(size=SIZE, trunk="resnet18")
    torch.manual_seed(0)
    model = registry.build_model("mgran", num_classes=CLASSES, loss=loss, pretrained=False)
    assert isinstance(model, nn.Module)
    model.train()
    people = torch.arange(CLASSES).repeat_interleave(2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(4):
        outputs = model(images)
        logits, features = (outputs, None) if loss == "softmax" else outputs
        assert isinstance(logits, tuple)
        assert [tuple(one.shape) for one in logits] == [(6, CLASSES)] * 4
        total = deep_supervision(nn.CrossEntropyLoss(), logits, people)
        if features is not None:
            assert features.shape == (6, model.feature_dim)
            assert features.norm(dim=1).tolist() == pytest.approx([1] * 6, abs=1e-4)
            total = total + torch.pdist(features).square().mean()
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < losses[0]
    assert model.eval()(images).shape == (6, model.feature_dim)


def test_who_does_not_show_a_region(model: MGRAN) -> None:
    network = MGRAN(CLASSES, size=SIZE, trunk="resnet18")
    theirs = Model(network).train()
    black = torch.zeros(2, 3, *SIZE) - torch.tensor(NORM_MEAN).view(3, 1, 1) / torch.tensor(NORM_STD).view(3, 1, 1)
    with torch.no_grad():
        network.ma.neck.weight.normal_()
        logits = theirs(torch.cat((black, torch.rand(2, 3, *SIZE))))
    # Nobody is in the black crops: all inputs answer as the whole crop.
    for one in logits[1:]:
        assert torch.equal(one[:2], logits[0][:2])
    assert len(logits) == 4


def test_pretrained(registry: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = MGRAN(size=SIZE, trunk="resnet18")
    from torchvision.models import resnet18

    state = resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    register("mgran_small", size=SIZE, trunk="resnet18", weights=tmp_path / "resnet18.pth")
    model = registry.build_model("mgran_small", num_classes=CLASSES)
    want = source.ma.trunk
    want.load_torchvision(state)
    for found, expected in zip(model.mgran.ma.trunk.parameters(), want.parameters(), strict=True):
        assert torch.equal(found, expected)
    register("mgran_small", size=SIZE, trunk="resnet18", weights=tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file"):
        registry.build_model("mgran_small", num_classes=CLASSES)
    register(size=SIZE, trunk="resnet18")
    with pytest.raises(ValueError, match="nothing is downloaded: pass pretrained=False"):
        registry.build_model("mgran", num_classes=CLASSES)


def test_what_it_does_not_do(model: MGRAN, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="loss must be one of softmax, triplet, not 'center'"):
        Model(model, "center")
    with pytest.raises(ValueError, match="the network has no classes"):
        Model(MGRAN(size=SIZE, trunk="resnet18")).train()(images)
    monkeypatch.setitem(sys.modules, "torchreid", None)
    with pytest.raises(MGRANError, match="pip install torchreid"):
        register()


class Data:
    """What torchreid's engines ask of a data manager."""

    def __init__(self, images: torch.Tensor) -> None:
        self.num_train_pids = CLASSES
        batch = {
            "img": images,
            "pid": torch.arange(CLASSES).repeat_interleave(2),
            "camid": torch.tensor([0, 1] * CLASSES),
            "impath": [""] * len(images),
            "dsetid": torch.zeros(len(images), dtype=torch.int64),
        }
        self.train_loader = [batch]
        query, gallery = ({k: v[i::2] for k, v in batch.items()} for i in (0, 1))
        self.test_loader = {"drawn": {"query": [query], "gallery": [gallery]}}
        self.sources, self.targets = ["drawn"], ["drawn"]


@pytest.mark.filterwarnings("ignore")  # the package's own, of its imports
@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_torchreid_itself(images: torch.Tensor, loss: str, tmp_path: Path) -> None:
    torchreid = pytest.importorskip("torchreid")
    register(size=SIZE, trunk="resnet18")
    torch.manual_seed(0)
    model = torchreid.models.build_model("mgran", num_classes=CLASSES, loss=loss, pretrained=False, use_gpu=False)
    optimizer = torchreid.optim.build_optimizer(model, optim="adam", lr=1e-3)
    engines = {"softmax": torchreid.engine.ImageSoftmaxEngine, "triplet": torchreid.engine.ImageTripletEngine}
    scheduler = torchreid.optim.build_lr_scheduler(optimizer, lr_scheduler="single_step", stepsize=1)
    engine = engines[loss](Data(images), model, optimizer, scheduler=scheduler, use_gpu=False)
    before = model.mgran.ma.classifiers.weight.clone()
    engine.run(save_dir=str(tmp_path), max_epoch=2, print_freq=1, ranks=[1, 3])
    assert not torch.equal(model.mgran.ma.classifiers.weight, before)
    model.mgran.save(tmp_path / "model.safetensors")
    other = Model(MGRAN.from_file(tmp_path / "model.safetensors", num_classes=CLASSES)).eval()
    assert torch.equal(other(images), model.eval()(images))
