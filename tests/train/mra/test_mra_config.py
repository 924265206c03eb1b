"""Settings of training an estimator: what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from mgran_fast.train.mra.config import MRAConfig

NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "unet"}, "model must be one of regionnet, maskrcnn, not 'unet'"),
        ({"mode": "both"}, "mode must be one of box, detect"),
        ({"mode": "detect"}, "regionnet learns from crops"),
        ({"whole_pictures": True}, "regionnet learns from crops"),
        ({"precision": "int8"}, "precision must be one of auto, bf16, float32"),
        ({"size": (0, 5)}, "size must be"),
        ({"working_size": (100, 64)}, "working_size must be"),
        ({"channels": 4}, "channels must be at least 8"),
        ({"context": -1}, "context must be at least 0"),
        ({"backbone": "vgg"}, "backbone must be one of resnet18"),
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batches": 0}, "batches must be at least 1"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"evaluate_every": -1}, "evaluate_every must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, not 0"),
        ({"learning_rate": NAN}, "learning_rate must be positive"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"warmup": 1.0}, "warmup must be at least 0 and below 1"),
        ({"margin": -0.1}, "margin must be at least 0"),
        ({"jitter": 0.5}, "jitter must be at least 0 and below 0.5"),
        ({"mask_weight": NAN}, "mask_weight must be"),
        ({"keypoint_weight": -1.0}, "keypoint_weight must be"),
        ({"presence_weight": float("inf")}, "presence_weight must be"),
    ],
)
def test_what_is_out_of_range(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MRAConfig(**change)


def test_who_learns_from_crops() -> None:
    assert MRAConfig().crops
    assert MRAConfig(model="maskrcnn").crops
    assert not MRAConfig(model="maskrcnn", mode="detect").crops
    assert not MRAConfig(model="maskrcnn", whole_pictures=True).crops
