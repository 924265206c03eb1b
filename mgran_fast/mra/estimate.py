"""What a mask and keypoint estimator answers, and what it must look like from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class Estimate:
    """Masks and keypoints of N crops.

    Attributes:
        mask: float32 [N, H, W], the probability in [0, 1] that a pixel shows the person.
        keypoints: float32 [N, 17, 3], COCO order: x, y in pixels of the crop (the centre of the pixel in
            column j is at j + 0.5), and a score in [0, 1].
        presence: float32 [N], the probability in [0, 1] that the crop shows a person at all.
        keypoint_masks: float32 [N, 17, h, w] in [0, 1], one mask a keypoint, or None when not asked for.
    """

    mask: torch.Tensor
    keypoints: torch.Tensor
    presence: torch.Tensor
    keypoint_masks: torch.Tensor | None = None


@runtime_checkable
class Estimator(Protocol):
    """Mask-guided Region Attention (MRA): anything that turns crops into an :class:`Estimate`."""

    def __call__(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        """Estimate masks and keypoints of crops, uint8 [N, H, W, 3] (RGB)."""
        ...


def check_crops(crops: torch.Tensor, device: torch.device) -> None:
    """Raise TypeError or ValueError unless ``crops`` are uint8 [N, H, W, 3] on ``device``, H and W at least 1."""
    if not isinstance(crops, torch.Tensor) or crops.dtype != torch.uint8:
        kind = crops.dtype if isinstance(crops, torch.Tensor) else type(crops).__name__
        raise TypeError(f"crops must be a uint8 tensor [N, H, W, 3], not {kind}")
    if crops.dim() != 4 or crops.shape[3] != 3 or crops.shape[1] == 0 or crops.shape[2] == 0:
        raise ValueError(f"crops must be [N, H, W, 3] with H and W at least 1, not {list(crops.shape)}")
    if crops.device != device:
        raise ValueError(f"crops are on {crops.device}, the estimator is on {device}: move one of them")
