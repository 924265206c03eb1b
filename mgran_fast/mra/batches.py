"""Estimates of several batches as one, and the estimate of none."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mgran_fast.layouts import KEYPOINTS
from mgran_fast.mra.estimate import Estimate


def joined(parts: Sequence[Estimate]) -> Estimate:
    """The estimates of several batches, one or more, as one; keypoint masks where the parts have them."""
    masks = [part.keypoint_masks for part in parts if part.keypoint_masks is not None]
    return Estimate(
        torch.cat([part.mask for part in parts]),
        torch.cat([part.keypoints for part in parts]),
        torch.cat([part.presence for part in parts]),
        torch.cat(masks) if masks else None,
    )


def nobody(size: tuple[int, int], keypoint_masks: tuple[int, int] | None, device: torch.device) -> Estimate:
    """The estimate of no crop at all, of ``size`` (H, W); with keypoint masks of the (h, w) given, if any."""
    none = torch.zeros(0, device=device)
    masks = None if keypoint_masks is None else none.view(0, len(KEYPOINTS), *keypoint_masks)
    return Estimate(none.view(0, *size), none.view(0, len(KEYPOINTS), 3), none, masks)
