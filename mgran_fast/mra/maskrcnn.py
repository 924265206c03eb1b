"""Mask R-CNN as an estimator: one detector that gives the person's mask and the 17 keypoints.

Two ways to run it on crops. ``box`` takes the crop itself as the box of the person: no proposals, no suppression, one
pass of the backbone at the crop's own resolution and one region of interest a crop. ``detect`` is the whole detector,
which looks for the person inside the crop. On full frames, people share the pass of their frame, with boxes given
(:meth:`MaskRCNN.estimate_people`) or found (:meth:`MaskRCNN.detect`).

The modules are torchvision's and so are the key names: ``backbone.*``, ``rpn.*``, ``roi_heads.*``. They hold the
weights and train; inference runs on :class:`mgran_fast.mra.inference.Network`, which is made from them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN as Detector
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from mgran_fast.layouts import KEYPOINTS
from mgran_fast.mra import decode, detector_losses, loading, people, target
from mgran_fast.mra import frames as on_frames
from mgran_fast.mra.batches import joined, nobody
from mgran_fast.mra.detector_losses import Target
from mgran_fast.mra.estimate import Estimate, check_crops
from mgran_fast.mra.frames import People
from mgran_fast.mra.inference import LEVELS, POOL, STRIDES, Network, Prepared
from mgran_fast.mra.people import MEAN, STD
from mgran_fast.mra.weights import Source, find_checkpoints

__all__ = ["MEAN", "STD", "MaskRCNN", "People", "Target", "find_checkpoints"]

MODES = ("box", "detect")
#: Backbones by name, torchvision's; its detection checkpoints have resnet50.
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
# torchvision's own size for a detector: the shorter side.
SHORTER = 800
# A crop enlarged to 800 pixels takes about half a gigabyte: crops run this many at a time in detect mode.
CHUNK = 4


class MaskRCNN(nn.Module):
    """Joint mask and keypoint detector on ResNet-50-FPN; an :class:`~mgran_fast.mra.estimate.Estimator`.

    In ``box`` mode the mask is the person class's 28 x 28 probability resized to the crop, the keypoints come from 56 x
    56 heatmaps that span the crop, and ``presence`` is the box head's softmax probability that the whole crop is a
    person.

    In ``detect`` mode people are detected in each crop and the one that the crop is about is chosen by score, centre
    and size (:func:`mgran_fast.mra.target.rank`). Its mask is pasted into the crop, ``presence`` is its score. A crop
    without a detection has mask, keypoints and presence 0.

    Keypoint places and scores are those of :func:`mgran_fast.mra.decode.decode_keypoints`.

    Precision: ``.to(torch.bfloat16)`` halves the weights and, on devices with instructions for it, speeds up the
    convolutions. A processor without them computes in float32 from the bfloat16 weights, because emulating is several
    times slower; it takes the memory of one prepared copy. Boxes, softmaxes and everything returned are float32.

    Args:
        mode: ``"box"`` or ``"detect"``.
        size: what crops are resized to before the backbone: (height, width), or the length of the shorter side, the
            longer one at most 1333 pixels. None is the crop's own size in box mode and 800, torchvision's default, in
            detect mode. Results are always in pixels of the crop as given.
        num_classes: classes of the detector, background included: 91 for torchvision's COCO weights.
        person_label: which of them is the person.
        weights: the arguments of :meth:`load_torchvision` as a dict, ``{"mask": ..., "keypoints": ...}``; random
            weights for None. Nothing is ever downloaded.
        backbone: one of ``BACKBONES``; torchvision's checkpoints want resnet50.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong type.
        CheckpointError: ``weights`` do not fit.
    """

    #: Counts up when the same weights answer otherwise: what was computed before is then computed again.
    REVISION = 1

    def __init__(
        self,
        *,
        mode: str = "box",
        size: tuple[int, int] | int | None = None,
        num_classes: int = 91,
        person_label: int = 1,
        weights: Mapping[str, Any] | None = None,
        backbone: str = "resnet50",
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        if backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, not {backbone!r}")
        if not 0 < person_label < num_classes:
            raise ValueError(f"person_label must be between 1 and num_classes - 1 = {num_classes - 1}: {person_label}")
        self.mode, self.size = mode, _checked_size(size)
        self.num_classes, self.person_label, self.backbone_name = num_classes, person_label, backbone
        detector = Detector(_backbone(backbone), num_classes)
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
        self._prepared = Prepared()
        self.to(memory_format=torch.channels_last)
        if weights is not None:
            if not isinstance(weights, Mapping) or weights.keys() - {"mask", "keypoints", "backbone", "eps"}:
                raise TypeError('weights must be a dict with "mask" and/or "keypoints": a path or a state dict each')
            self.load_torchvision(**weights)
        self.eval()

    def train(self, mode: bool = True) -> MaskRCNN:
        """Set the mode; training drops the prepared copy of the weights."""
        if mode and hasattr(self, "_prepared"):
            self._prepared.drop()
        return super().train(mode)

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
        self._check_mode()
        check_crops(crops, next(self.parameters()).device)
        n, height, width = crops.shape[:3]
        # The dtype is that of the weights: no autocast on top.
        with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
            if n == 0:
                return nobody((height, width), (56, 56) if keypoint_masks else None, crops.device)
            network = self._prepared.network(self)
            if self.mode == "box":
                return self._estimate_in_box(network, crops, keypoint_masks)
            return joined([self._detect(network, chunk, keypoint_masks) for chunk in torch.split(crops, CHUNK)])

    def estimate_people(
        self,
        frames: torch.Tensor | Sequence[torch.Tensor],
        boxes: torch.Tensor | Sequence[torch.Tensor],
        *,
        size: tuple[int, int] = (256, 128),
        shorter: int | None = None,
        keypoint_masks: bool = False,
    ) -> People:
        """Masks and keypoints of people whose boxes are given, on full frames.

        The backbone runs once a frame (once for several frames of one size), however many people are on it; the heads
        run on all of them together. That pays where people are many: a frame of 1280 x 720 has as many pixels as 28
        crops of 256 x 128, and for a few people on it their crops are cheaper. ``mode`` and ``size`` of the
        constructor are about crops and play no part here.

        A box may reach out of its frame: there the mask is 0, and a keypoint that falls there has a score of 0. A box
        that is empty, is not finite or lies outside of its frame altogether keeps its place in the result, with mask,
        keypoints and presence 0 (``ops.crops`` makes a black crop of it).

        Args:
            frames: uint8 [H, W, 3], RGB; a batch [N, H, W, 3]; or a list of frames of any sizes.
            boxes: float32 [K, 4], x1, y1, x2, y2 in pixels of the frame; for a batch or a list of frames a list of
                such, one tensor a frame.
            size: (h, w) of the people's crops, in whose coordinates the answers are.
            shorter: what the shorter side of a frame is resized to, the longer one at most 1333; None leaves frames as
                they are. A person should be about as large as in training: 256 pixels high for crops.
            keypoint_masks: also return keypoint masks [K, 17, 56, 56], which span the crops.

        Returns:
            :class:`People`, in the order of frames, then boxes; ``scores`` is the presence.

        Raises:
            TypeError, ValueError: a frame, a tensor of boxes or their number is wrong.
            RuntimeError: the module is in training mode.
        """
        self._check_mode()
        with torch.no_grad(), torch.autocast(next(self.parameters()).device.type, enabled=False):
            return on_frames.estimate_people(
                self,
                self._prepared.network(self),
                frames,
                boxes,
                size=_checked_pair(size),
                shorter=_checked_shorter(shorter),
                keypoint_masks=keypoint_masks,
            )

    def detect(
        self,
        frames: torch.Tensor | Sequence[torch.Tensor],
        *,
        size: tuple[int, int] = (256, 128),
        shorter: int | None = SHORTER,
        score: float = 0.5,
        nms: float = 0.5,
        most: int = 100,
        keypoint_masks: bool = False,
    ) -> People:
        """Find the people on full frames, with their masks and keypoints.

        Args:
            frames: as for :meth:`estimate_people`.
            size: (h, w) of the people's crops, in whose coordinates the answers are.
            shorter: what the shorter side of a frame is resized to, the longer one at most 1333; None leaves frames as
                they are. Torchvision's weights were trained at 800.
            score: only a score above this counts as a person.
            nms: of two boxes that overlap by more than this (IoU) only the surer one stays.
            most: the largest number of people of a frame; the surest stay.
            keypoint_masks: also return keypoint masks [K, 17, 56, 56], which span the crops.

        Returns:
            :class:`People`, in the order of frames, the surest first; presence is the score.

        Raises:
            TypeError, ValueError: a frame or an argument is wrong.
            RuntimeError: the module is in training mode.
        """
        self._check_mode()
        with torch.no_grad(), torch.autocast(next(self.parameters()).device.type, enabled=False):
            return on_frames.detect(
                self,
                self._prepared.network(self),
                frames,
                size=_checked_pair(size),
                shorter=_checked_shorter(shorter),
                score=score,
                nms=nms,
                most=most,
                keypoint_masks=keypoint_masks,
            )

    def losses(
        self,
        images: torch.Tensor | Sequence[torch.Tensor],
        targets: Sequence[Target | Mapping[str, Any]],
        *,
        jitter: float = 0.1,
        background: int = 2,
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """The losses of one training step, to be added up; apart from MA, and in train mode only.

        In ``box`` mode the given boxes train the mask, keypoint and box heads: no proposals are made. Each edge of a
        box moves by up to ``jitter`` of the box's side, and random boxes that are nobody's (part of a person may be
        in them, as in a detector's background) teach presence. In ``detect`` mode everything is trained as torchvision
        trains it, proposals included.

        Args:
            images: uint8 [N, H, W, 3], RGB, or a list of uint8 [H, W, 3] of any sizes; taken as they are, not resized.
            targets: one a picture: a :class:`~mgran_fast.mra.detector_losses.Target`, or a dict of its fields.
            jitter: box mode: at least 0 and below 0.5.
            background: box mode: how many boxes of background are wanted a picture; there may be no room for them.
            generator: box mode: what draws the boxes, on the CPU; torch's own for None.

        Returns:
            Scalars, float32: loss_classifier, loss_box_reg, loss_mask (binary cross-entropy), loss_keypoint
            (cross-entropy over the cells), in detect mode loss_objectness and loss_rpn_box_reg as well. A loss that
            nobody has labels for is 0 and has gradients of 0.

        Raises:
            TypeError, ValueError: a picture or a target is wrong; the message names it.
            RuntimeError: the module is in eval mode.
        """
        if not self.training:
            raise RuntimeError("losses() is for training: call .train() first")
        return detector_losses.losses(self, images, targets, jitter=jitter, background=background, generator=generator)

    @torch.no_grad()
    def calibrate(self, images: torch.Tensor | Sequence[torch.Tensor]) -> None:
        """Set frozen batch norm's statistics from a batch: for training from random weights, once, before it starts.

        Frozen batch norm that starts from random weights normalises nothing, and activations grow from block to block.
        Here each layer takes mean and variance of what reaches it, so that training begins as with live batch norm.

        Args:
            images: as for :meth:`losses`; a few dozen crops are enough.
        """
        batch = detector_losses.batch(images, next(self.parameters()))
        for backbone in filter(None, (self.backbone, self.keypoint_backbone)):
            norms = [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm2d)]
            hooks = [norm.register_forward_pre_hook(_measure) for norm in norms]
            try:
                backbone(batch)
            finally:
                for hook in hooks:
                    hook.remove()

    def _check_mode(self) -> None:
        if self.training:
            raise RuntimeError("MaskRCNN estimates in eval mode only: call .eval(); it is trained apart from MGRAN")

    def _images(self, crops: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, tuple[int, int]]:
        """Normalised images [N, 3, h, w], h and w multiples of 32, and the height and width that the crop fills."""
        size = SHORTER if self.size is None and self.mode == "detect" else self.size
        working = people.working_size(crops.shape[1], crops.shape[2], size)
        return people.normalised(crops, working, dtype), working

    def _estimate_in_box(self, network: Network, crops: torch.Tensor, keypoint_masks: bool) -> Estimate:
        images, (h, w) = self._images(crops, network.dtype)
        size = (crops.shape[1], crops.shape[2])
        level = people.level_of(h, w)
        numbers = torch.arange(len(crops), device=crops.device)
        rois = people.as_rois(people.whole(len(crops), h, w, crops.device), numbers)
        answers = people.answer(network, network.features(images, (level,)), rois, self.person_label, level)
        return Estimate(
            people.resized(answers.mask, size),
            people.keypoints_in(answers.heatmaps, size),
            answers.presence,
            decode.keypoint_masks(answers.heatmaps) if keypoint_masks else None,
        )

    def _detect(self, network: Network, crops: torch.Tensor, keypoint_masks: bool) -> Estimate:
        heads: Any = self.roi_heads
        images, (h, w) = self._images(crops, network.dtype)
        features = network.features(images, (*LEVELS, POOL))
        found = people.find(
            self,
            network,
            images,
            (h, w),
            features[0],
            score=heads.score_thresh,
            nms=heads.nms_thresh,
            most=heads.detections_per_img,
        )
        n, height, width = crops.shape[:3]
        chosen = target.choose(found.boxes, found.scores, found.picture, n, (h, w))
        seen = chosen >= 0
        # Row -1 of what was found is this one, for crops without anybody: the whole crop, with a score of 0.
        boxes = torch.cat((found.boxes, people.whole(1, h, w, crops.device)))[chosen]
        presence = torch.cat((found.scores, found.scores.new_zeros(1)))[chosen]
        # Masks and keypoints are computed for the chosen person alone, not for a hundred detections.
        rois = people.as_rois(boxes, torch.arange(n, device=crops.device))
        answers = people.answer(network, features, rois, self.person_label)
        mask = decode.paste(answers.mask[:, None], boxes, (h, w), (height, width))[:, 0] * seen[:, None, None]
        in_crop = boxes * boxes.new_tensor([width / w, height / h] * 2)
        keypoints = decode.decode_keypoints(answers.heatmaps, in_crop) * seen[:, None, None]
        masks = None
        if keypoint_masks:
            in_box = decode.keypoint_masks(answers.heatmaps)
            masks = decode.paste(in_box, boxes, (h, w), (in_box.shape[2], in_box.shape[3]))
            masks = masks * seen[:, None, None, None]
        return Estimate(mask, keypoints, presence, masks)

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
        loading.load_torchvision(self, mask, keypoints, backbone, eps)

    def add_keypoint_backbone(self, eps: float) -> None:
        """Give the keypoints a backbone of their own, with random weights and this epsilon of batch norm."""
        weight = next(self.parameters())
        second = _backbone(self.backbone_name).to(weight).to(memory_format=torch.channels_last)
        loading.set_eps(second, eps)
        self.keypoint_backbone = second.train(self.training)

    @property
    def arguments(self) -> dict[str, Any]:
        """What changes the answers beside the weights, as plain values: constructor arguments and epsilons."""
        described = loading.description(self)
        return {**described.pop("arguments"), **described}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and constructor arguments to a safetensors file, whole or not at all."""
        loading.save(self, path)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> MaskRCNN:
        """The module that :meth:`save` wrote, on the CPU and in eval mode.

        Raises:
            CheckpointError: there is no such file, or it is not a file of :meth:`save`.
        """
        return loading.from_file(cls, path)


def _backbone(name: str) -> Any:
    return resnet_fpn_backbone(backbone_name=name, weights=None, trainable_layers=5)


def _checked_size(size: tuple[int, int] | int | None) -> tuple[int, int] | int | None:
    values = size if isinstance(size, tuple) else (size,)
    if size is not None and (
        len(values) != (2 if isinstance(size, tuple) else 1)
        or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
    ):
        raise ValueError(f"size must be None, the shorter side or (height, width) in positive pixels, not {size!r}")
    return size


def _checked_pair(size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(size, tuple) or len(size) != 2:
        raise ValueError(f"size must be (height, width) of the crops in pixels, not {size!r}")
    _checked_size(size)
    return size


def _checked_shorter(shorter: int | None) -> int | None:
    if shorter is not None and (isinstance(shorter, bool) or not isinstance(shorter, int) or shorter < 1):
        raise ValueError(f"shorter must be None or a positive number of pixels, not {shorter!r}")
    return shorter


def _measure(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    x: Any = inputs[0].float()
    layer: Any = norm
    layer.running_mean.copy_(x.mean(dim=(0, 2, 3)))
    layer.running_var.copy_(x.var(dim=(0, 2, 3), correction=0))
