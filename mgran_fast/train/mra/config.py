"""The settings of training an estimator of masks and keypoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mgran_fast.mra.maskrcnn import BACKBONES, MODES
from mgran_fast.train.settings import Settings

MODELS = ("regionnet", "maskrcnn")


@dataclass(frozen=True)
class MRAConfig(Settings):
    """Settings of a run that trains an estimator.

    Attributes:
        model: "regionnet" or "maskrcnn".
        mode: of :class:`mgran_fast.MaskRCNN`: "box" or "detect".
        whole_pictures: "box" learns from whole pictures with all their people, rather than from one crop a person;
            "detect" always does.
        size: (height, width) in pixels of the crops that it learns from and is measured on.
        working_size, channels, context: of :class:`mgran_fast.RegionNet`.
        backbone: of :class:`mgran_fast.MaskRCNN`.
        epochs: passes over the training pictures; 0 measures only.
        batch_size: crops (whole pictures for "detect") at once.
        batches: batches of an epoch; None for as many as show everything once.
        learning_rate, weight_decay: of AdamW; no decay on biases and norms.
        warmup: share of all steps in which the rate rises linearly; it falls by a cosine to 0 after that.
        margin: by how much of its height and width a person's box grows on each side before it is cut out.
        jitter: by how much of the box's height and width, at most, each of its sides moves at random.
        mask_weight, keypoint_weight, presence_weight: of the losses of these.
        precision: auto (bf16 where the hardware computes it, else float32), bf16 or float32.
        workers: processes that read pictures; 0 reads in the main process.
        evaluate_every: epochs between measurements on the test pictures; 0 for one at the end only.
        seed: of everything random.

    Raises ValueError for a setting out of its range; the message names it.
    """

    model: str = "regionnet"
    mode: str = "box"
    whole_pictures: bool = False
    size: tuple[int, int] = (256, 128)
    working_size: tuple[int, int] = (192, 96)
    channels: int = 64
    context: int = 3
    backbone: str = "resnet50"
    epochs: int = 30
    batch_size: int = 64
    batches: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup: float = 0.05
    margin: float = 0.05
    jitter: float = 0.1
    mask_weight: float = 1.0
    keypoint_weight: float = 1.0
    presence_weight: float = 1.0
    precision: str = "auto"
    workers: int = 2
    evaluate_every: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"channels": 8, "batch_size": 1}
        least.update(dict.fromkeys(("context", "epochs", "workers", "evaluate_every", "seed"), 0))
        if self.batches is not None:
            least["batches"] = 1
        for name, smallest in least.items():
            value = getattr(self, name)
            if value < smallest:
                raise ValueError(f"{name} must be at least {smallest}, not {value}")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size must be (height, width) in pixels, 1 or more, not {self.size}")
        if len(self.working_size) != 2 or any(side < 32 or side % 32 for side in self.working_size):
            raise ValueError(f"working_size must be (height, width) in multiples of 32 pixels, not {self.working_size}")
        ranges = {
            "learning_rate": (math.ulp(0.0), math.inf),
            "weight_decay": (0.0, math.inf),
            "warmup": (0.0, 1.0),
            "margin": (0.0, 10.0),
            "jitter": (0.0, 0.5),
            "mask_weight": (0.0, math.inf),
            "keypoint_weight": (0.0, math.inf),
            "presence_weight": (0.0, math.inf),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            # Written so that NaN fails.
            if not low <= value < high:
                wanted = "positive" if low and high == math.inf else f"at least {low:g} and below {high:g}"
                raise ValueError(f"{name} must be {wanted}, not {value}")
        choices = {
            "model": MODELS,
            "mode": MODES,
            "backbone": BACKBONES,
            "precision": ("auto", "bf16", "float32"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.model == "regionnet" and (self.mode != "box" or self.whole_pictures):
            raise ValueError("regionnet learns from crops: mode 'detect' and whole pictures are for maskrcnn")

    @property
    def crops(self) -> bool:
        """Whether the model learns from one crop a person."""
        return self.mode == "box" and not self.whole_pictures
