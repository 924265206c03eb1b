"""MRA's half of the way: from pictures of people to crops of one size and their region map."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from mgran_fast import layouts, ops
from mgran_fast.aspect import same_aspect
from mgran_fast.layouts import Layout
from mgran_fast.mra.estimate import Estimate, Estimator
from mgran_fast.mra.regionnet import RegionNet
from mgran_fast.ops import checks

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Packaged:
    """The :class:`mgran_fast.RegionNet` of the package as an estimator, loaded at the first call."""

    def __init__(self) -> None:
        self._network: RegionNet | None = None

    def __call__(self, crops: torch.Tensor) -> Estimate:
        """Raises CheckpointError when the package's weights are missing from the installation."""
        if self._network is None:
            self._network = RegionNet.from_pretrained()
        # It is no submodule of anything, so nobody else moves it.
        estimate: Estimate = self._network.to(crops.device)(crops)
        return estimate


class Alignment:
    """What turns crops, masks and keypoints into a region map.

    Args:
        layout: body layout.
        size: (H, W) that crops are resized to.
        threshold: masks are binarized here.
        keypoint_threshold: lowest score of a usable keypoint.
        mra: estimator of masks and keypoints for crops that come without; None for the package's own.
    """

    def __init__(
        self,
        layout: str | Layout,
        size: tuple[int, int],
        threshold: float = 0.5,
        keypoint_threshold: float = 0.3,
        *,
        mra: Estimator | None = None,
    ) -> None:
        self.layout, self.size = layouts.get(layout), size
        self.threshold, self.keypoint_threshold = threshold, keypoint_threshold
        self.mra = cast(Estimator, Packaged()) if mra is None else mra

    def region_map(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None = None,
        keypoints: torch.Tensor | None = None,
        region_map: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Crops uint8 [N, H, W, 3] and their region map uint8 [N, H, W], both of ``size``.

        Arguments and errors as for :meth:`mgran_fast.MGRAN.forward`.
        """
        crops = as_bytes(crops)
        if region_map is None:
            masks, keypoints = self.found(crops, masks, keypoints)
            return resize(crops, self.size), self.regions(masks, keypoints)
        if masks is not None or keypoints is not None:
            raise ValueError("region_map together with masks or keypoints: pass one or the other")
        checks.tensor("region_map", region_map, (crops.shape[0], None, None), (torch.uint8,))
        if tuple(region_map.shape[1:]) != self.size:
            # Nearest: a region map holds names, which have no mean.
            region_map = resize_map(region_map, self.size)
        return resize(crops, self.size), region_map

    def regions(self, masks: torch.Tensor, keypoints: torch.Tensor) -> torch.Tensor:
        """The region map of what :meth:`found` answers."""
        return ops.regions(
            masks, keypoints, self.size, self.layout, self.threshold, keypoint_threshold=self.keypoint_threshold
        )

    @torch.no_grad()
    def found(
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
            estimate = self.mra(crops)
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


def as_bytes(crops: torch.Tensor) -> torch.Tensor:
    """Crops as uint8 [N, H, W, 3]. Raises TypeError or ValueError for anything that is no crop."""
    if not isinstance(crops, torch.Tensor):
        raise TypeError(f"crops must be a torch.Tensor, not {type(crops).__name__}")
    if crops.dtype == torch.uint8:
        if crops.ndim != 4 or crops.shape[3] != 3:
            raise ValueError(f"uint8 crops must have the shape [N, H, W, 3], not {list(crops.shape)}")
        return _with_pixels(crops)
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
    return _with_pixels((crops.detach().permute(0, 2, 3, 1) * 255.0).round().clamp(0, 255).to(torch.uint8))


def _with_pixels(crops: torch.Tensor) -> torch.Tensor:
    if 0 in crops.shape[1:3]:
        raise ValueError(f"crops have no pixels: they are {crops.shape[1]} x {crops.shape[2]}")
    return crops


def resize(crops: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> uint8 [N, *size, 3], bilinear, antialiased when it shrinks."""
    if tuple(crops.shape[1:3]) == size:
        return crops
    if crops.shape[0] == 0:
        return crops.new_zeros((0, *size, 3))
    resized = nn.functional.interpolate(
        crops.permute(0, 3, 1, 2).float(), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def resize_map(region_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [N, H, W] -> uint8 [N, *size], nearest."""
    if region_map.shape[0] == 0:
        return region_map.new_zeros((0, *size))
    return nn.functional.interpolate(region_map[:, None], size=size, mode="nearest-exact")[:, 0]
