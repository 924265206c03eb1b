"""``export``: the files answer as the model does, for any number of people."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from mgran_fast import MGRAN, MGRANError
from mgran_fast.engine import export as module
from mgran_fast.engine.export import Portable, averaging, export

SIZE = (44, 23)  # no multiple of a feature map's cells


def made(shape: str = "full", **options: Any) -> MGRAN:
    torch.manual_seed(4)
    options = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), **options}
    model = MGRAN(shape=shape, trunk="resnet18", size=SIZE, **options).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.4, 0.8)
            torch.nn.init.normal_(part.bias, std=0.2)
    torch.nn.init.normal_(model.ma.neck.running_mean, std=0.1)
    return model


@torch.no_grad()
@pytest.mark.parametrize("shape", ["full", "crop", "single"])
@pytest.mark.parametrize("pooling", ["mean", "max", "gem"])
def test_plain_operations_equal_the_model(shape: str, pooling: str) -> None:
    model = made(shape, pooling=pooling)
    crops, region_map = module._people(model, 4)
    region_map[0][region_map[0] == 1] = 0
    got, want = Portable(model).eval()(crops, region_map), model(crops, region_map=region_map)
    assert got.shape == want.shape
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("layout", ["part", "box", "none"])
@torch.no_grad()
def test_other_layouts(layout: str) -> None:
    model = made(layout=layout)
    crops, region_map = module._people(model, 2)
    assert torch.allclose(Portable(model)(crops, region_map), model(crops, region_map=region_map), atol=1e-5)


@pytest.mark.parametrize(("pixels", "cells"), [(8, 8), (7, 3), (3, 5), (1, 1), (256, 16)])
def test_averaging_is_adaptive_pooling(pixels: int, cells: int) -> None:
    x = torch.rand(2, pixels, generator=torch.Generator().manual_seed(pixels))
    want = torch.nn.functional.adaptive_avg_pool1d(x[:, None], cells)[:, 0]
    assert torch.allclose(x @ averaging(pixels, cells).T, want, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kernels", [False, True])
def test_torch_export(kernels: bool, tmp_path: Path) -> None:
    model = made().train()
    path = tmp_path / "deep" / "model.pt2"
    assert export(model, path, "torch", kernels=kernels) < 1e-5
    assert model.training
    program = torch.export.load(path)
    called = {str(node.target) for node in program.graph.nodes if "mgran_fast" in str(node.target)}
    assert bool(called) == kernels
    model.eval()
    for count in (1, 5):
        crops, region_map = module._people(model, count)
        assert torch.allclose(program.module()(crops, region_map), model(crops, region_map=region_map), atol=1e-5)
    assert [p.name for p in path.parent.iterdir()] == ["model.pt2"]


@torch.no_grad()
@pytest.mark.parametrize("shape", ["full", "crop", "single"])
def test_onnx(shape: str, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    import onnxruntime

    model = made(shape, pooling="gem")
    assert export(model, tmp_path / "model.onnx") < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert {node.name: node.shape[1:] for node in session.get_inputs()} == {
        "crops": [*SIZE, 3],
        "region_map": [*SIZE],
    }
    for count in (1, 4):
        crops, region_map = module._people(model, count)
        (got,) = session.run(None, {"crops": crops.numpy(), "region_map": region_map.numpy()})
        assert torch.allclose(torch.from_numpy(got), model(crops, region_map=region_map), atol=1e-4)


def test_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    with pytest.raises(ValueError, match="format must be one of onnx, torch, not 'tflite'"):
        export(model, tmp_path / "x", "tflite")
    with pytest.raises(ValueError, match="no kernels of ours"):
        export(model, tmp_path / "x", kernels=True)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(MGRANError, match=r"not installed \(onnxscript\).*mgran_fast\[export\]"):
        export(model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_answers_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    monkeypatch.setattr(Portable, "_pool", lambda self, x, weights: x.mean((2, 3)))
    with pytest.raises(MGRANError, match=r"not written: its embeddings are .* from the model's"):
        export(model, tmp_path / "model.pt2", "torch")
    assert list(tmp_path.iterdir()) == []
