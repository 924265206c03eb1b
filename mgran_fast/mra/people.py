"""From feature maps and boxes to people: RoIAlign, the heads, decoding; and the boxes themselves where none are given.

Everything is batched over people, whichever pictures and levels of the pyramid they lie on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes, roi_align

from mgran_fast.mra import decode
from mgran_fast.mra.inference import LEVELS, STRIDES, Features, Network

# What torchvision's checkpoints were trained with: RGB in [0, 1], ImageNet's mean and standard deviation.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The longer side of a picture is enlarged to this at most: torchvision's own limit.
LONGER = 1333
# Cells of the pooled maps: what the box head sees, and what the mask and keypoint heads see.
SMALL, LARGE = 7, 14
# The heads run on this many people at a time: about 50 MB of activations. More is no faster on a processor.
CHUNK = 32


@dataclass(frozen=True)
class Answers:
    """What the heads say of K boxes.

    Attributes:
        mask: float32 [K, 28, 28], the probability of each cell of the box to show the person.
        heatmaps: float32 [K, 17, 56, 56], logits of the keypoints.
        presence: float32 [K], the probability that the box shows a person.
    """

    mask: torch.Tensor
    heatmaps: torch.Tensor
    presence: torch.Tensor


def normalised(pictures: torch.Tensor, size: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> [N, 3, h, w], channels_last: resized to ``size`` and padded to multiples of 32 by 0."""
    # Python numbers, no tensors: nothing is copied to the device. Stacked last and permuted: channels_last.
    planes = [(pictures[..., i].float() / 255 - MEAN[i]) / STD[i] for i in range(3)]
    images = torch.stack(planes, dim=3).permute(0, 3, 1, 2)
    if images.shape[2:] != size:
        images = functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
    down, right = -size[0] % STRIDES[-1], -size[1] % STRIDES[-1]
    if down or right:
        images = functional.pad(images, (0, right, 0, down))
    return images.to(dtype)


def working_size(height: int, width: int, size: tuple[int, int] | int | None) -> tuple[int, int]:
    """The height and width that a picture is resized to: ``size`` is those, the shorter side, or None for its own."""
    if size is None:
        return height, width
    if isinstance(size, tuple):
        return size
    scale = min(size / min(height, width), LONGER / max(height, width))
    # The tiny addend undoes rounding: 3 * (1 / 3) pixels are one pixel.
    return max(1, math.floor(height * scale + 1e-6)), max(1, math.floor(width * scale + 1e-6))


def level_of(height: float, width: float) -> str:
    """The level that a box of this size is pooled from.

    The rule of feature pyramid networks (Lin et al. 2017, equation 1): floor(4 + log2(sqrt(h w) / 224)), from 2 to 5.
    """
    level = math.floor(4 + math.log2(math.sqrt(height * width) / 224) + 1e-6)
    return LEVELS[min(max(level, 2), 5) - 2]


def levels_of(rois: torch.Tensor) -> torch.Tensor:
    """The same for rois float32 [K, 5] (picture, x1, y1, x2, y2): int64 [K], places in ``LEVELS``."""
    side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).clamp(min=1e-12).sqrt()
    return torch.floor(4 + torch.log2(side / 224) + 1e-6).clamp(2, 5).long() - 2


def pool(features: Features, rois: torch.Tensor, cells: int, level: str | None = None) -> torch.Tensor:
    """RoIAlign as torchvision's detectors do it: [K, C, cells, cells], channels_last, in the features' dtype.

    Args:
        features: the levels that the boxes need, at least.
        rois: float32 [K, 5]: the picture's row, then x1, y1, x2, y2 in pixels of the pictures.
        level: the level that all boxes lie on, where that is known: then the device is not waited for.
    """

    def align(name: str, chosen: torch.Tensor) -> torch.Tensor:
        scale = 1 / STRIDES[LEVELS.index(name)]
        pooled: torch.Tensor = roi_align(features[name].float(), chosen, (cells, cells), scale, 2)
        return pooled.to(features[name].dtype)

    if level is not None:
        return align(level, rois).contiguous(memory_format=torch.channels_last)
    any_level = next(iter(features.values()))
    place, out = levels_of(rois), any_level.new_zeros((len(rois), any_level.shape[1], cells, cells))
    for i, name in enumerate(LEVELS):
        rows = torch.where(place == i)[0]
        if len(rows):
            out[rows] = align(name, rois[rows])
    return out.contiguous(memory_format=torch.channels_last)


def answer(
    network: Network,
    features: tuple[Features, Features],
    rois: torch.Tensor,
    person: int,
    level: str | None = None,
) -> Answers:
    """Run all heads on K boxes; ``features`` are those of :meth:`Network.features`, ``rois`` as for :func:`pool`."""
    parts = []
    for chunk in torch.split(rois, CHUNK) if len(rois) else (rois,):
        logits, _ = network.box(pool(features[0], chunk, SMALL, level))
        pooled = pool(features[0], chunk, LARGE, level)
        mask = network.mask(pooled)
        if features[1] is not features[0]:
            pooled = pool(features[1], chunk, LARGE, level)
        parts.append((mask.sigmoid(), network.heatmaps(pooled), logits.softmax(dim=1)[:, person]))
    if len(parts) == 1:
        return Answers(*parts[0])
    return Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))


def resized(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Masks [K, h, w] that span boxes, as masks [K, *size] of the same boxes.

    No fading border as in torchvision's pasting: a person whom the box cuts off goes on up to its edge.
    """
    if len(mask) == 0:
        return mask.new_zeros((0, *size))
    return functional.interpolate(mask[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def whole(n: int, height: int, width: int, device: torch.device) -> torch.Tensor:
    """n times the box 0, 0, width, height: float32 [n, 4], made on the device."""
    return torch.stack([torch.full((n,), float(v), device=device) for v in (0, 0, width, height)], dim=1)


def as_rois(boxes: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """boxes [K, 4] and their pictures' rows [K] -> float32 [K, 5]."""
    return torch.cat((picture[:, None].float(), boxes), dim=1)


@dataclass(frozen=True)
class Found:
    """Detections of people, picture by picture, the surest first.

    Attributes:
        boxes: float32 [K, 4], in pixels of the pictures as the network sees them.
        scores: float32 [K].
        picture: int64 [K], the row of each one's picture.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    picture: torch.Tensor


def find(
    model: Any,
    network: Network,
    images: torch.Tensor,
    size: tuple[int, int],
    features: Features,
    *,
    score: float,
    nms: float,
    most: int,
) -> Found:
    """Detect people: torchvision's proposals and box head, with boxes decoded for the person's class alone.

    Args:
        model: the :class:`~mgran_fast.MaskRCNN`, for its settings (anchors, numbers of proposals, box coders).
        images: [N, 3, h, w], padded; ``size`` is the height and width that the pictures fill.
        features: all five levels.
        score, nms, most: what a score must be above, the overlap (IoU) from which the less sure one of two boxes
            goes, and the largest number of people in a picture.
    """
    sizes, rpn, heads = [size] * len(images), model.rpn, model.roi_heads
    objectness, deltas = network.proposals(features)
    # Anchors take their dtype from the features: float32, and only the shapes matter.
    anchors = rpn.anchor_generator(ImageList(images, sizes), [level[:, :1].float() for level in features.values()])
    counts = [level[0].numel() for level in objectness]
    flat, flat_deltas = concat_box_prediction_layers(objectness, deltas)
    decoded = rpn.box_coder.decode(flat_deltas, anchors).view(len(images), -1, 4)
    proposals: Sequence[torch.Tensor] = rpn.filter_proposals(decoded, flat, sizes, counts)[0]
    picture = torch.cat([torch.full((len(p),), i, device=images.device) for i, p in enumerate(proposals)])
    proposed = torch.cat(list(proposals))
    pyramid = {name: level for name, level in features.items() if name in LEVELS}
    logits, deltas_of_classes = network.box(pool(pyramid, as_rois(proposed, picture), SMALL))
    person = model.person_label
    scores = logits.softmax(dim=1)[:, person]
    boxes = heads.box_coder.decode_single(deltas_of_classes[:, 4 * person : 4 * person + 4], proposed)
    boxes = clip_boxes_to_image(boxes.view(-1, 4), size)
    keep = torch.where(scores > score)[0]
    keep = keep[remove_small_boxes(boxes[keep], min_size=1e-2)]
    keep = keep[batched_nms(boxes[keep], scores[keep], picture[keep], nms)]
    rows = [keep[picture[keep] == i][:most] for i in range(len(images))]
    chosen = torch.cat(rows) if rows else keep
    return Found(boxes[chosen], scores[chosen], picture[chosen])


def keypoints_in(heatmaps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Keypoints [K, 17, 3] in pixels of crops of ``size``, which the heatmaps span."""
    return decode.decode_keypoints(heatmaps, whole(len(heatmaps), *size, heatmaps.device))
