"""People of a frame as other libraries hold them, with BGR pixels and masks of whole frames: cut out, and embedded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mgran_fast import ops
from mgran_fast.extractor import FeatureExtractor
from mgran_fast.metrics.embedding import read_size


def cut(extractor: FeatureExtractor, frame: Any, boxes: torch.Tensor, *, bgr: bool) -> torch.Tensor:
    """Crops uint8 [N, h, w, 3], RGB, on the extractor's device, of the size that it reads; black outside of the frame.

    Args:
        frame: uint8 [H, W, 3], array or tensor.
        boxes: float32 [N, 4], left, top, right, bottom in pixels.
        bgr: whether the frame is blue first, as OpenCV reads it.

    Raises TypeError or ValueError for another dtype or shape.
    """
    size = read_size(extractor.alignment)
    if not isinstance(frame, torch.Tensor):
        # Frames that nobody may write to are copied, since torch would warn of them.
        frame = torch.from_numpy(np.require(frame, requirements=("C", "W")))
    pixels: torch.Tensor = frame
    pixels, corners = pixels.to(extractor.device), boxes.to(extractor.device)
    # Whichever are fewer bytes are turned round: the frame, or its crops.
    crowded = 3 * len(boxes) * size[0] * size[1] > pixels.numel()
    if bgr and crowded:
        return ops.crops(to_rgb(pixels), corners, size)
    crops = ops.crops(pixels, corners, size)
    return to_rgb(crops) if bgr else crops


def to_rgb(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [..., H, W, 3] with the first and the last channel exchanged."""
    if pixels.device.type == "cpu" and pixels.numel():
        try:
            # Who has BGR frames has OpenCV as a rule, and it takes a twentieth of torch's time.
            import cv2
        except ImportError:
            return pixels.flip(-1)
        rows = pixels.numpy().reshape(-1, pixels.shape[-2], 3)
        return torch.from_numpy(cv2.cvtColor(rows, cv2.COLOR_BGR2RGB)).view_as(pixels)
    return pixels.flip(-1)


def cut_masks(masks: Any, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """What each person's box shows of the person's mask.

    Args:
        masks: bool [N, H, W], array or tensor, of the whole frame.
        boxes: float32 [N, 4], left, top, right, bottom in pixels.
        size: (h, w) of the result.

    Returns:
        uint8 [N, h, w], 0 to 255; 0 outside of the frame.

    Raises ValueError for another shape.
    """
    given, corners = torch.as_tensor(masks).cpu(), boxes.cpu()
    if given.ndim != 3 or len(given) != len(corners):
        raise ValueError(f"masks must be bool [N, H, W] for N = {len(corners)} boxes, not {list(given.shape)}")
    made = torch.zeros((len(corners), *size), dtype=torch.uint8)
    height, width = given.shape[1:]
    for target, mask, box in zip(made, given, corners, strict=True):
        if not bool(box.isfinite().all()):
            continue
        # Of a whole frame for each person only what is below the box is read.
        left, top = (int(v) for v in box[:2].floor().clamp(min=0))
        right, bottom = min(int(box[2].ceil()), width), min(int(box[3].ceil()), height)
        if left < right and top < bottom:
            part = mask[top:bottom, left:right, None].to(torch.uint8) * 255
            moved = box - torch.tensor([left, top, left, top])
            target.copy_(ops.crops(part.repeat(1, 1, 3), moved[None], size)[0, ..., 0])
    return made


def embed(
    extractor: FeatureExtractor, crops: torch.Tensor, masks: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors float32 [N, P * D] and visible bool [N, P] of the crops of :func:`cut`.

    Args:
        masks: of :func:`cut_masks`: which pixels are the person's. Keypoints are the extractor's estimator's all the
            same, since a mask has none.
    """
    if masks is None or not len(crops):
        features = extractor.extract(crops)
        return features.vectors, features.visible
    found = []
    for some, shown in zip(crops.split(extractor.batch_size), masks.split(extractor.batch_size), strict=True):
        alignment = extractor.alignment
        keypoints = None if alignment.layout.whole else alignment.mra(some).keypoints
        found.append(extractor.engine.encode(some, shown.to(some.device), keypoints))
    return torch.cat([one.vector for one in found]), torch.cat([one.visible for one in found])
