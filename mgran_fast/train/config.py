"""The settings of a training run: validated, saved beside its checkpoints, compared on resume."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mgran_fast import layouts, ops
from mgran_fast.ma.network import SHAPES
from mgran_fast.ma.trunk import STATISTICS, TRUNKS
from mgran_fast.train.settings import Settings


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Settings of a run. The defaults are the field's usual ones for a ResNet-50 at 256x128.

    Attributes:
        layout, shape, size, trunk, last_stride, statistics, pooling, scale, mean, std: as of
            :class:`mgran_fast.MGRAN`; size is (height, width) in pixels.
        epochs: passes over the training pictures.
        people, pictures: P people with K pictures each make a batch.
        batches: batches of an epoch; None for as many as show each picture once on average.
        learning_rate, weight_decay: of AdamW; no decay on biases and norms.
        warmup: share of all steps in which the rate rises linearly; it falls by a cosine to 0 after that.
        label_smoothing: of the identity loss.
        margin: of the batch-hard triplet loss, on Euclidean distances of the L2-normalised pooled features.
        triplet: its weight beside the identity loss.
        flip, pad, erase, jitter: of :class:`mgran_fast.data.Augment`; jitter is brightness, contrast and colour.
        precision: auto (bf16 where the hardware computes it, else float32), bf16 or float32.
        workers: processes that read pictures; 0 reads in the main process.
        evaluate_every: epochs between evaluations; 0 for one at the end only.
        seed: of everything random.

    Raises ValueError for a setting out of its range; the message names it.
    """

    layout: str = "region"
    shape: str = "full"
    size: tuple[int, int] = (256, 128)
    trunk: str = "resnet50"
    last_stride: int = 1
    statistics: str = "joint"
    pooling: str = "mean"
    scale: float = 1 / 256
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    epochs: int = 60
    people: int = 16
    pictures: int = 4
    batches: int | None = None
    learning_rate: float = 3.5e-4
    weight_decay: float = 5e-4
    warmup: float = 0.1
    label_smoothing: float = 0.1
    margin: float = 0.3
    triplet: float = 1.0
    flip: float = 0.5
    pad: float = 10.0
    erase: float = 0.5
    jitter: float = 0.0
    precision: str = "auto"
    workers: int = 2
    evaluate_every: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1), ("people", 2), ("pictures", 2), ("workers", 0), ("evaluate_every", 0), ("seed", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.batches is not None and self.batches < 1:
            raise ValueError(f"batches must be at least 1, or None, not {self.batches}")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size must be (height, width) in pixels, 1 or more, not {self.size}")
        for name in ("learning_rate", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("weight_decay", "margin", "triplet", "pad"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("flip", "erase", "jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name, known in (
            ("shape", SHAPES),
            ("trunk", TRUNKS),
            ("last_stride", (1, 2)),
            ("statistics", STATISTICS),
            ("pooling", ops.POOLING_MODES),
            ("precision", ("auto", "bf16", "float32")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, not {getattr(self, name)!r}")
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            if numbers is not None and (len(numbers) != 3 or not all(map(math.isfinite, numbers))):
                raise ValueError(f"{name} must be three finite numbers, for red, green and blue, not {numbers}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")
        layouts.get(self.layout)
