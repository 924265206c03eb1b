"""The settings of a training run: validated, saved beside its checkpoints, compared on resume."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from mgran_fast import layouts, ops
from mgran_fast.data import samplers
from mgran_fast.ma.network import SHAPES
from mgran_fast.ma.norm import STATISTICS
from mgran_fast.ma.trunk import TRUNKS
from mgran_fast.train.settings import Settings

IDENTITY_LOSSES = ("softmax", "oim")
METRIC_LOSSES = ("triplet", "soft_triplet", "circle", "none")
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "steps")
PRECISIONS = ("auto", "bf16", "f16", "float32")


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Settings of a run. The defaults are the field's usual ones for a ResNet-50 at 256x128.

    Attributes:
        layout, shape, size, trunk, last_stride, statistics, pooling, scale, mean, std: as of
            :class:`mgran_fast.MGRAN`; size is (height, width) in pixels.
        epochs: passes over the training pictures.
        people, pictures: P people with K pictures each make a batch, on all ranks together.
        batches: batches of an epoch; None for as many as show each picture once on average.
        sampler: "pk" (within an epoch everybody comes once before anybody comes again), "balanced" (the same over the
            whole run) or "camera" (as "pk", K pictures from as many cameras as there are).
        accumulate: batches whose gradients are summed into one step of the optimizer.
        identity_loss: "softmax" (cross-entropy of the classifiers) or "oim" (online instance matching).
        identity_weight: its weight.
        label_smoothing: of softmax.
        oim_temperature, oim_momentum: of OIM: what cosines are divided by, and what stays of a row of the table.
        metric_loss: "triplet" (batch-hard, with a margin), "soft_triplet" (batch-hard, softplus), "circle" or "none";
            on the L2-normalised pooled features.
        metric_weight: its weight.
        margin: of triplet, on Euclidean distances.
        circle_margin, circle_scale: m and gamma of circle, on cosines.
        optimizer: "adamw", "adam" or "sgd" (with Nesterov's momentum).
        momentum: of sgd.
        learning_rate: the highest, of the trunk.
        head_rate: what it is multiplied with for BNNeck and classifiers.
        weight_decay: of the weights of convolutions and classifiers; adam and sgd add it to the gradient.
        clip: the largest norm of the gradient of all parameters; 0 for no limit.
        schedule: "cosine" or "steps".
        warmup: share of all steps in which the rate rises linearly.
        floor: of cosine: the share of the rate that is left at the end.
        milestones, gamma: of steps: the epochs after which the rate is multiplied with gamma.
        ema: decay of averaged weights, which are what is evaluated and saved; 0 for none.
        flip, pad, erase, jitter: of :class:`mgran_fast.data.Augment`; jitter is brightness, contrast and colour.
        precision: auto (bf16 where the hardware computes it, else float32), bf16, f16 (on a GPU) or float32.
        recompute: compute the trunk's activations twice instead of keeping them: less memory, more time.
        compile: run the model through torch.compile.
        workers: processes that read pictures; 0 reads in the main process.
        evaluate_every: epochs between evaluations; 0 for one at the end only.
        checkpoint_minutes: minutes between writings of the state within an epoch; 0 writes it after each epoch only.
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
    sampler: str = "pk"
    accumulate: int = 1
    identity_loss: str = "softmax"
    identity_weight: float = 1.0
    label_smoothing: float = 0.1
    oim_temperature: float = 0.1
    oim_momentum: float = 0.5
    metric_loss: str = "triplet"
    metric_weight: float = 1.0
    margin: float = 0.3
    circle_margin: float = 0.25
    circle_scale: float = 128.0
    optimizer: str = "adamw"
    momentum: float = 0.9
    learning_rate: float = 3.5e-4
    head_rate: float = 1.0
    weight_decay: float = 5e-4
    clip: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.1
    floor: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    ema: float = 0.0
    flip: float = 0.5
    pad: float = 10.0
    erase: float = 0.5
    jitter: float = 0.0
    precision: str = "auto"
    recompute: bool = False
    compile: bool = False
    workers: int = 2
    evaluate_every: int = 5
    checkpoint_minutes: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1), ("people", 2), ("pictures", 2), ("accumulate", 1), ("workers", 0), ("evaluate_every", 0),
            ("seed", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.batches is not None and self.batches < 1:
            raise ValueError(f"batches must be at least 1, or None, not {self.batches}")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size must be (height, width) in pixels, 1 or more, not {self.size}")
        for name in ("learning_rate", "scale", "head_rate", "oim_temperature", "circle_scale", "gamma"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in (
            "weight_decay", "margin", "circle_margin", "identity_weight", "metric_weight", "clip", "pad",
            "checkpoint_minutes",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("flip", "erase", "jitter", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("warmup", "label_smoothing", "oim_momentum", "momentum", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name, known in (
            ("shape", SHAPES),
            ("trunk", TRUNKS),
            ("last_stride", (1, 2)),
            ("statistics", STATISTICS),
            ("pooling", ops.POOLING_MODES),
            ("sampler", samplers.KINDS),
            ("identity_loss", IDENTITY_LOSSES),
            ("metric_loss", METRIC_LOSSES),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
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
        self._check_together()

    def _check_together(self) -> None:
        if not self.identity_weight and (self.metric_loss == "none" or not self.metric_weight):
            raise ValueError("identity_weight and metric_weight are both 0: there is no loss to learn from")
        if self.schedule == "steps":
            bounds = (0.0, *self.milestones, float(self.epochs))
            if not self.milestones or not all(a < b for a, b in itertools.pairwise(bounds)):
                raise ValueError(
                    f"milestones must be rising epochs between 0 and {self.epochs} for the schedule steps, for example"
                    f" [{self.epochs // 3}, {self.epochs * 7 // 12}], not {list(self.milestones)}"
                )
