"""The training losses of the joint Mask R-CNN, on one backbone; torchvision's own where they fit.

People without a mask, without keypoints, or whose keypoints are all unlabelled add nothing to those losses; a batch
without any of them gives a loss of exactly 0, with gradients of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss, keypointrcnn_loss, maskrcnn_loss
from torchvision.ops import box_iou

from mgran_fast.layouts import KEYPOINTS
from mgran_fast.mra import people
from mgran_fast.mra.inference import STRIDES

# A random box is background when it overlaps nobody by more than this (IoU).
BACKGROUND_OVERLAP = 0.3
# Random boxes drawn for each that is wanted: in a crop that a person fills most of them show the person.
DRAWS = 16


@dataclass(frozen=True)
class Target:
    """The K people of one picture, K may be 0. Coordinates are pixels of the picture.

    Attributes:
        boxes: float [K, 4]: x1, y1, x2, y2, with x2 > x1 and y2 > y1.
        masks: [K, H, W], of the picture's size: uint8 in 0 to 255, float in [0, 1] (probabilities are fine), or bool.
            None when nobody has a mask.
        keypoints: float [K, 17, 3], COCO order: x, y and whether the keypoint is labelled (above 0) or not. A pixel's
            centre is at + 0.5. None when nobody has keypoints.
        has_mask: bool [K], who has a mask; everybody (or, without masks, nobody) when not given.
        has_keypoints: bool [K], who has keypoints; likewise.
    """

    boxes: torch.Tensor
    masks: torch.Tensor | None = None
    keypoints: torch.Tensor | None = None
    has_mask: torch.Tensor | None = None
    has_keypoints: torch.Tensor | None = None


@dataclass(frozen=True)
class _Truth:
    """A checked target: everything there, on one device, float32."""

    boxes: torch.Tensor
    masks: torch.Tensor
    keypoints: torch.Tensor
    has_mask: torch.Tensor
    has_keypoints: torch.Tensor


@dataclass(frozen=True)
class _Samples:
    """The regions of interest of one picture.

    Attributes:
        boxes: float32 [R, 4].
        person: int64 [R], which of the picture's people each one is about; 0 for background.
        labels: int64 [R], the class; 0 is background.
        deltas: float32 [R, 4], from each box to its person's true box, as the box coder says it.
    """

    boxes: torch.Tensor
    person: torch.Tensor
    labels: torch.Tensor
    deltas: torch.Tensor


def losses(
    model: Any,
    images: torch.Tensor | Sequence[torch.Tensor],
    targets: Sequence[Target | Mapping[str, Any]],
    *,
    jitter: float,
    background: int,
    generator: torch.Generator | None,
) -> dict[str, torch.Tensor]:
    """See :meth:`mgran_fast.MaskRCNN.losses`."""
    if not 0 <= jitter < 0.5:
        raise ValueError(f"jitter must be at least 0 and below 0.5 of a box's side, not {jitter}")
    if background < 0:
        raise ValueError(f"background must be 0 or more boxes a picture, not {background}")
    weight = next(model.parameters())
    pictures = _pictures(images, weight.device)
    if len(pictures) != len(targets):
        raise ValueError(f"one target for each picture: {len(pictures)} pictures and {len(targets)} targets are given")
    sizes = [(int(picture.shape[0]), int(picture.shape[1])) for picture in pictures]
    truths = [
        _truth(target, size, i, weight.device) for i, (target, size) in enumerate(zip(targets, sizes, strict=True))
    ]
    inputs = batch(pictures, weight)
    features = model.backbone(inputs)
    second = features if model.keypoint_backbone is None else model.keypoint_backbone(inputs)
    found: dict[str, torch.Tensor] = {}
    if model.mode == "box":
        samples = [
            _prompted(model, truth, size, jitter=jitter, background=background, generator=generator)
            for truth, size in zip(truths, sizes, strict=True)
        ]
    else:
        samples, found = _proposed(model, inputs, sizes, features, truths)
    return {**_head_losses(model, features, second, sizes, truths, samples), **found}


def _head_losses(
    model: Any,
    features: Mapping[str, torch.Tensor],
    second: Mapping[str, torch.Tensor],
    sizes: list[tuple[int, int]],
    truths: Sequence[_Truth],
    samples: Sequence[_Samples],
) -> dict[str, torch.Tensor]:
    heads = model.roi_heads
    pooled = heads.box_roi_pool(features, [sample.boxes for sample in samples], sizes)
    logits, deltas = (values.float() for values in heads.box_predictor(heads.box_head(pooled)))
    if len(logits):
        labels, truth_deltas = [sample.labels for sample in samples], [sample.deltas for sample in samples]
        classes, regression = fastrcnn_loss(logits, deltas, labels, truth_deltas)
    else:
        classes, regression = logits.sum() * 0, deltas.sum() * 0
    boxes, person = _those(samples, [truth.has_mask for truth in truths])
    logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, boxes, sizes))).float()
    labels = [torch.full((len(truth.boxes),), model.person_label, device=logits.device) for truth in truths]
    mask = maskrcnn_loss(logits, boxes, [truth.masks for truth in truths], labels, person)
    boxes, person = _those(samples, [truth.has_keypoints for truth in truths])
    heatmaps = heads.keypoint_predictor(heads.keypoint_head(heads.keypoint_roi_pool(second, boxes, sizes))).float()
    heatmaps = heatmaps.contiguous()  # torchvision views them as rows
    keypoint = keypointrcnn_loss(heatmaps, boxes, [truth.keypoints for truth in truths], person)
    return {"loss_classifier": classes, "loss_box_reg": regression, "loss_mask": mask, "loss_keypoint": keypoint}


def _those(samples: Sequence[_Samples], who: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Boxes and person's numbers of the regions about people who have what ``who`` says, picture by picture."""
    boxes, person = [], []
    for sample, has in zip(samples, who, strict=True):
        # A picture without people has background alone, whose person's number 0 means nobody.
        there = sample.labels > 0
        if len(has):
            there &= has[sample.person]
        boxes.append(sample.boxes[there])
        person.append(sample.person[there])
    return boxes, person


def _prompted(
    model: Any,
    truth: _Truth,
    size: tuple[int, int],
    *,
    jitter: float,
    background: int,
    generator: torch.Generator | None,
) -> _Samples:
    """The given boxes, moved a little, and random boxes of background: what a head without proposals learns from."""
    boxes = _jittered(truth.boxes, jitter, generator)
    empty = _background(truth.boxes, size, background, generator)
    k, device = len(boxes), boxes.device
    person = torch.cat((torch.arange(k, device=device), torch.zeros(len(empty), dtype=torch.long, device=device)))
    labels = torch.zeros_like(person)
    labels[:k] = model.person_label
    deltas = boxes.new_zeros((len(labels), 4))
    if k:
        deltas[:k] = model.roi_heads.box_coder.encode_single(truth.boxes, boxes)
    return _Samples(torch.cat((boxes, empty)), person, labels, deltas)


def _jittered(boxes: torch.Tensor, jitter: float, generator: torch.Generator | None) -> torch.Tensor:
    """Every edge moved by up to ``jitter`` of the box's width or height, evenly distributed."""
    noise = torch.rand((len(boxes), 4), generator=generator).to(boxes.device) * 2 - 1
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    # Below half a side each, opposite edges do not meet.
    return boxes + noise * jitter * sides


def _background(
    boxes: torch.Tensor, size: tuple[int, int], count: int, generator: torch.Generator | None
) -> torch.Tensor:
    """Up to ``count`` boxes that are nobody's; the first of a picture without people is the whole picture."""
    height, width = size
    # Sides from an eighth of the picture's to all of it, small and large alike (log-uniform).
    draws = torch.rand((count * DRAWS, 4), generator=generator).to(boxes.device)
    sides = 8 ** -draws[:, :2] * boxes.new_tensor([width, height])
    low = draws[:, 2:] * (boxes.new_tensor([width, height]) - sides)
    found = torch.cat((low, low + sides), dim=1)
    if len(boxes) == 0:
        return torch.cat((people.whole(1, height, width, boxes.device), found))[:count]
    return found[box_iou(found, boxes).amax(dim=1) < BACKGROUND_OVERLAP][:count]


def _proposed(
    model: Any,
    inputs: torch.Tensor,
    sizes: list[tuple[int, int]],
    features: Mapping[str, torch.Tensor],
    truths: Sequence[_Truth],
) -> tuple[list[_Samples], dict[str, torch.Tensor]]:
    """Regions sampled from the proposals, and the losses of the proposals: both as torchvision trains them."""
    label = model.person_label
    dicts = [
        {
            "boxes": truth.boxes,
            "labels": torch.full((len(truth.boxes),), label, device=truth.boxes.device),
            "masks": truth.masks,  # only asked whether it is there
        }
        for truth in truths
    ]
    proposals, found = model.rpn(ImageList(inputs, sizes), features, dicts)
    boxes, person, labels, deltas = model.roi_heads.select_training_samples([p.float() for p in proposals], dicts)
    samples = [_Samples(*column) for column in zip(boxes, person, labels, deltas, strict=True)]
    return samples, found


def batch(images: torch.Tensor | Sequence[torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """Pictures of any sizes as one batch: normalised, then padded at the right and below by 0 to multiples of 32.

    The batch has the dtype of ``weight``. Raises TypeError or ValueError for anything that is no picture.
    """
    pictures = _pictures(images, weight.device)
    sizes = [(int(picture.shape[0]), int(picture.shape[1])) for picture in pictures]
    if len(set(sizes)) == 1:
        return people.normalised(torch.stack(pictures), sizes[0], weight.dtype)
    height, width = (max(size[i] + -size[i] % STRIDES[-1] for size in sizes) for i in (0, 1))
    padded = weight.new_zeros((len(pictures), height, width, 3)).permute(0, 3, 1, 2)
    for row, picture, size in zip(padded, pictures, sizes, strict=True):
        one = people.normalised(picture[None], size, weight.dtype)[0]
        row[:, : one.shape[1], : one.shape[2]] = one
    return padded


def _pictures(images: torch.Tensor | Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    pictures = list(images)
    if not pictures:
        raise ValueError("images must hold at least one picture")
    for i, picture in enumerate(pictures):
        if not isinstance(picture, torch.Tensor) or picture.dtype != torch.uint8:
            kind = picture.dtype if isinstance(picture, torch.Tensor) else type(picture).__name__
            raise TypeError(f"images must be uint8 [N, H, W, 3] or a list of uint8 [H, W, 3]; picture {i} is {kind}")
        if picture.dim() != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ValueError(f"pictures must be [H, W, 3] with at least one pixel; picture {i}: {list(picture.shape)}")
        if picture.device != device:
            raise ValueError(f"picture {i} is on {picture.device}, the model is on {device}: move one of them")
    return pictures


def _truth(target: Target | Mapping[str, Any], size: tuple[int, int], i: int, device: torch.device) -> _Truth:
    """A target checked and completed. Raises TypeError or ValueError that names picture ``i``."""
    if isinstance(target, Mapping):
        names = {field.name for field in fields(Target)}
        if "boxes" not in target or target.keys() - names:
            raise ValueError(f"the target of picture {i} must have boxes and may have {', '.join(sorted(names))}")
        target = Target(**target)
    elif not isinstance(target, Target):
        raise TypeError(f"the target of picture {i} must be a Target or a dict, not {type(target).__name__}")
    boxes = target.boxes.to(device=device, dtype=torch.float32)
    k, (height, width) = len(boxes), size
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"picture {i}: boxes must be [K, 4], not {list(boxes.shape)}")
    if k and not bool((boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)).all()):
        raise ValueError(f"picture {i}: a box is empty or not finite; leave it out, with its mask and keypoints")
    masks, keypoints = target.masks, target.keypoints
    has_mask = _who(target.has_mask, masks, k, f"picture {i}: has_mask", device)
    has_keypoints = _who(target.has_keypoints, keypoints, k, f"picture {i}: has_keypoints", device)
    if masks is None:
        # Nobody has one: never read.
        masks = boxes.new_zeros((k, 1, 1))
    elif tuple(masks.shape) != (k, height, width):
        raise ValueError(f"picture {i}: masks must be {[k, height, width]}, not {list(masks.shape)}")
    else:
        masks = masks.to(device).float() / 255 if masks.dtype == torch.uint8 else masks.to(device).float()
    if keypoints is None:
        keypoints = boxes.new_zeros((k, len(KEYPOINTS), 3))
    elif tuple(keypoints.shape) != (k, len(KEYPOINTS), 3):
        raise ValueError(f"picture {i}: keypoints must be {[k, len(KEYPOINTS), 3]}, not {list(keypoints.shape)}")
    else:
        keypoints = keypoints.to(device=device, dtype=torch.float32)
    return _Truth(boxes, masks, keypoints, has_mask, has_keypoints)


def _who(has: torch.Tensor | None, what: torch.Tensor | None, k: int, name: str, device: torch.device) -> torch.Tensor:
    if has is None:
        return torch.full((k,), what is not None, device=device)
    if has.dtype != torch.bool or tuple(has.shape) != (k,):
        raise ValueError(f"{name} must be bool [{k}], not {has.dtype} {list(has.shape)}")
    if what is None and bool(has.any()):
        raise ValueError(f"{name} says that somebody has what was not given")
    return has.to(device)
