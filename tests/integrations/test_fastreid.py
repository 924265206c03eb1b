"""FastReID's forms, against what its meta-architectures, predictor and evaluation ask (versions 1.3 and 1.4)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mgran_fast import FeatureExtractor, MGRANError, ops
from mgran_fast.integrations.fastreid import MetaArch, Predictor


@pytest.fixture(scope="module")
def crops(scene: Any) -> torch.Tensor:
    """uint8 [5, 80, 40, 3]: another size than the model's."""
    return ops.crops(torch.from_numpy(scene.frame), torch.from_numpy(scene.boxes), (80, 40))


def loader(crops: torch.Tensor) -> list[dict[str, Any]]:
    """Batches as FastReID's test loader makes them."""
    images = crops.permute(0, 3, 1, 2).float()
    people = torch.arange(len(crops))
    return [
        {"images": images[some], "targets": people[some], "camids": people[some] * 0, "img_paths": [""] * len(some)}
        for some in torch.arange(len(crops)).split(2)
    ]


def evaluate(model: torch.nn.Module, batches: list[dict[str, Any]]) -> torch.Tensor:
    """The contract of FastReID's ``inference_on_dataset`` with its ReID evaluator and flip test."""
    found = []
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for inputs in batches:
            outputs = model(inputs)
            inputs["images"] = inputs["images"].flip(dims=[3])
            outputs = (outputs + model(inputs)) / 2
            found.append(outputs.to(torch.device("cpu"), torch.float32))
            assert len(inputs["targets"].cpu()) == len(outputs)
    model.train(was_training)
    return torch.cat(found)


def test_features_are_the_extractors(extractor: FeatureExtractor, crops: torch.Tensor) -> None:
    want = extractor(crops)
    images = crops.permute(0, 3, 1, 2).float()
    model = MetaArch(extractor)
    assert not model.training
    assert model.device == extractor.device
    before = images.clone()
    for inputs in (images, {"images": images, "targets": torch.zeros(5)}, crops.permute(0, 3, 1, 2)):
        assert torch.equal(model(inputs), want)
    # FastReID's own change what they are given; a second look at the same batch would be of other pixels.
    assert torch.equal(images, before)
    # Resized pixels have fractions, and cubic ones overshoot.
    assert torch.equal(model(images + 0.4), want)
    assert torch.equal(model(images.where(images > 0, -3.0).where(images < 255, 258.0)), want)
    found = Predictor(extractor)(images)
    assert torch.equal(found, want)
    assert found.device.type == "cpu"
    assert Predictor(extractor)(images[:0]).shape == (0, extractor.dim)


def test_in_an_evaluation(extractor: FeatureExtractor, crops: torch.Tensor) -> None:
    model = MetaArch(extractor)
    found = evaluate(model, loader(crops))
    assert torch.allclose(found, (extractor(crops) + extractor(crops.flip(2))) / 2, atol=1e-5)
    assert not model.training


def test_what_it_does_not_do(extractor: FeatureExtractor, crops: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"must be a dict or a torch\.Tensor, not list"):
        MetaArch(extractor)([crops])  # type: ignore[list-item]
    with pytest.raises(MGRANError, match="mgran-fast train"):
        MetaArch(extractor).train()(crops)
