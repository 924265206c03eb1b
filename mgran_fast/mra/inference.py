"""Mask R-CNN as inference runs it: weights folded, each convolution fused with what follows, nothing computed twice.

A :class:`Network` is made from a :class:`~mgran_fast.MaskRCNN` and answers what its modules answer, faster:

- frozen batch norm is folded into the convolutions, in float64: with g, b, m, v its weight, bias, mean and variance, a
  convolution's weight becomes w g / sqrt(v + eps), its bias b - m g / sqrt(v + eps);
- ReLU and the residual sum are done by the convolution itself where oneDNN runs it;
- only the levels of the pyramid that a box needs are computed, and only the person's mask;
- the layout is channels_last.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

from mgran_fast.mra.convolution import Convolution
from mgran_fast.mra.folding import fold, weights_state

#: The pyramid's levels and their strides; the fifth, "pool", is for proposals alone.
LEVELS, STRIDES = ("0", "1", "2", "3"), (4, 8, 16, 32)
POOL = "pool"

Features = dict[str, torch.Tensor]


def computes(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device has instructions for a dtype; a processor may also emulate one, slower than float32."""
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return True
    if dtype == torch.float16:
        return False  # few processors have them, and oneDNN has few kernels for them
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    # Elsewhere the answer is about instructions; on x86 it is about AVX-512, with which oneDNN emulates.
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def conv(module: nn.Conv2d, norm: nn.Module | None = None, *, relu: bool, dtype: torch.dtype) -> Convolution:
    """act(convolution + bias + residual) with the weights of a module, and of the frozen batch norm after it."""
    weight, bias = module.weight.detach(), module.bias
    if norm is not None:
        if not isinstance(norm, FrozenBatchNorm2d):
            raise TypeError(f"only frozen batch norm can be folded, not {type(norm).__name__}")
        weight, bias = fold(module, norm)
    return Convolution(module, weight, bias, activation="relu" if relu else "none", dtype=dtype)


class Block:
    """A residual block of a ResNet, basic or bottleneck."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        last = 3 if hasattr(block, "conv3") else 2
        self.layers = [
            conv(getattr(block, f"conv{i}"), getattr(block, f"bn{i}"), relu=True, dtype=dtype)
            for i in range(1, last + 1)
        ]
        self.shortcut = None if block.downsample is None else conv(*block.downsample, relu=False, dtype=dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        for layer in self.layers[:-1]:
            x = layer(x)
        y: torch.Tensor = self.layers[-1](x, shortcut)
        return y


class Pyramid:
    """ResNet and feature pyramid network: torchvision's ``BackboneWithFPN``."""

    def __init__(self, backbone: Any, dtype: torch.dtype) -> None:
        body, fpn = backbone.body, backbone.fpn
        self.stem = conv(body.conv1, body.bn1, relu=True, dtype=dtype)
        self.maxpool = body.maxpool
        self.stages = [[Block(block, dtype) for block in body[f"layer{i}"]] for i in range(1, 5)]
        self.inner = [conv(block[0], relu=False, dtype=dtype) for block in fpn.inner_blocks]
        self.outer = [conv(block[0], relu=False, dtype=dtype) for block in fpn.layer_blocks]

    def __call__(self, images: torch.Tensor, levels: Collection[str]) -> Features:
        """images [N, 3, h, w], h and w multiples of 32 -> the levels asked for, [N, C, h / stride, w / stride]."""
        x = self.maxpool(self.stem(images))
        found = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            found.append(x)
        deepest = len(found) - 1
        lowest = min(deepest if level == POOL else LEVELS.index(level) for level in levels)
        features: Features = {}
        above: torch.Tensor | None = None
        for i in range(deepest, lowest - 1, -1):
            if above is not None:
                above = functional.interpolate(above, size=found[i].shape[2:], mode="nearest")
            above = self.inner[i](found[i], above)
            if LEVELS[i] in levels or (i == deepest and POOL in levels):
                features[LEVELS[i]] = self.outer[i](above)
        if POOL in levels:
            features[POOL] = features[LEVELS[deepest]][:, :, ::2, ::2]
        return {level: features[level] for level in (*LEVELS, POOL) if level in levels}


class Network:
    """All of a :class:`~mgran_fast.MaskRCNN` that inference needs, computing in ``dtype``.

    Attributes:
        dtype: what convolutions compute in: the dtype of the weights where the device has instructions for it,
            otherwise float32 (from the same weights). Detection's boxes are float32 in every case.
    """

    def __init__(self, model: Any) -> None:
        weight = next(model.parameters())
        self.dtype = weight.dtype if computes(weight.dtype, weight.device) else torch.float32
        heads, person, dtype = model.roi_heads, model.person_label, self.dtype
        self.pyramid = Pyramid(model.backbone, dtype)
        second = model.keypoint_backbone
        self.keypoint_pyramid = None if second is None else Pyramid(second, dtype)
        self.mask_layers = [conv(m, relu=True, dtype=dtype) for m in _convolutions(heads.mask_head)]
        up, logits = heads.mask_predictor.conv5_mask, heads.mask_predictor.mask_fcn_logits
        # Both kernels are as large as the stride: every cell becomes 2 x 2 cells by one matrix product.
        self.mask_up = up.weight.detach().permute(2, 3, 1, 0).flatten(0, 2).to(dtype)  # [2 * 2 * D, C]
        self.mask_up_bias = up.bias.detach().repeat(4).to(dtype)
        self.mask_logit = logits.weight.detach()[person, :, 0, 0].to(dtype)
        self.mask_logit_bias: torch.Tensor = logits.bias.detach()[person].float()
        self.keypoint_layers = [conv(m, relu=True, dtype=dtype) for m in _convolutions(heads.keypoint_head)]
        self.keypoint_predictor = heads.keypoint_predictor
        last = heads.keypoint_predictor.kps_score_lowres
        self.keypoint_up, self.keypoint_up_bias = last.weight.detach().to(dtype), last.bias.detach().to(dtype)
        self.keypoint_up_geometry = (last.stride, last.padding)
        box, predictor, proposer = heads.box_head, heads.box_predictor, model.rpn.head
        self.box_layers = [_linear(layer, dtype) for layer in (box.fc6, box.fc7)]
        # What is small decides alone: in float32.
        self.box_scores, self.box_deltas = (
            _linear(layer, torch.float32) for layer in (predictor.cls_score, predictor.bbox_pred)
        )
        self.proposal_layers = [conv(m, relu=True, dtype=dtype) for m in _convolutions(proposer.conv)]
        self.objectness = conv(proposer.cls_logits, relu=False, dtype=torch.float32)
        self.proposal_deltas = conv(proposer.bbox_pred, relu=False, dtype=torch.float32)

    def features(self, images: torch.Tensor, levels: Collection[str]) -> tuple[Features, Features]:
        """The feature maps for masks and boxes, and those for keypoints (the same where the backbone is)."""
        features = self.pyramid(images, levels)
        if self.keypoint_pyramid is None:
            return features, features
        return features, self.keypoint_pyramid(images, [level for level in levels if level != POOL])

    def mask(self, pooled: torch.Tensor) -> torch.Tensor:
        """pooled [K, C, 14, 14] -> the person's logits, float32 [K, 28, 28]."""
        x = pooled
        for layer in self.mask_layers:
            x = layer(x)
        k, c, h, w = x.shape
        cells = functional.linear(x.permute(0, 2, 3, 1).reshape(-1, c), self.mask_up, self.mask_up_bias).relu_()
        logits = (cells.view(-1, len(self.mask_logit)) @ self.mask_logit).float() + self.mask_logit_bias
        cells_in_rows: torch.Tensor = logits.view(k, h, w, 2, 2).permute(0, 1, 3, 2, 4)
        return cells_in_rows.reshape(k, 2 * h, 2 * w)

    def heatmaps(self, pooled: torch.Tensor) -> torch.Tensor:
        """pooled [K, C, 14, 14] -> logits of 17 keypoints, float32 [K, 17, 56, 56]."""
        x = pooled
        for layer in self.keypoint_layers:
            x = layer(x)
        stride, padding = self.keypoint_up_geometry
        small = functional.conv_transpose2d(x, self.keypoint_up, self.keypoint_up_bias, stride, padding)
        scale = float(self.keypoint_predictor.up_scale)
        # In the standard layout: decoding reads one map after another.
        return functional.interpolate(small.float().contiguous(), scale_factor=scale, mode="bilinear")

    def box(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pooled [K, C, 7, 7] -> logits of the classes float32 [K, L], box deltas float32 [K, 4 L]."""
        x = pooled.flatten(1)
        for weight, bias in self.box_layers:
            x = functional.linear(x, weight, bias).relu_()
        x = x.float()
        return functional.linear(x, *self.box_scores), functional.linear(x, *self.box_deltas)

    def proposals(self, features: Features) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Of every level: objectness float32 [N, A, h, w] and box deltas float32 [N, 4 A, h, w]."""
        objectness, deltas = [], []
        for x in features.values():
            for layer in self.proposal_layers:
                x = layer(x)
            x = x.float()
            objectness.append(self.objectness(x))
            deltas.append(self.proposal_deltas(x))
        return objectness, deltas


class Prepared:
    """A model's :class:`Network`, made when first asked for and made anew when the weights have changed.

    A change is seen by the tensors' places and versions: training steps, ``load_state_dict`` and ``to`` are. Writing
    through ``parameter.data`` is not; ``model.train()`` drops the network as well. Copies start without one.
    """

    def __init__(self) -> None:
        self._network: Network | None = None
        self._key: tuple[Any, ...] = ()

    def network(self, model: nn.Module) -> Network:
        key = _key(model)
        if self._network is None or self._key != key:
            with torch.no_grad():
                self._network, self._key = Network(model), key
        return self._network

    def drop(self) -> None:
        self._network, self._key = None, ()

    def __getstate__(self) -> dict[str, Any]:
        return {"_network": None, "_key": ()}


def _key(model: nn.Module) -> tuple[Any, ...]:
    eps = tuple(module.eps for module in model.modules() if isinstance(module, FrozenBatchNorm2d))
    return (getattr(model, "person_label", None), eps, weights_state(model))


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def _linear(layer: nn.Linear, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)
