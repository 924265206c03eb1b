"""People on full frames: many boxes share one pass of the backbone over their frame.

Boxes are given (a tracker's, a detector's) or found. Each person's answer is in the coordinates of the person's own
crop, the one that ``mgran_fast.ops.crops(frame, boxes, size)`` cuts: mask and keypoints go straight into
``mgran_fast.ops.regions`` or into a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mgran_fast.mra import decode, people
from mgran_fast.mra.batches import joined, nobody
from mgran_fast.mra.estimate import Estimate
from mgran_fast.mra.inference import LEVELS, POOL, Network

# Frames of one size run together up to this many pixels: one frame of 1920 x 1080. More is no faster, and takes memory.
PIXELS = 2**21


@dataclass(frozen=True)
class People:
    """K people on frames, frame by frame.

    Attributes:
        frame: int64 [K], which frame each one is on.
        boxes: float32 [K, 4], x1, y1, x2, y2 in pixels of that frame; what ``ops.crops`` cuts.
        scores: float32 [K] in [0, 1]: the detection's score, or the presence where the box was given.
        estimate: masks [K, h, w] and keypoints [K, 17, 3] in pixels of the people's crops of size (h, w).
    """

    frame: torch.Tensor
    boxes: torch.Tensor
    scores: torch.Tensor
    estimate: Estimate

    def __len__(self) -> int:
        return len(self.frame)


def estimate_people(
    model: Any,
    network: Network,
    frames: torch.Tensor | Sequence[torch.Tensor],
    boxes: torch.Tensor | Sequence[torch.Tensor],
    *,
    size: tuple[int, int],
    shorter: int | None,
    keypoint_masks: bool,
) -> People:
    """See :meth:`mgran_fast.MaskRCNN.estimate_people`."""
    pictures = checked_frames(frames, next(model.parameters()).device)
    given = checked_boxes(boxes, pictures, single=_is_one(frames))
    gathered = _Gathered(pictures[0].device if pictures else next(model.parameters()).device)
    for rows, images, working in _batches(pictures, shorter, network.dtype, [bool(len(b)) for b in given]):
        height, width = pictures[rows[0]].shape[:2]
        there = torch.cat([given[row] for row in rows])
        local = torch.cat([torch.full((len(given[row]),), i, device=there.device) for i, row in enumerate(rows)])
        valid = there.isfinite().all(1) & (there[:, 2:] > there[:, :2]).all(1)
        limit = there.new_tensor([width, height])
        valid &= (there[:, :2] < limit).all(1) & (there[:, 2:] > 0).all(1)
        # The heads get a box that they can pool, and what they say of it is not used.
        usable = torch.where(valid[:, None], there, people.whole(len(there), height, width, there.device))
        rois = people.as_rois(usable * _scale(working, (height, width), usable), local)
        levels = [LEVELS[i] for i in people.levels_of(rois).unique().tolist()]
        answers = people.answer(network, network.features(images, levels), rois, model.person_label)
        estimate = _in_crops(answers, usable, (height, width), size, valid, keypoint_masks)
        gathered.add(local.new_tensor(rows)[local], there, estimate.presence, estimate)
    return gathered.people(size, keypoint_masks)


def detect(
    model: Any,
    network: Network,
    frames: torch.Tensor | Sequence[torch.Tensor],
    *,
    size: tuple[int, int],
    shorter: int | None,
    score: float,
    nms: float,
    most: int,
    keypoint_masks: bool,
) -> People:
    """See :meth:`mgran_fast.MaskRCNN.detect`."""
    device = next(model.parameters()).device
    pictures = checked_frames(frames, device)
    for name, value in (("score", score), ("nms", nms)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, not {value}")
    if most < 1:
        raise ValueError(f"most must be 1 or more people a frame, not {most}")
    gathered = _Gathered(device)
    for rows, images, working in _batches(pictures, shorter, network.dtype, [True] * len(pictures)):
        height, width = pictures[rows[0]].shape[:2]
        features = network.features(images, (*LEVELS, POOL))
        found = people.find(model, network, images, working, features[0], score=score, nms=nms, most=most)
        rois = people.as_rois(found.boxes, found.picture)
        answers = people.answer(network, features, rois, model.person_label)
        boxes = found.boxes / _scale(working, (height, width), found.boxes)
        all_valid = torch.ones_like(found.scores, dtype=torch.bool)
        estimate = _in_crops(answers, boxes, (height, width), size, all_valid, keypoint_masks)
        # How sure the detector is, not what the box head would say of its own corrected box.
        estimate = Estimate(estimate.mask, estimate.keypoints, found.scores, estimate.keypoint_masks)
        gathered.add(found.picture.new_tensor(rows)[found.picture], boxes, found.scores, estimate)
    return gathered.people(size, keypoint_masks)


def _in_crops(
    answers: people.Answers,
    boxes: torch.Tensor,
    frame: tuple[int, int],
    size: tuple[int, int],
    valid: torch.Tensor,
    keypoint_masks: bool,
) -> Estimate:
    """Answers of boxes [K, 4] in pixels of a frame -> in pixels of their crops; nothing is seen outside of the frame.

    There the mask is 0, and so is the score of a keypoint. Where ``valid`` is false, everything is 0.
    """
    # The part of each crop that shows the frame, in pixels of the crop.
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    limits = boxes.new_tensor([0, 0, frame[1], frame[0]])
    seen = (limits - boxes[:, :2].repeat(1, 2)) / sides * boxes.new_tensor([size[1], size[0]] * 2)
    x = torch.arange(size[1], device=boxes.device) + 0.5
    y = torch.arange(size[0], device=boxes.device) + 0.5
    columns = (x >= seen[:, 0, None]) & (x <= seen[:, 2, None]) & valid[:, None]
    rows = (y >= seen[:, 1, None]) & (y <= seen[:, 3, None])
    mask = people.resized(answers.mask, size) * (rows[:, :, None] & columns[:, None, :])
    keypoints = people.keypoints_in(answers.heatmaps, size) * valid[:, None, None]
    place = keypoints[..., :2]
    inside = (place >= seen[:, None, :2]).all(-1) & (place <= seen[:, None, 2:]).all(-1)
    keypoints = torch.cat((place, (keypoints[..., 2] * inside)[..., None]), dim=2)
    masks = decode.keypoint_masks(answers.heatmaps) * valid[:, None, None, None] if keypoint_masks else None
    return Estimate(mask, keypoints, answers.presence * valid, masks)


class _Gathered:
    """The people of batches of frames, put in the order of frames at the end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, Estimate]] = []

    def add(self, frame: torch.Tensor, boxes: torch.Tensor, scores: torch.Tensor, estimate: Estimate) -> None:
        self.parts.append((frame, boxes, scores, estimate))

    def people(self, size: tuple[int, int], keypoint_masks: bool) -> People:
        if not self.parts:
            none = torch.zeros(0, device=self.device)
            estimate = nobody(size, (56, 56) if keypoint_masks else None, self.device)
            return People(none.long(), none.view(0, 4), none, estimate)
        frame = torch.cat([part[0] for part in self.parts])
        # Stable: the order within a frame stays.
        order = frame.argsort(stable=True)
        estimate = joined([part[3] for part in self.parts])
        masks = estimate.keypoint_masks
        return People(
            frame[order],
            torch.cat([part[1] for part in self.parts])[order],
            torch.cat([part[2] for part in self.parts])[order],
            Estimate(
                estimate.mask[order],
                estimate.keypoints[order],
                estimate.presence[order],
                None if masks is None else masks[order],
            ),
        )


def _batches(
    pictures: Sequence[torch.Tensor], shorter: int | None, dtype: torch.dtype, wanted: Sequence[bool]
) -> Iterator[tuple[list[int], torch.Tensor, tuple[int, int]]]:
    """Frames of one size together: their numbers, the images of the backbone and the size that the frames fill."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, picture in enumerate(pictures):
        if wanted[row]:
            groups.setdefault((picture.shape[0], picture.shape[1]), []).append(row)
    for (height, width), rows in groups.items():
        working = people.working_size(height, width, shorter)
        at_a_time = max(1, PIXELS // (working[0] * working[1]))
        for start in range(0, len(rows), at_a_time):
            batch = rows[start : start + at_a_time]
            yield batch, people.normalised(torch.stack([pictures[row] for row in batch]), working, dtype), working


def _scale(working: tuple[int, int], frame: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """What coordinates of a frame are multiplied by to be those of the picture that the network sees: [4]."""
    return like.new_tensor([working[1] / frame[1], working[0] / frame[0]] * 2)


def _is_one(frames: torch.Tensor | Sequence[torch.Tensor]) -> bool:
    return isinstance(frames, torch.Tensor) and frames.dim() == 3


def checked_frames(frames: torch.Tensor | Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """One frame uint8 [H, W, 3], a batch [N, H, W, 3] or a list of frames -> a list of frames.

    Raises:
        TypeError, ValueError: a frame is something else.
    """
    pictures = [frames] if _is_one(frames) else list(frames)
    for row, picture in enumerate(pictures):
        if not isinstance(picture, torch.Tensor) or picture.dtype != torch.uint8:
            kind = picture.dtype if isinstance(picture, torch.Tensor) else type(picture).__name__
            raise TypeError(f"frames must be uint8 tensors [H, W, 3]; frame {row} is {kind}")
        if picture.dim() != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ValueError(f"frames must be [H, W, 3] with at least one pixel; frame {row} is {list(picture.shape)}")
        if picture.device != device:
            raise ValueError(f"frame {row} is on {picture.device}, the model is on {device}: move one of them")
    return [picture for picture in pictures if isinstance(picture, torch.Tensor)]


def checked_boxes(
    boxes: torch.Tensor | Sequence[torch.Tensor], pictures: Sequence[torch.Tensor], *, single: bool
) -> list[torch.Tensor]:
    """Boxes of each frame, float32 [K, 4].

    Raises:
        TypeError, ValueError: something else, or not one tensor a frame.
    """
    if single:
        given = [boxes] if isinstance(boxes, torch.Tensor) else list(boxes)
    elif isinstance(boxes, torch.Tensor):
        raise ValueError(f"boxes must be a list with one tensor for each of the {len(pictures)} frames, not one tensor")
    else:
        given = list(boxes)
    if len(given) != len(pictures):
        raise ValueError(f"{len(pictures)} frames want {len(pictures)} tensors of boxes, not {len(given)}")
    for row, (box, picture) in enumerate(zip(given, pictures, strict=True)):
        if not isinstance(box, torch.Tensor) or box.dtype != torch.float32:
            kind = box.dtype if isinstance(box, torch.Tensor) else type(box).__name__
            raise TypeError(f"boxes must be float32 tensors [K, 4]; those of frame {row} are {kind}")
        if box.dim() != 2 or box.shape[1] != 4:
            raise ValueError(f"boxes must be [K, 4] (x1, y1, x2, y2); those of frame {row} are {list(box.shape)}")
        if box.device != picture.device:
            raise ValueError(f"the boxes of frame {row} are on {box.device}, the frame is on {picture.device}")
    return given
