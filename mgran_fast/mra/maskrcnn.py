"""Mask R-CNN as an estimator: one detector that gives the person's mask and the 17 keypoints.

Two ways to run it. ``box`` takes the crop itself as the box of the person: no proposals, no suppression, one pass of
the backbone at the crop's own resolution and one region of interest a crop. ``detect`` is the whole detector, which
looks for the person inside the crop.

The modules are torchvision's and so are the key names: ``backbone.*``, ``rpn.*``, ``roi_heads.*``.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.detection import MaskRCNN as Detector
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from mgran_fast.errors import CheckpointError
from mgran_fast.layouts import KEYPOINTS
from mgran_fast.mra import decode
from mgran_fast.mra.estimate import Estimate
from mgran_fast.mra.weights import Source, find_checkpoints, part, read, read_checkpoint, widened, write

__all__ = ["MaskRCNN", "find_checkpoints"]

logger = logging.getLogger(__name__)

FORMAT, VERSION = "mgran_fast.MaskRCNN", 1
MODES = ("box", "detect")
# What torchvision's checkpoints were trained with: RGB in [0, 1], ImageNet's mean and standard deviation.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The backbone's levels "0" to "3" have strides 4 to 32; a crop is padded to a multiple of the last.
LEVELS, STRIDES = ("0", "1", "2", "3"), (4, 8, 16, 32)
# torchvision's own sizes for a detector: the shorter side, and what the longer one may not exceed.
SHORTER, LONGER = 800, 1333
# A crop enlarged to 800 pixels takes about half a gigabyte: crops run this many at a time in detect mode.
CHUNK = 4


class MaskRCNN(nn.Module):
    """Joint mask and keypoint detector on ResNet-50-FPN; an :class:`~mgran_fast.mra.estimate.Estimator`.

    In ``box`` mode the mask is the person class's 28 x 28 probability resized to the crop, the keypoints come from 56 x
    56 heatmaps that span the crop, and ``presence`` is the box head's softmax probability that the whole crop is a
    person.

    In ``detect`` mode one detection of class ``person_label`` is chosen for each crop: the one with the highest score
    times the share that its box covers of the crop's central quarter (half the height, half the width). A box that
    covers none of it counts with a share of 0.001, so it is chosen only where nobody stands in the middle. The mask is
    pasted into the crop, ``presence`` is the score. A crop without a detection has mask, keypoints and presence 0.

    Keypoint places and scores are those of :func:`mgran_fast.mra.decode.decode_keypoints`.

    Args:
        mode: ``"box"`` or ``"detect"``.
        size: what crops are resized to before the backbone: (height, width), or the length of the shorter side, the
            longer one at most 1333 pixels. None is the crop's own size in box mode and 800, torchvision's default, in
            detect mode. Results are always in pixels of the crop as given.
        num_classes: classes of the detector, background included: 91 for torchvision's COCO weights.
        person_label: which of them is the person.
        weights: the arguments of :meth:`load_torchvision` as a dict, ``{"mask": ..., "keypoints": ...}``; random
            weights for None. Nothing is ever downloaded.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong type.
        CheckpointError: ``weights`` do not fit.
    """

    def __init__(
        self,
        *,
        mode: str = "box",
        size: tuple[int, int] | int | None = None,
        num_classes: int = 91,
        person_label: int = 1,
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        if not 0 < person_label < num_classes:
            raise ValueError(f"person_label must be between 1 and num_classes - 1 = {num_classes - 1}: {person_label}")
        self.mode, self.size = mode, _checked_size(size)
        self.num_classes, self.person_label = num_classes, person_label
        detector = Detector(_backbone(), num_classes)
        self.backbone, self.rpn, self.roi_heads = detector.backbone, detector.rpn, detector.roi_heads
        heads: Any = self.roi_heads
        heads.keypoint_roi_pool = MultiScaleRoIAlign(LEVELS, output_size=14, sampling_ratio=2)
        heads.keypoint_head = KeypointRCNNHeads(self.backbone.out_channels, (512,) * 8)
        heads.keypoint_predictor = KeypointRCNNPredictor(512, len(KEYPOINTS))
        for pool in (heads.box_roi_pool, heads.mask_roi_pool, heads.keypoint_roi_pool):
            # torchvision guesses the strides from the first batch it sees, wrongly when crops are tiny.
            pool.scales, pool.map_levels = [1 / stride for stride in STRIDES], LevelMapper(2, 5)
        #: A backbone of their own for the keypoints, or None; see ``load_torchvision(backbone="both")``.
        self.keypoint_backbone: nn.Module | None = None
        if weights is not None:
            if not isinstance(weights, Mapping) or weights.keys() - {"mask", "keypoints", "backbone", "eps"}:
                raise TypeError('weights must be a dict with "mask" and/or "keypoints": a path or a state dict each')
            self.load_torchvision(**weights)
        self.eval()

    def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        """Masks and keypoints of crops; no gradient is recorded.

        Args:
            crops: uint8 [N, H, W, 3], RGB, any strides, on the module's device; N may be 0.
            keypoint_masks: also return keypoint masks [N, 17, 56, 56] that span the crop, as
                :func:`mgran_fast.mra.decode.keypoint_masks` defines them.

        Raises:
            TypeError, ValueError: ``crops`` is not such a tensor.
            RuntimeError: the module is in training mode.
        """
        if self.training:
            raise RuntimeError("MaskRCNN estimates in eval mode only: call .eval(); it is trained apart from MGRAN")
        weight = next(self.parameters())
        _check_crops(crops, weight.device)
        n, height, width = crops.shape[:3]
        with torch.no_grad():
            if n == 0:
                empty = torch.zeros(0, device=crops.device)
                no_masks = empty.new_zeros(0, len(KEYPOINTS), 56, 56) if keypoint_masks else None
                return Estimate(empty.view(0, height, width), empty.view(0, len(KEYPOINTS), 3), empty, no_masks)
            if self.mode == "box":
                return self._estimate_in_box(crops, weight.dtype, keypoint_masks)
            if weight.dtype != torch.float32:
                raise ValueError(f"detect mode needs float32 weights, not {weight.dtype}: its boxes need the precision")
            parts = [self._detect(chunk, keypoint_masks) for chunk in torch.split(crops, CHUNK)]
            masks = [p.keypoint_masks for p in parts if p.keypoint_masks is not None]
            return Estimate(
                torch.cat([p.mask for p in parts]),
                torch.cat([p.keypoints for p in parts]),
                torch.cat([p.presence for p in parts]),
                torch.cat(masks) if masks else None,
            )

    def _images(self, crops: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, tuple[int, int]]:
        """Normalised images [N, 3, h, w], h and w multiples of 32, and the height and width that the crop fills."""
        # Python numbers, no tensors: nothing is copied to the device. Stacked last and permuted: channels_last.
        planes = [(crops[..., i].float() / 255 - MEAN[i]) / STD[i] for i in range(3)]
        images = torch.stack(planes, dim=3).permute(0, 3, 1, 2)
        height, width = self._working_size(crops.shape[1], crops.shape[2])
        if images.shape[2:] != (height, width):
            images = functional.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
        images = functional.pad(images, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        return images.to(dtype), (height, width)

    def _working_size(self, height: int, width: int) -> tuple[int, int]:
        size = SHORTER if self.size is None and self.mode == "detect" else self.size
        if size is None:
            return height, width
        if isinstance(size, tuple):
            return size
        scale = min(size / min(height, width), LONGER / max(height, width))
        # The tiny addend undoes rounding: 3 * (1 / 3) pixels are one pixel.
        return max(1, math.floor(height * scale + 1e-6)), max(1, math.floor(width * scale + 1e-6))

    def _features(self, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The feature maps for masks and boxes, and those for keypoints."""
        features = self.backbone(images)
        return features, features if self.keypoint_backbone is None else self.keypoint_backbone(images)

    def _estimate_in_box(self, crops: torch.Tensor, dtype: torch.dtype, keypoint_masks: bool) -> Estimate:
        heads: Any = self.roi_heads
        images, (h, w) = self._images(crops, dtype)
        features, keypoint_features = self._features(images)
        logits, _ = heads.box_predictor(heads.box_head(_whole_crop(features, h, w, heads.box_roi_pool)))
        presence = logits.float().softmax(dim=1)[:, self.person_label]
        small = heads.mask_predictor(heads.mask_head(_whole_crop(features, h, w, heads.mask_roi_pool)))
        # No fading border as in torchvision's pasting: a person that the crop cuts off goes on up to its edge.
        mask = functional.interpolate(
            small[:, self.person_label, None].float().sigmoid(),
            size=crops.shape[1:3],
            mode="bilinear",
            align_corners=False,
        )[:, 0]
        pooled = _whole_crop(keypoint_features, h, w, heads.keypoint_roi_pool)
        heatmaps = heads.keypoint_predictor(heads.keypoint_head(pooled))
        keypoints = decode.decode_keypoints(heatmaps, _whole(len(crops), crops.shape[1], crops.shape[2], crops.device))
        return Estimate(mask, keypoints, presence, decode.keypoint_masks(heatmaps) if keypoint_masks else None)

    def _detect(self, crops: torch.Tensor, keypoint_masks: bool) -> Estimate:
        heads: Any = self.roi_heads
        images, (h, w) = self._images(crops, torch.float32)
        features, keypoint_features = self._features(images)
        frames = [(h, w)] * len(crops)
        proposals, _ = self.rpn(ImageList(images, frames), features)
        logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, frames)))
        found = heads.postprocess_detections(logits.float(), deltas.float(), proposals, frames)
        chosen = [
            _choose(boxes, scores, labels, (h, w), self.person_label)
            for boxes, scores, labels in zip(*found, strict=True)
        ]
        boxes, presence = (torch.stack(column) for column in zip(*chosen, strict=True))
        # Masks and keypoints are computed for the chosen person alone, not for a hundred detections.
        rois = list(boxes[:, None])
        small = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, rois, frames)))
        pooled = heads.keypoint_roi_pool(keypoint_features, rois, frames)
        heatmaps = heads.keypoint_predictor(heads.keypoint_head(pooled))
        seen = (presence > 0)[:, None, None]
        height, width = crops.shape[1], crops.shape[2]
        mask = decode.paste(small[:, self.person_label, None].float().sigmoid(), boxes, (h, w), (height, width))
        in_crop = boxes * torch.tensor([width / w, height / h] * 2, device=boxes.device)
        keypoints = decode.decode_keypoints(heatmaps, in_crop) * seen
        masks = None
        if keypoint_masks:
            in_box = decode.keypoint_masks(heatmaps)
            masks = decode.paste(in_box, boxes, (h, w), (in_box.shape[2], in_box.shape[3])) * seen[..., None]
        return Estimate(mask[:, 0] * seen, keypoints, presence, masks)

    def load_torchvision(
        self,
        mask: Source | None = None,
        keypoints: Source | None = None,
        *,
        backbone: str | None = None,
        eps: float | None = None,
    ) -> None:
        """Load torchvision's COCO checkpoints, all or nothing.

        The two checkpoints were trained apart: the features of one backbone mean nothing to a head that was trained
        with the other one. ``backbone="both"`` therefore keeps two backbones, at about twice the cost, and is exact.
        With ``"mask"`` or ``"keypoints"`` one backbone serves all heads; the head of the other checkpoint is then a
        starting point for training, not an estimator, and a warning is logged.

        Args:
            mask: of maskrcnn_resnet50_fpn: a .pth or .safetensors file, or a state dict. Gives the mask head.
            keypoints: the same of keypointrcnn_resnet50_fpn. Gives the keypoint head.
            backbone: ``"mask"``, ``"keypoints"`` or ``"both"``: where the backbone comes from. Proposals and the box
                head come along with it, for "both" from ``mask``. A box head with the two classes background and
                person, as the keypoint checkpoint has it, is widened: its other classes never win. By default "both"
                when both checkpoints are given, otherwise the one that is given.
            eps: epsilon of the frozen batch norm; by default what the checkpoint was trained with, see
                :func:`mgran_fast.mra.weights.read_checkpoint`.

        Raises:
            CheckpointError: a checkpoint is missing, unreadable, or of another network; nothing was changed.
            ValueError: no checkpoint is given, or ``backbone`` does not go with those that are.
        """
        sources = {role: source for role, source in (("mask", mask), ("keypoints", keypoints)) if source is not None}
        if not sources:
            raise ValueError("give mask=, keypoints= or both: a checkpoint file of torchvision, or a state dict")
        backbone = backbone or ("both" if len(sources) == 2 else next(iter(sources)))
        if backbone not in ("mask", "keypoints", "both"):
            raise ValueError(f'backbone must be "mask", "keypoints" or "both", not {backbone!r}')
        if len(sources) < 2 and backbone not in sources:
            raise ValueError(
                f"backbone={backbone!r} needs the other checkpoint as well; only {next(iter(sources))}= is given"
            )
        read_in = {role: read_checkpoint(source, role) for role, source in sources.items()}
        main = "mask" if backbone == "both" else backbone
        mine = self.state_dict()
        expected = {key: value for key, value in mine.items() if not key.startswith("keypoint_backbone.")}
        state = part(read_in[main], ("backbone.", "rpn."), expected, main)
        box = {key: value for key, value in read_in[main].state.items() if key.startswith("roi_heads.box_")}
        if main == "keypoints":
            box = widened(box, self.num_classes, self.person_label)
        state |= part(type(read_in[main])(read_in[main].name, box, 0.0), ("roi_heads.box_",), expected, main)
        for role, prefix in (("mask", "roi_heads.mask_"), ("keypoints", "roi_heads.keypoint_")):
            if role in read_in:
                state |= part(read_in[role], (prefix,), expected, role)
        second = part(read_in["keypoints"], ("backbone.",), expected, "keypoints") if backbone == "both" else {}
        # Everything fits: from here on nothing fails, so the module is never left half loaded.
        self.load_state_dict({**mine, **state}, strict=True)
        _set_eps(self.backbone, read_in[main].eps if eps is None else eps)
        self.keypoint_backbone = None
        if second:
            self._add_keypoint_backbone(read_in["keypoints"].eps if eps is None else eps)
            self.load_state_dict({f"keypoint_{key}": value for key, value in second.items()}, strict=False)
        for role in ("mask", "keypoints"):
            if role not in sources:
                logger.warning("the %s head keeps the weights it had: no checkpoint of it was given", role)
            elif backbone not in ("both", role):
                logger.warning("the %s head was trained on another backbone: train it before you trust it", role)

    def _add_keypoint_backbone(self, eps: float) -> None:
        weight = next(self.parameters())
        second = _backbone().to(device=weight.device, dtype=weight.dtype)
        _set_eps(second, eps)
        self.keypoint_backbone = second.train(self.training)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and constructor arguments to a safetensors file, whole or not at all."""
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "arguments": {name: getattr(self, name) for name in ("mode", "size", "num_classes", "person_label")},
            "eps": _eps(self.backbone),
            "keypoint_eps": None if self.keypoint_backbone is None else _eps(self.keypoint_backbone),
        }
        write(path, self.state_dict(), metadata)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> MaskRCNN:
        """The module that :meth:`save` wrote, on the CPU and in eval mode.

        Raises:
            CheckpointError: there is no such file, or it is not a file of :meth:`save`.
        """
        tensors, metadata = read(path)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{os.fspath(path)} was not written by MaskRCNN.save; see load_torchvision")
        if metadata.get("version") != VERSION:
            version = metadata.get("version")
            raise CheckpointError(f"{os.fspath(path)} has format version {version}; this release reads {VERSION}")
        try:
            arguments = dict(metadata["arguments"])
            if isinstance(arguments["size"], list):
                arguments["size"] = tuple(arguments["size"])
            model = cls(**arguments)
            _set_eps(model.backbone, float(metadata["eps"]))
            if metadata["keypoint_eps"] is not None:
                model._add_keypoint_backbone(float(metadata["keypoint_eps"]))
            if dtypes := {t.dtype for t in tensors.values() if t.is_floating_point()}:
                model.to(dtypes.pop() if len(dtypes) == 1 else torch.float32)
            model.load_state_dict(tensors, strict=True)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{os.fspath(path)} does not describe a MaskRCNN: {reason}") from error
        return model


def _backbone() -> Any:
    return resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)


def _eps(backbone: nn.Module) -> float:
    return next(float(module.eps) for module in backbone.modules() if isinstance(module, FrozenBatchNorm2d))


def _set_eps(backbone: nn.Module, eps: float) -> None:
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = eps


def _checked_size(size: tuple[int, int] | int | None) -> tuple[int, int] | int | None:
    values = size if isinstance(size, tuple) else (size,)
    if size is not None and (
        len(values) != (2 if isinstance(size, tuple) else 1)
        or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
    ):
        raise ValueError(f"size must be None, the shorter side or (height, width) in positive pixels, not {size!r}")
    return size


def _check_crops(crops: torch.Tensor, device: torch.device) -> None:
    if not isinstance(crops, torch.Tensor) or crops.dtype != torch.uint8:
        kind = crops.dtype if isinstance(crops, torch.Tensor) else type(crops).__name__
        raise TypeError(f"crops must be a uint8 tensor [N, H, W, 3], not {kind}")
    if crops.dim() != 4 or crops.shape[3] != 3 or crops.shape[1] == 0 or crops.shape[2] == 0:
        raise ValueError(f"crops must be [N, H, W, 3] with H and W at least 1, not {list(crops.shape)}")
    if crops.device != device:
        raise ValueError(f"crops are on {crops.device}, the estimator is on {device}: move one of them")


def _whole(n: int, height: int, width: int, device: torch.device) -> torch.Tensor:
    """n times the box 0, 0, width, height: float32 [n, 4], made on the device."""
    return torch.stack([torch.full((n,), float(v), device=device) for v in (0, 0, width, height)], dim=1)


def _whole_crop(
    features: Mapping[str, torch.Tensor], height: int, width: int, pool: MultiScaleRoIAlign
) -> torch.Tensor:
    """RoIAlign of the box that is the whole crop, [N, C, o, o]: what ``pool`` answers, from one level in one call.

    The level follows the rule of feature pyramid networks (Lin et al. 2017, equation 1): floor(4 + log2(sqrt(h w) /
    224)), between 2 and 5. All boxes have one size, so it is known without looking at the device.
    """
    level = min(max(math.floor(4 + math.log2(math.sqrt(height * width) / 224) + 1e-6), 2), 5) - 2
    source = features[LEVELS[level]]
    index = torch.arange(len(source), device=source.device, dtype=torch.float32)
    rois = torch.cat((index[:, None], _whole(len(source), height, width, source.device)), dim=1)
    pooled: torch.Tensor = roi_align(source.float(), rois, pool.output_size, 1 / STRIDES[level], pool.sampling_ratio)
    return pooled.to(source.dtype)


def _choose(
    boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, frame: tuple[int, int], person: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The box [4] and score of the person that the crop is about; the whole frame and 0 when there is none."""
    boxes, scores = boxes[labels == person], scores[labels == person]
    height, width = frame
    if len(boxes) == 0:
        return boxes.new_tensor([0.0, 0.0, width, height]), scores.new_zeros(())
    lower = boxes.new_tensor([width / 4, height / 4])
    sides = (torch.minimum(boxes[:, 2:], 3 * lower) - torch.maximum(boxes[:, :2], lower)).clamp(min=0)
    share = sides.prod(dim=1) / (width * height / 4)
    best = (scores * share.clamp(min=1e-3)).argmax()
    return boxes[best], scores[best]
