"""MGRAN = MRA + MA: a module from pictures of people to embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import nn

from mgran_fast import layouts, ops
from mgran_fast.aspect import same_aspect
from mgran_fast.layouts import Layout
from mgran_fast.ma import MA, MAOutput, concatenate
from mgran_fast.mra.estimate import Estimate, Estimator
from mgran_fast.mra.regionnet import RegionNet
from mgran_fast.ops import checks
from mgran_fast.ops.inputs import channels

SHAPES = ("full",)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Encoding(NamedTuple):
    """N people in eval mode: embeddings float32 [N, P, D] and visible bool [N, P]; ``vector`` is ranked."""

    embeddings: torch.Tensor
    visible: torch.Tensor

    @property
    def vector(self) -> torch.Tensor:
        """float32 [N, P * D], unit norm (:func:`mgran_fast.ma.concatenate`)."""
        return concatenate(self.embeddings, self.visible)


class MGRAN(nn.Module):
    """Mask-Guided Region Attention Network for person re-identification (Zhou & Yu, PAKDD 2020).

    A crop's mask is binarized, its foreground shared out among body regions, and the whole person and each
    region become P = 1 + R aligned inputs of one ResNet. Each input's features are pooled under its own region.

    In eval mode the model returns float32 [N, P * D] of unit norm (D = 2048 for ResNet-50); in train mode an
    :class:`~mgran_fast.ma.MAOutput` for the losses. Nothing back-propagates into the estimator of masks.

    Args:
        num_classes: number of training identities; 0 for a model that is only ever evaluated.
        layout: body layout: region (head, upper body, lower body), part, box, none, or one of your own.
        shape: "full": every input is a full frame with its background at 0, as published.
        mra: estimator of masks and keypoints, used for crops that come without. None is the
            :class:`mgran_fast.RegionNet` that comes with the package, loaded when it is first needed; it is no
            submodule then, so parameters and state dict are MA's alone.
        size: (H, W) that crops are resized to.
        trunk: name of the shared trunk (:data:`mgran_fast.ma.TRUNKS`).
        last_stride: stride of the trunk's last stage.
        statistics: of batch norm in training, over the batch of all inputs (joint) or each input apart
            (per_input, exactly what P calls of one shared network do).
        pooling: mean, max or gem.
        scale: what pixels (0..255) are multiplied by: 1/256, as published.
        mean, std: (scale * pixel - mean) / std, one number a channel; 0 and 1 when not given, as published.
            Weights pretrained on ImageNet want (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225).
        threshold: masks are binarized here: 0.5, as published.
        keypoint_threshold: lowest score of a usable keypoint.
    """

    def __init__(
        self,
        num_classes: int = 0,
        layout: str | Layout = "region",
        shape: str = "full",
        mra: Estimator | None = None,
        *,
        size: tuple[int, int] = (256, 128),
        trunk: str = "resnet50",
        last_stride: int = 1,
        statistics: str = "joint",
        pooling: str = "mean",
        scale: float = 1 / 256,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        threshold: float = 0.5,
        keypoint_threshold: float = 0.3,
    ) -> None:
        super().__init__()
        if shape not in SHAPES:
            raise ValueError(f"shape must be {' or '.join(map(repr, SHAPES))}, not {shape!r}")
        if num_classes < 0:
            raise ValueError(f"num_classes must not be negative, not {num_classes}")
        self.layout, self.shape = layouts.get(layout), shape
        self.num_classes, self.size = num_classes, (int(size[0]), int(size[1]))
        self.scale, self.mean, self.std = scale, channels("mean", mean, 0.0), channels("std", std, 1.0)
        self.threshold, self.keypoint_threshold = threshold, keypoint_threshold
        self.ma = MA(
            self.layout,
            num_classes,
            trunk=trunk,
            last_stride=last_stride,
            statistics=statistics,
            pooling=pooling,
        )
        self.mra = mra
        # Past nn.Module's registration, see the docstring.
        self.__dict__["_default_mra"] = None
        self.train(self.training)  # which puts the estimator in eval mode
        self._options = {
            "trunk": trunk,
            "last_stride": last_stride,
            "statistics": statistics,
            "pooling": pooling,
        }

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments (without ``mra``) as plain values: what a checkpoint keeps."""
        return {
            "num_classes": self.num_classes,
            "layout": self.layout.name,
            "shape": self.shape,
            "size": list(self.size),
            **self._options,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "threshold": self.threshold,
            "keypoint_threshold": self.keypoint_threshold,
        }

    @property
    def dim(self) -> int:
        """P * D, the length of an embedding."""
        return len(self.layout.inputs) * self.ma.trunk.dim

    def forward(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None = None,
        keypoints: torch.Tensor | None = None,
        region_map: torch.Tensor | None = None,
    ) -> torch.Tensor | MAOutput:
        """Embed people.

        Args:
            crops: uint8 [N, H, W, 3], RGB, or float [N, 3, H, W] in [0, 1] (taken to the nearest of 256 steps).
                Any size; other sizes than ``self.size`` are resized bilinearly.
            masks: [N, h, w], float32 in [0, 1] or uint8: then the estimator does not run.
            keypoints: float32 [N, 17, 3], x and y in pixels of ``crops``; without them a person's regions are
                fixed bands of the mask's box.
            region_map: uint8 [N, H', W'] made beforehand: then neither masks nor keypoints are wanted.

        Returns:
            In eval mode float32 [N, P * D], unit norm; in train mode :class:`~mgran_fast.ma.MAOutput`.
        """
        output = self._run(crops, masks, keypoints, region_map)
        return output if self.training else Encoding(output.embeddings, output.visible).vector

    def encode(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None = None,
        keypoints: torch.Tensor | None = None,
        region_map: torch.Tensor | None = None,
    ) -> Encoding:
        """As calling the model in eval mode, with each input's embedding and visibility apart.

        Raises RuntimeError in train mode, where a batch would change the running statistics.
        """
        if self.training:
            raise RuntimeError("encode() is for eval mode: call model.eval() first")
        output = self._run(crops, masks, keypoints, region_map)
        return Encoding(output.embeddings, output.visible)

    def inputs(self, crops: torch.Tensor, region_map: torch.Tensor) -> torch.Tensor:
        """What the trunk sees: crops uint8 [N, H, W, 3] of ``self.size`` -> [N, P, 3, H, W]."""
        return ops.inputs(crops, region_map, self.scale, self.mean, self.std, regions=self.layout.regions)

    @torch.no_grad()
    def estimate(self, crops: torch.Tensor) -> Estimate:
        """What the estimator says of crops, uint8 [N, H, W, 3]: ``mra``, or the package's RegionNet where it is None.

        Raises CheckpointError when the package's weights are missing from the installation.
        """
        if self.mra is not None:
            return self.mra(crops)
        default: RegionNet | None = self.__dict__["_default_mra"]
        if default is None:
            default = self.__dict__["_default_mra"] = RegionNet.from_pretrained()
        # Not moved with the model, for it is no submodule.
        estimate: Estimate = default.to(crops.device)(crops)
        return estimate

    @torch.no_grad()
    def regions(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None = None,
        keypoints: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """MRA: the region map uint8 [N, H, W] at ``self.size``, from given masks or from the estimator.

        Args: as for :meth:`forward`, crops as uint8.
        """
        masks, keypoints = self._found(crops, masks, keypoints)
        return ops.regions(
            masks, keypoints, self.size, self.layout, self.threshold, keypoint_threshold=self.keypoint_threshold
        )

    @torch.no_grad()
    def _found(
        self, crops: torch.Tensor, masks: torch.Tensor | None, keypoints: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks, given or estimated, and keypoints in pixels of ``self.size``: what the region map is made from."""
        people, height, width = crops.shape[:3]
        if masks is not None:
            checks.tensor("masks", masks, (people, None, None), (torch.float32, torch.uint8))
        if keypoints is not None:
            checks.tensor("keypoints", keypoints, (people, len(layouts.KEYPOINTS), 3), FLOATS)
        if masks is None and not self.layout.whole:
            if keypoints is not None:
                raise ValueError("keypoints without masks: pass masks as well, or neither")
            estimate = self.estimate(crops)
            masks, keypoints = estimate.mask, estimate.keypoints
        if masks is None or self.layout.whole:
            masks = torch.ones((people, 1, 1), device=crops.device)
        elif people and 0 not in masks.shape and not same_aspect((masks.shape[1], masks.shape[2]), (height, width)):
            raise ValueError(
                f"masks are {masks.shape[1]} x {masks.shape[2]} and crops {height} x {width}: another aspect"
                " ratio; a mask must show the same frame as its crop, at any resolution"
            )
        if keypoints is None:
            keypoints = torch.zeros((people, len(layouts.KEYPOINTS), 3), device=crops.device)
        else:
            x, y, score = keypoints.float().unbind(-1)
            keypoints = torch.stack([x * (self.size[1] / width), y * (self.size[0] / height), score], -1)
        return masks, keypoints

    def train(self, mode: bool = True) -> MGRAN:
        """Set the mode of MA. The estimator is trained on its own, and always runs in eval mode here."""
        super().train(mode)
        if isinstance(self.mra, nn.Module):
            self.mra.eval()
        return self

    def save(self, path: str | PathLike[str], *, notes: Mapping[str, str] | None = None) -> None:
        """Write MA's weights and the configuration to a safetensors file, atomically (not the estimator)."""
        from mgran_fast.weights.checkpoint import save

        save(self, path, notes=notes)

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        *,
        mra: Estimator | None = None,
        layout: str | None = None,
        num_classes: int | None = None,
    ) -> MGRAN:
        """Read what :meth:`save` wrote. Raises CheckpointError, also when it has another layout or class count."""
        from mgran_fast.weights.checkpoint import load

        return load(path, mra=mra, layout=layout, num_classes=num_classes)

    def _run(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None,
        keypoints: torch.Tensor | None,
        region_map: torch.Tensor | None,
    ) -> MAOutput:
        crops = _as_bytes(crops)
        if 0 in crops.shape[1:3]:
            raise ValueError(f"crops have no pixels: they are {crops.shape[1]} x {crops.shape[2]}")
        if region_map is None:
            masks, keypoints = self._found(crops, masks, keypoints)
            inputs, region_map = ops.align(
                _resize(crops, self.size),
                masks,
                keypoints,
                self.layout,
                self.threshold,
                self.scale,
                self.mean,
                self.std,
                keypoint_threshold=self.keypoint_threshold,
            )
            assert region_map is not None
        else:
            if masks is not None or keypoints is not None:
                raise ValueError("region_map together with masks or keypoints: pass one or the other")
            checks.tensor("region_map", region_map, (len(crops), None, None), (torch.uint8,))
            if tuple(region_map.shape[1:]) != self.size:
                # Nearest: a region map holds names, which have no mean.
                region_map = _resize_map(region_map, self.size)
            inputs = self.inputs(_resize(crops, self.size), region_map)
        output: MAOutput = self.ma(inputs, region_map)
        return output


def _as_bytes(crops: torch.Tensor) -> torch.Tensor:
    """Crops as uint8 [N, H, W, 3]. Raises TypeError or ValueError for anything that is no crop."""
    if not isinstance(crops, torch.Tensor):
        raise TypeError(f"crops must be a torch.Tensor, not {type(crops).__name__}")
    if crops.dtype == torch.uint8:
        if crops.ndim != 4 or crops.shape[3] != 3:
            raise ValueError(f"uint8 crops must have the shape [N, H, W, 3], not {list(crops.shape)}")
        return crops
    if not crops.is_floating_point():
        raise TypeError(f"crops must be uint8 [N, H, W, 3] or float [N, 3, H, W], not {crops.dtype}")
    if crops.ndim != 4 or crops.shape[1] != 3:
        raise ValueError(f"float crops must have the shape [N, 3, H, W], not {list(crops.shape)}")
    # On a GPU the check would wait for the device; there a wrong range shows as a saturated picture.
    if crops.device.type == "cpu" and crops.numel():
        low, high = (float(v) for v in crops.detach().aminmax())
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(
                f"float crops must be in [0, 1], these are in [{low:.3g}, {high:.3g}]: undo the normalisation"
                " (the model normalises by itself), or pass uint8 [N, H, W, 3]"
            )
    return (crops.detach().permute(0, 2, 3, 1) * 255.0).round().clamp(0, 255).to(torch.uint8)


def _resize(crops: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> uint8 [N, *size, 3], bilinear, antialiased when it shrinks."""
    if tuple(crops.shape[1:3]) == size or len(crops) == 0:
        return crops if len(crops) else crops.new_zeros((0, *size, 3))
    resized = nn.functional.interpolate(
        crops.permute(0, 3, 1, 2).float(), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _resize_map(region_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [N, H, W] -> uint8 [N, *size], nearest."""
    if len(region_map) == 0:
        return region_map.new_zeros((0, *size))
    return nn.functional.interpolate(region_map[:, None], size=size, mode="nearest-exact")[:, 0]
