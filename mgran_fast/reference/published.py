"""The published system itself, as plain code: the yardstick for speed and for agreement.

MGRAN as Zhou and Yu describe it (PAKDD 2020): Mask R-CNN for the mask, keypoints from the same family of detector, a
region map, four calls of one shared ResNet-50 and a vector for the person and for each region. It runs the way the
parts come off the shelf: two stock torchvision detectors at their default input size, one crop after another, and one
call of the trunk for each input. Slow on purpose: nothing here is batched, shared or fused that need not be.

What the publication leaves open (pooling, normalisation, the choice among detections) follows this library's model, so
that the two can be compared number by number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import ResNet, resnet50
from torchvision.models.detection import keypointrcnn_resnet50_fpn, maskrcnn_resnet50_fpn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from mgran_fast import layouts
from mgran_fast.layouts import KEYPOINTS, Layout
from mgran_fast.mra.estimate import Estimate

# The person in torchvision's label lists, both of COCO's 91 classes and of the keypoint detector's two.
PERSON = 1
# A keypoint's score is the probability of the cells at most this far from the peak: 7 x 7 cells.
REACH = 3


class PublishedMGRAN(nn.Module):
    """Crops in, embeddings out, the plain way.

    Args:
        trunk: a module that answers [N, 3, H, W] with [N, D, h, w]; of a torchvision ResNet the layers before the
            pooling are taken. None builds torchvision's ResNet-50 with random weights, D = 2048.
        mask_detector: a torchvision detector with masks; None builds maskrcnn_resnet50_fpn with random weights.
        keypoint_detector: a torchvision detector with keypoints; None builds keypointrcnn_resnet50_fpn likewise.
        layout: the body layout, with R regions.
        scale: what pixels (0 to 255) are multiplied by for the trunk.
        size: height and width of the trunk's inputs; crops of another size are resized to it first.
        min_size: the shorter side that the built detectors enlarge a crop to; 800 is torchvision's default.
        last_stride: stride of the built trunk's last stage: 1 keeps a map twice as fine, 2 is ResNet as published.
        regions: the region map of masks and keypoints, called like :func:`mgran_fast.reference.regions.regions`,
            which it is by default.
    """

    def __init__(
        self,
        trunk: nn.Module | None = None,
        mask_detector: nn.Module | None = None,
        keypoint_detector: nn.Module | None = None,
        layout: str | Layout = "region",
        scale: float = 1 / 256,
        size: tuple[int, int] = (256, 128),
        min_size: int = 800,
        *,
        last_stride: int = 1,
        regions: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride must be 1 or 2, not {last_stride!r}")
        if trunk is None:
            built: Any = resnet50(weights=None)
            if last_stride == 1:
                built.layer4[0].conv2.stride = (1, 1)
                built.layer4[0].downsample[0].stride = (1, 1)
            trunk = built
        if isinstance(trunk, ResNet):
            body = [(name, module) for name, module in trunk.named_children() if name not in ("avgpool", "fc")]
            trunk = nn.Sequential()
            for name, module in body:
                trunk.add_module(name, module)
        self.trunk = trunk
        stock: dict[str, Any] = {"weights": None, "weights_backbone": None, "min_size": min_size}
        self.mask_detector = maskrcnn_resnet50_fpn(**stock) if mask_detector is None else mask_detector
        self.keypoint_detector = keypointrcnn_resnet50_fpn(**stock) if keypoint_detector is None else keypoint_detector
        self.layout = layouts.get(layout)
        self.scale, self.size = scale, size
        self._regions = regions
        self.eval()

    def train(self, mode: bool = True) -> PublishedMGRAN:
        """Switch the trunk; the detectors are trained apart and always estimate."""
        super().train(mode)
        self.mask_detector.eval()
        self.keypoint_detector.eval()
        return self

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Embeddings float32 [N, (1 + R) * D] of norm 1, of crops uint8 [N, H, W, 3]."""
        crops = self._resized(crops)
        estimate = self.estimate(crops)
        region_map = self.region_map(estimate)
        return self.embed(self.inputs(crops, region_map), region_map)

    @torch.no_grad()
    def estimate(self, crops: torch.Tensor) -> Estimate:
        """Masks and keypoints in pixels of the crops, uint8 [N, H, W, 3], one crop after another.

        Of each detector's answer the person with the highest score is taken, in the mask and in the keypoint detector
        apart. Keypoints are torchvision's own; the score of one is the softmax probability of the 7 x 7 cells around
        the peak of its heatmap (for a detector without torchvision's keypoint head: the logistic function of its
        ``keypoints_scores``). Keypoint masks [N, 17, H, W] are the heatmaps divided by their maximum and pasted into
        the crop; None for a detector without that head. ``presence`` is the mask detection's score.
        A crop without a person has zeros.
        """
        _check(crops)
        n, height, width = crops.shape[:3]
        mask = torch.zeros(n, height, width, device=crops.device)
        keypoints = torch.zeros(n, len(KEYPOINTS), 3, device=crops.device)
        presence = torch.zeros(n, device=crops.device)
        stock_head = _keypoint_predictor(self.keypoint_detector) is not None
        masks = torch.zeros(n, len(KEYPOINTS), height, width, device=crops.device) if stock_head else None
        for i in range(n):
            image = crops[i].permute(2, 0, 1).float() / 255
            found = self.mask_detector([image])[0]
            best = _best_person(found)
            if best is not None:
                mask[i] = found["masks"][best, 0]
                presence[i] = found["scores"][best]
            found, heatmaps = self._keypoints(image)
            best = _best_person(found)
            if best is None:
                continue
            keypoints[i, :, :2] = found["keypoints"][best, :, :2]
            if heatmaps is None or masks is None:
                keypoints[i, :, 2] = found["keypoints_scores"][best].sigmoid()
                continue
            for j in range(len(KEYPOINTS)):
                probability = heatmaps[best, j].flatten().softmax(dim=0).view(heatmaps.shape[2:])
                keypoints[i, j, 2] = _around_peak(probability)
                small, box = (probability / probability.max())[None, None], found["boxes"][best][None]
                masks[i, j] = paste_masks_in_image(small, box, (height, width))[0, 0]
        return Estimate(mask, keypoints, presence, masks)

    def _keypoints(self, image: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """The keypoint detector's answer, and the heatmaps [detections, 17, 56, 56] that it throws away."""
        predictor = _keypoint_predictor(self.keypoint_detector)
        if predictor is None:
            return self.keypoint_detector([image])[0], None
        kept: list[torch.Tensor] = []
        hook = predictor.register_forward_hook(lambda module, args, output: kept.append(output))
        try:
            found = self.keypoint_detector([image])[0]
        finally:
            hook.remove()
        return found, kept[0]

    def region_map(self, estimate: Estimate) -> torch.Tensor:
        """Region map uint8 [N, *size] of masks and keypoints."""
        if self._regions is not None:
            return self._regions(estimate.mask, estimate.keypoints, size=self.size, layout=self.layout)
        from mgran_fast.reference.regions import regions

        return regions(estimate.mask, estimate.keypoints, size=self.size, layout=self.layout)

    def inputs(self, crops: torch.Tensor, region_map: torch.Tensor) -> list[torch.Tensor]:
        """1 + R images float32 [N, 3, *size]: scaled pixels where the input's region is, exactly 0 elsewhere.

        The first is the whole person, all regions together; the whole crop where the map is empty.
        """
        pixels = self._resized(crops).permute(0, 3, 1, 2).float() * self.scale
        return [pixels * place[:, None] for place in self._places(region_map)]

    def embed(self, inputs: list[torch.Tensor], region_map: torch.Tensor) -> torch.Tensor:
        """Embeddings float32 [N, (1 + R) * D] of norm 1.

        One call of the trunk for each input. Its map is averaged over the input's region: a cell counts by the share
        of its pixels that lie in the region. Each vector is divided by its norm; a region without a pixel is a zero
        vector; the whole is divided by the square root of the number of the others.
        """
        vectors, visible = [], []
        for images, place in zip(inputs, self._places(region_map), strict=True):
            seen = place.flatten(1).any(dim=1)
            features = self.trunk(images)
            if not len(images):
                vectors.append(features.new_zeros(0, features.shape[1]))
                visible.append(seen)
                continue
            share = functional.adaptive_avg_pool2d(place[:, None].to(features), features.shape[2:])
            total = share.sum(dim=(2, 3)).clamp(min=1e-12)
            pooled = (features * share).sum(dim=(2, 3)) / total
            vectors.append(functional.normalize(pooled.float(), dim=1) * seen[:, None])
            visible.append(seen)
        count = torch.stack(visible).sum(dim=0).clamp(min=1)
        return torch.cat(vectors, dim=1) / count[:, None].sqrt()

    def _places(self, region_map: torch.Tensor) -> list[torch.Tensor]:
        """Where each of the 1 + R inputs is, bool [N, H, W] each."""
        person = region_map > 0
        empty = ~person.flatten(1).any(dim=1)
        regions = [region_map == 1 + i for i in range(self.layout.regions)]
        return [person | empty[:, None, None], *regions]

    def _resized(self, crops: torch.Tensor) -> torch.Tensor:
        _check(crops)
        if tuple(crops.shape[1:3]) == tuple(self.size) or len(crops) == 0:
            return crops.new_zeros(0, *self.size, 3) if len(crops) == 0 else crops
        planes = crops.permute(0, 3, 1, 2).float()
        planes = functional.interpolate(planes, self.size, mode="bilinear", align_corners=False, antialias=True)
        return planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _check(crops: torch.Tensor) -> None:
    if not isinstance(crops, torch.Tensor) or crops.dtype != torch.uint8:
        kind = crops.dtype if isinstance(crops, torch.Tensor) else type(crops).__name__
        raise TypeError(f"crops must be a uint8 tensor [N, H, W, 3], not {kind}")
    if crops.dim() != 4 or crops.shape[3] != 3 or 0 in crops.shape[1:]:
        raise ValueError(f"crops must be [N, H, W, 3] with H and W at least 1, not {list(crops.shape)}")


def _keypoint_predictor(detector: nn.Module) -> nn.Module | None:
    predictor = getattr(getattr(detector, "roi_heads", None), "keypoint_predictor", None)
    return predictor if isinstance(predictor, nn.Module) else None


def _best_person(found: dict[str, torch.Tensor]) -> int | None:
    """Index of the person with the highest score; None without one."""
    people = (found["labels"] == PERSON).nonzero()[:, 0]
    return int(people[found["scores"][people].argmax()]) if len(people) else None


def _around_peak(probability: torch.Tensor) -> torch.Tensor:
    """The probability of the cells around the highest one of a map [h, w]."""
    row, column = divmod(int(probability.argmax()), probability.shape[1])
    rows = slice(max(row - REACH, 0), row + REACH + 1)
    return probability[rows, max(column - REACH, 0) : column + REACH + 1].sum().clamp(0, 1)
