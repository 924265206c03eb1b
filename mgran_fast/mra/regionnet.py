"""RegionNet: a small one-shot network from a crop to its mask, 17 keypoints and presence; the default MRA.

A MobileNetV2 trunk (Sandler et al. 2018; torchvision's, up to stride 32) sees the crop at one working size. More of
its blocks follow at stride 32, where layers cost little, to see the body as a whole: which leg is the left one. A
feature pyramid (Lin et al. 2017) of depthwise separable convolutions brings that context back up to stride 4, where
the heatmaps of the keypoints are read, and to stride 2, where the mask is. Presence and the keypoints' visibility come
from the pooled top. Crops of other sizes and aspect ratios are resized to the working size and back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import mobilenet_v2
from torchvision.models.mobilenetv2 import InvertedResidual

from mgran_fast.errors import CheckpointError
from mgran_fast.layouts import KEYPOINT_FLIP, KEYPOINTS
from mgran_fast.mra import decode
from mgran_fast.mra.batches import joined, nobody
from mgran_fast.mra.estimate import Estimate, check_crops
from mgran_fast.mra.folding import Folded
from mgran_fast.mra.weights import read_own, undescribed, write

__all__ = ["RegionNet"]

VERSION = 2
PRETRAINED = "regionnet.safetensors"
# ImageNet's mean and standard deviation, of pixels in [0, 1]: what the trunk was first trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Blocks of torchvision's mobilenet_v2().features after which the resolution halves, and their channels.
TAPS, CHANNELS = (1, 3, 6, 13, 16), (16, 24, 32, 96, 160)
_BLOCKS = TAPS[-1] + 1
# Cells. Of sigmas from 1 to 4, measured on crops that were not trained on, about the best; docs/regionnet.md.
BLUR = 1.5
# A crop of this many pixels or more takes its own turn, so that masks of large pictures do not add up.
_CHUNK_PIXELS = 1 << 24


class Maps(NamedTuple):
    """What the network says of N crops at its working size (h, w).

    Attributes:
        mask: [N, 1, h/2, w/2] logits.
        heatmaps: [N, 17, h/4, w/4] logits; the softmax over the cells of a map is where the keypoint is.
        visibility: [N, 17] logits.
        presence: [N] logits.
    """

    mask: torch.Tensor
    heatmaps: torch.Tensor
    visibility: torch.Tensor
    presence: torch.Tensor


class RegionNet(nn.Module):
    """One-shot estimator of masks and keypoints; an :class:`~mgran_fast.mra.estimate.Estimator`.

    Args:
        size: (height, width) in pixels of the working size, multiples of 32.
        channels: of the feature pyramid.
        context: inverted residual blocks at stride 32 after the trunk's own.
        flip: average the logits with those for the mirrored crop: better, at twice the cost; docs/regionnet.md has
            the figures.

    Raises:
        ValueError: an argument is out of range.
    """

    #: What the metadata of a file says.
    FORMAT = "mgran_fast.RegionNet"
    #: Counts up when the same weights answer otherwise: what was computed before is then computed again.
    REVISION = 1

    def __init__(
        self,
        *,
        size: tuple[int, int] = (192, 96),
        channels: int = 64,
        context: int = 3,
        flip: bool = False,
    ) -> None:
        super().__init__()
        if len(size) != 2 or any(not isinstance(side, int) or side < 32 or side % 32 for side in size):
            raise ValueError(f"size must be (height, width) in multiples of 32 pixels, not {size!r}")
        if channels < 8:
            raise ValueError(f"channels must be 8 or more, not {channels}")
        if context < 0:
            raise ValueError(f"context must be 0 or more, not {context}")
        self.size, self.channels, self.context, self.flip = (size[0], size[1]), channels, context, flip
        self.network = Network(channels, context)
        self._folded = Folded(self.network)
        self.eval()

    def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        """Masks and keypoints of crops; no gradient is recorded.

        Args:
            crops: uint8 [N, H, W, 3], RGB, any size and strides, on the module's device; N may be 0.
            keypoint_masks: also return keypoint masks [N, 17, h, w] at a quarter of the working size, as
                :func:`mgran_fast.mra.decode.keypoint_masks` defines them.

        Raises:
            TypeError, ValueError: ``crops`` is not such a tensor.
            RuntimeError: the module is in training mode.
        """
        if self.training:
            raise RuntimeError("RegionNet estimates in eval mode only: call .eval(); it is trained apart from MGRAN")
        check_crops(crops, next(self.parameters()).device)
        people = max(1, _CHUNK_PIXELS // max(1, crops.shape[1] * crops.shape[2]))
        # The dtype is that of the weights: autocast would round the probabilities that places are read from.
        with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
            parts = [self._estimate(part, keypoint_masks) for part in torch.split(crops, people)]
        return parts[0] if len(parts) == 1 else joined(parts)

    def _estimate(self, crops: torch.Tensor, keypoint_masks: bool) -> Estimate:
        n, height, width = crops.shape[:3]
        if n == 0:
            quarter = (self.size[0] // 4, self.size[1] // 4)
            return nobody((height, width), quarter if keypoint_masks else None, crops.device)
        weight = next(self.parameters())
        maps = self._maps(resized(crops, self.size), weight.dtype)
        logits = functional.interpolate(maps.mask, size=(height, width), mode="bilinear", align_corners=False)
        box = torch.tensor([0.0, 0.0, width, height]).to(crops.device, non_blocking=True).expand(n, 4)
        keypoints = decode.decode_keypoints(decode.blurred(maps.heatmaps, BLUR), box)
        keypoints[..., 2] = maps.visibility.sigmoid()
        return Estimate(
            logits[:, 0].sigmoid(),
            keypoints,
            maps.presence.sigmoid(),
            decode.keypoint_masks(maps.heatmaps) if keypoint_masks else None,
        )

    def _maps(self, crops: torch.Tensor, dtype: torch.dtype) -> Maps:
        """Logits in float32 of crops uint8 [N, h, w, 3] of the working size."""
        pixels = normalised(crops, dtype)
        network = self._folded()
        maps = Maps(*(part.float() for part in network(pixels)))
        if not self.flip:
            return maps
        return mean_of_flips(maps, Maps(*(part.float() for part in network(pixels.flip(3)))))

    def logits(self, crops: torch.Tensor) -> Maps:
        """What training needs: logits with gradients of crops uint8 or float [N, h, w, 3] in 0 to 255, working size."""
        maps: Maps = self.network(normalised(crops, next(self.parameters()).dtype))
        return maps

    def load_imagenet(self, state: dict[str, torch.Tensor]) -> None:
        """Start the trunk from ImageNet weights of a MobileNetV2.

        Args:
            state: a state dict of a MobileNetV2 of width 1. The names of its modules may be torchvision's or those
                of another implementation with the same order of layers: tensors are taken in order, and every shape
                must fit. What follows the layers that the trunk has is left out.

        Raises:
            CheckpointError: a tensor is missing or of another shape; nothing was changed.
        """
        mine = self.network.trunk.state_dict()
        given = [value for key, value in state.items() if not key.startswith("classifier.")]
        wanted = {key: value for key, value in mine.items() if not key.endswith("num_batches_tracked")}
        given = [value for value in given if value.dim() > 0]
        if len(given) < len(wanted):
            raise CheckpointError(f"{len(given)} tensors are not a MobileNetV2; {len(wanted)} or more are expected")
        fitted = dict(mine)
        for (key, own), value in zip(wanted.items(), given, strict=False):
            if own.shape != value.shape:
                shapes = f"{list(value.shape)} where {list(own.shape)} is expected"
                raise CheckpointError(f"the weights are not those of a MobileNetV2 of width 1: {key} is {shapes}")
            fitted[key] = value
        self.network.trunk.load_state_dict(fitted)

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as plain values: what a file of :meth:`save` keeps."""
        return {
            "size": list(self.size),
            "channels": self.channels,
            "context": self.context,
            "flip": self.flip,
        }

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> RegionNet:
        """An untrained network with these :attr:`arguments`."""
        return cls(**{**arguments, "size": tuple(arguments["size"])})

    def save(self, path: str | os.PathLike[str], *, half: bool = False) -> None:
        """Write weights and constructor arguments to a safetensors file, whole or not at all.

        Args:
            half: floating point weights as float16, half the bytes; they are float32 again when read.

        Raises:
            ValueError: ``half``, and a number is no finite float16; nothing is written.
        """
        tensors = {key: value for key, value in self.state_dict().items() if not key.endswith("num_batches_tracked")}
        if half:
            tensors = {key: value.half() for key, value in tensors.items()}
            if wrong := [key for key, value in tensors.items() if not value.isfinite().all()]:
                raise ValueError(f"{wrong[0]} has a number that is no finite float16: save with half=False")
        write(path, tensors, {"format": self.FORMAT, "version": VERSION, "arguments": self.arguments})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, flip: bool | None = None) -> RegionNet:
        """The module that :meth:`save` wrote: float32, on the CPU, in eval mode.

        Args:
            flip: in place of what the file says.

        Raises:
            CheckpointError: there is no such file, or it is not a file of :meth:`save`.
        """
        tensors, metadata = read_own(path, "RegionNet", VERSION)
        # The weights are overwritten below: no reason to spend the caller's random numbers on them.
        with undescribed(path, "RegionNet"), torch.random.fork_rng(devices=()):
            model = cls.from_arguments({**metadata["arguments"], **({} if flip is None else {"flip": flip})})
            own = model.state_dict()
            counters = {key: own[key] for key in own if key.endswith("num_batches_tracked")}
            model.load_state_dict({**counters, **{key: value.float() for key, value in tensors.items()}})
        return model

    @classmethod
    def from_pretrained(cls, *, flip: bool | None = None) -> RegionNet:
        """The network with the weights that come with the package; nothing is downloaded. See docs/regionnet.md.

        Args:
            flip: as for :meth:`from_file`.
        """
        with resources.as_file(resources.files("mgran_fast.mra") / PRETRAINED) as path:
            return cls.from_file(path, flip=flip)


class Network(nn.Module):
    """Pixels [N, 3, h, w], normalised -> :class:`Maps`."""

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        # No weights: nothing is ever downloaded.
        self.trunk = mobilenet_v2(weights=None).features[:_BLOCKS]
        top = CHANNELS[-1]
        blocks = [InvertedResidual(top, top, stride=1, expand_ratio=6) for _ in range(context)]
        for block in blocks:
            # Begins as the identity, so that it may be put behind a trunk that is trained already.
            norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
            nn.init.zeros_(norms[-1].weight)
        self.context = nn.Sequential(*blocks)
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, channels, 1, bias=False), nn.BatchNorm2d(channels)) for c in CHANNELS[1:]
        )
        self.merges = nn.ModuleList(separable(channels, channels) for _ in CHANNELS[1:])
        self.keypoint_head = nn.Sequential(
            separable(channels, channels, 5), separable(channels, channels, 5), nn.Conv2d(channels, len(KEYPOINTS), 1)
        )
        fine = channels // 2
        self.detail = nn.Sequential(nn.Conv2d(CHANNELS[0], fine, 1, bias=False), nn.BatchNorm2d(fine))
        self.coarse = nn.Sequential(nn.Conv2d(channels, fine, 1, bias=False), nn.BatchNorm2d(fine))
        self.mask_head = nn.Sequential(separable(fine, fine), separable(fine, fine), nn.Conv2d(fine, 1, 1))
        self.summary = nn.Sequential(
            nn.Conv2d(CHANNELS[-1], 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU6(inplace=True)
        )
        self.facts = nn.Linear(256, len(KEYPOINTS) + 1)

    def forward(self, pixels: torch.Tensor) -> Maps:
        taps = []
        x = pixels
        for place, block in enumerate(self.trunk):
            x = block(x)
            if place in TAPS:
                taps.append(x)
        taps[-1] = self.context(taps[-1])
        facts = self.facts(self.summary(taps[-1]).mean((2, 3)))
        up: torch.Tensor | None = None
        for tap, lateral, merge in zip(reversed(taps[1:]), reversed(self.laterals), reversed(self.merges), strict=True):
            level = lateral(tap)
            if up is not None:
                level = level + functional.interpolate(up, scale_factor=2.0, mode="nearest")
            up = merge(level)
        assert up is not None
        raised = functional.interpolate(self.coarse(up), scale_factor=2.0, mode="bilinear", align_corners=False)
        mask = self.mask_head(functional.relu6(raised + self.detail(taps[0])))
        return Maps(mask, self.keypoint_head(up), facts[:, :-1], facts[:, -1])


def separable(inside: int, outside: int, kernel: int = 3) -> nn.Sequential:
    """A depthwise and a pointwise convolution, each with batch norm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inside, inside, kernel, padding=kernel // 2, groups=inside, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU6(inplace=True),
        nn.Conv2d(inside, outside, 1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU6(inplace=True),
    )


def resized(crops: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> uint8 [N, *size, 3], bilinear, antialiased where it shrinks."""
    if tuple(crops.shape[1:3]) == size:
        return crops
    pixels = crops.permute(0, 3, 1, 2)
    if crops.device.type != "cpu":
        # torch resizes bytes on the CPU alone.
        pixels = pixels.float()
    pixels = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    if pixels.dtype != torch.uint8:
        pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1)


def normalised(crops: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Pixels [N, h, w, 3] in 0 to 255 -> [N, 3, h, w] channels_last, less ImageNet's mean, by its deviation."""
    scale = torch.tensor([1 / (255 * s) for s in STD]).to(crops.device, non_blocking=True)
    shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)]).to(crops.device, non_blocking=True)
    return torch.addcmul(shift, crops.float(), scale).to(dtype).permute(0, 3, 1, 2)


def mean_of_flips(maps: Maps, mirrored: Maps) -> Maps:
    """The mean of the answer to a crop and of that to its mirror image, which is turned back first."""
    swap = list(KEYPOINT_FLIP)
    return Maps(
        (maps.mask + mirrored.mask.flip(3)) / 2,
        (maps.heatmaps + mirrored.heatmaps[:, swap].flip(3)) / 2,
        (maps.visibility + mirrored.visibility[:, swap]) / 2,
        (maps.presence + mirrored.presence) / 2,
    )
