"""``crops``: boxes cut from frames and resized to one size."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mgran_fast.ops import backend, checks
from mgran_fast.ops.launch import launch
from mgran_fast.ops.library import register
from mgran_fast.reference import crops as reference


def crops(
    frame: torch.Tensor | Sequence[torch.Tensor],
    boxes: torch.Tensor | Sequence[torch.Tensor],
    size: tuple[int, int] = (256, 128),
) -> torch.Tensor:
    """The crop of each box, resized bilinearly; what lies outside of the frame is black.

    The same as ``cv2.resize`` with ``INTER_LINEAR`` (half-pixel centres, no antialiasing) of the box, cut from a
    frame that is black all around, within one grey level; boxes may have fractions of pixels. An empty box, or
    one with a coordinate that is not finite, gives an all-black crop. All backends give the same crops, to the bit.

    Args:
        frame: uint8 [H, W, 3], or a list of frames, of any sizes. Rows may lie apart (a slice of a larger picture).
        boxes: float32 [N, 4]: x1, y1, x2, y2 in pixels of the frame (the first pixel reaches from 0 to 1); for a
            list of frames a list of boxes, one tensor a frame.
        size: (h, w) of the crops.

    Returns:
        uint8 [N, h, w, 3]; for a list of frames all crops, frame by frame.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device or size; lists of different lengths.
    """
    height, width = checks.size(size)
    if isinstance(frame, torch.Tensor):
        return _one(frame, boxes, height, width)
    if isinstance(boxes, torch.Tensor) or len(frame) != len(boxes):
        given = "one tensor" if isinstance(boxes, torch.Tensor) else f"{len(boxes)} tensors"
        raise ValueError(f"boxes must be a list with one tensor for each of the {len(frame)} frames, not {given}")
    if not frame:
        return torch.zeros((0, height, width, 3), dtype=torch.uint8)
    return torch.cat([_one(f, b, height, width) for f, b in zip(frame, boxes, strict=True)])


def _one(frame: torch.Tensor, boxes: object, height: int, width: int) -> torch.Tensor:
    checks.tensor("frame", frame, (None, None, 3), (torch.uint8,))
    boxes = checks.tensor("boxes", boxes, (None, 4), (torch.float32,))
    checks.same_device(frame=frame, boxes=boxes)
    result: torch.Tensor = _op(frame, boxes, height, width)
    return result


def _implementation(frame: torch.Tensor, boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    module = backend.native("crops", frame.device.type)
    if module is None:
        return reference.crops(frame, boxes, (height, width))
    rows = frame
    if frame.numel() and (frame.stride(2) != 1 or frame.stride(1) != 3 or frame.stride(0) < 3 * frame.shape[1]):
        rows = frame.contiguous()
    out = frame.new_empty((len(boxes), height, width, 3))
    launch(
        module,
        "crops",
        frame.device,
        frame=rows,
        frame_size=(frame.shape[0], frame.shape[1]),
        row_stride=max(rows.stride(0), 3 * frame.shape[1]),
        boxes=boxes.contiguous(),
        out=out,
        count=len(boxes),
        size=(height, width),
    )
    return out


def _fake(frame: torch.Tensor, boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return frame.new_empty((boxes.shape[0], height, width, 3))


_op = register(
    "crops(Tensor frame, Tensor boxes, SymInt height, SymInt width) -> Tensor",
    _implementation,
    _fake,
)
