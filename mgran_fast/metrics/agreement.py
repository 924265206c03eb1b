"""How well an estimator's masks and keypoints agree with labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from mgran_fast.data.dataset import Problems
from mgran_fast.data.labels import LabelledBatch, PersonCrops, collate_crops
from mgran_fast.layouts import KEYPOINTS
from mgran_fast.mra.estimate import Estimate, Estimator

#: A pixel shows the person where the mask is at least this; as in :func:`mgran_fast.ops.regions`.
MASK_THRESHOLD = 0.5
#: A keypoint of the reference counts as visible from this score on.
VISIBLE = 0.5
#: The usual distance, in torso lengths, up to which a keypoint is right.
NEAR = 0.2

_SIDES = tuple(
    (KEYPOINTS.index(f"{side}_shoulder"), KEYPOINTS.index(f"{side}_hip")) for side in ("left", "right")
)  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """How N people's estimates agree with their references.

    Attributes:
        iou: float32 [N], the intersection over union of the masks, both binarised at 0.5; 1 where both are empty,
            NaN where there is no reference mask.
        keypoint_error: float32 [N, 17], the distance between estimated and true place in torso lengths; infinite
            where the estimate is no finite number, NaN where it is not defined: no reference keypoints, or a torso of
            which neither side is known or that has no length.
        visible: bool [N, 17], the keypoints that count: their reference score is at least 0.5, and the error is
            defined.
    """

    iou: torch.Tensor
    keypoint_error: torch.Tensor
    visible: torch.Tensor

    def __len__(self) -> int:
        return len(self.iou)

    @property
    def mean_iou(self) -> float:
        """The mean over the people with a reference mask; NaN without any."""
        known = self.iou[~self.iou.isnan()]
        return float(known.double().mean()) if len(known) else math.nan

    def within(self, distance: float = NEAR) -> float:
        """The share of visible keypoints, of all people together, at most ``distance`` torso lengths off.

        This is the percentage of correct keypoints (PCK; Yang and Ramanan 2013) with the torso as its length. NaN when
        no keypoint is visible.
        """
        # Written so that an error that is no number is no hit.
        hits = self.visible & (self.keypoint_error <= distance)
        count = int(self.visible.sum())
        return int(hits.sum()) / count if count else math.nan


def agreement(
    estimate: Estimate,
    reference: Estimate,
    *,
    has_mask: torch.Tensor | None = None,
    has_keypoints: torch.Tensor | None = None,
) -> Agreement:
    """Compare estimates with references.

    The torso of a person is the mean of the distances from shoulder to hip, left and right, in the reference; a side
    counts when both its ends have a score above 0, that is when their places are known.

    Args:
        estimate: masks [N, H, W] and keypoints [N, 17, 3]; the scores of its keypoints do not matter.
        reference: of the same crops and shapes.
        has_mask, has_keypoints: bool [N], whose reference is known; everybody's when not given.

    Raises:
        ValueError: the shapes differ.
    """
    for name in ("mask", "keypoints"):
        mine, theirs = getattr(estimate, name), getattr(reference, name)
        if mine.shape != theirs.shape:
            raise ValueError(f"{name}: the estimate is {list(mine.shape)}, the reference is {list(theirs.shape)}")
    # A comparison with NaN is false: background.
    found, true = estimate.mask >= MASK_THRESHOLD, reference.mask >= MASK_THRESHOLD
    both, either = ((found & true).sum((1, 2)), (found | true).sum((1, 2)))
    iou = torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both, dtype=torch.float32))
    if has_mask is not None:
        iou = iou.masked_fill(~has_mask, math.nan)
    distance = (estimate.keypoints[..., :2] - reference.keypoints[..., :2]).square().sum(2).sqrt()
    distance = torch.where(distance.isfinite(), distance, math.inf)
    torso = _torso(reference.keypoints)
    if has_keypoints is not None:
        torso = torso.masked_fill(~has_keypoints, math.nan)
    error = distance / torso[:, None]
    visible = (reference.keypoints[..., 2] >= VISIBLE) & ~error.isnan()
    return Agreement(iou.float(), error.float(), visible)


def _torso(keypoints: torch.Tensor) -> torch.Tensor:
    """The length of each torso in pixels, [N]; NaN where it is not known, or 0."""
    sides = torch.stack(
        [(keypoints[:, a, :2] - keypoints[:, b, :2]).square().sum(1).sqrt() for a, b in _SIDES], dim=1
    )  # [N, 2]
    known = torch.stack([(keypoints[:, a, 2] > 0) & (keypoints[:, b, 2] > 0) for a, b in _SIDES], dim=1)
    count = known.sum(1)
    length = torch.where(known, sides, 0).sum(1) / count.clamp(min=1)
    return torch.where(length > 0, length, math.nan)


def joined(parts: Sequence[Agreement]) -> Agreement:
    """The agreement of several batches as one."""
    if not parts:
        return Agreement(
            torch.zeros(0), torch.zeros(0, len(KEYPOINTS)), torch.zeros(0, len(KEYPOINTS), dtype=torch.bool)
        )
    return Agreement(
        torch.cat([part.iou for part in parts]),
        torch.cat([part.keypoint_error for part in parts]),
        torch.cat([part.visible for part in parts]),
    )


@torch.no_grad()
def measure(
    estimator: Estimator,
    crops: PersonCrops,
    *,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    problems: Problems | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Run an estimator over labelled crops and compare, on the CPU.

    Args:
        estimator: on ``device``, in eval mode.
        crops: see :func:`mgran_fast.data.labels.crops`.
        batch_size, workers: crops at once, and processes that read them.
        problems: takes up the pictures that could not be read; they are left out.
        progress: called with (crops done, crops in all).
    """
    problems = Problems() if problems is None else problems
    loader: Iterable[LabelledBatch] = DataLoader(crops, batch_size, num_workers=workers, collate_fn=collate_crops)
    parts, done = [], 0
    for batch in loader:
        problems.add(batch.bad)
        done += len(batch) + len(batch.bad)
        if len(batch):
            found = estimator(batch.crops.to(device))
            parts.append(
                agreement(
                    Estimate(found.mask.float().cpu(), found.keypoints.float().cpu(), found.presence.float().cpu()),
                    Estimate(batch.masks / 255, batch.keypoints, batch.presence),
                    has_mask=batch.has_mask,
                    has_keypoints=batch.has_keypoints,
                )
            )
        if progress is not None:
            progress(done, len(crops))
    return joined(parts)
