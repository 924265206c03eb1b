"""The trunk: one ResNet whose weights all aligned inputs share, run over all of them in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

from mgran_fast.errors import CheckpointError
from mgran_fast.ma.cells import Cells, Sight
from mgran_fast.ma.fused import Activation, Rows, conv_norm, max_pool, max_pool_of_rows, spread
from mgran_fast.ma.norm import STATISTICS, SharedBatchNorm2d

#: Trunks by name; each is torchvision's network of that name without its classifier, with the same keys.
TRUNKS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")

# From this share of distinct cells on at its end, all cells of a stage are computed: convolutions of images are faster.
_MANY = 0.8


class Trunk(nn.Module):
    """torchvision's ResNet up to its last feature map, with the same parameter names.

    Args:
        name: one of :data:`TRUNKS`.
        last_stride: stride of the last stage: 1 (the default, as ReID uses it: a feature map twice as fine)
            or 2 (torchvision's).
        inputs: P, the number of inputs of a person in a batch, for ``per_input`` statistics.
        statistics: joint or per_input (:class:`SharedBatchNorm2d`).

    In training each convolution goes together with its batch norm, residual and ReLU (:mod:`mgran_fast.ma.fused`);
    hooks on modules inside of the trunk do not run then. Everywhere else, and under torch.compile, its modules are
    called one by one.

    Attributes:
        recompute: in training keep nothing but the convolutions' results, which halves the memory of activations, and
            compute what lies between them once more on the way back. The gradients are the same to the bit.
        distinct: in training on a CPU, with joint statistics, compute cells that see the same only once, where that
            leaves out enough (:mod:`mgran_fast.ma.cells`). The gradients are the same up to rounding. Images that want
            a gradient of their own are computed as a whole.
    """

    def __init__(
        self, name: str = "resnet50", *, last_stride: int = 1, inputs: int = 1, statistics: str = "joint"
    ) -> None:
        super().__init__()
        if name not in TRUNKS:
            raise ValueError(f"trunk must be one of {', '.join(TRUNKS)}, not {name!r}")
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride must be 1 or 2, not {last_stride!r}")
        if statistics not in STATISTICS:
            raise ValueError(f"statistics must be one of {', '.join(STATISTICS)}, not {statistics!r}")
        resnet = getattr(torchvision.models, name)(weights=None, norm_layer=SharedBatchNorm2d, zero_init_residual=True)
        #: D, the number of channels of the last feature map.
        self.dim: int = resnet.fc.in_features
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (getattr(resnet, f"layer{i}") for i in (1, 2, 3, 4))
        if last_stride == 1:
            block = resnet.layer4[0]
            block.downsample[0].stride = (1, 1)
            # A bottleneck strides in its 3x3 convolution, a basic block in its first.
            (block.conv2 if hasattr(block, "conv3") else block.conv1).stride = (1, 1)
        for module in self.modules():
            if isinstance(module, SharedBatchNorm2d):
                module.inputs, module.statistics = inputs, statistics
        self.recompute = False
        self.distinct = True
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images [B, 3, H, W] -> features [B, D, H/16, W/16] (H/32 with last_stride 2)."""
        if self._fuses():
            return self._train_step(images)
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features: torch.Tensor = x
        return features

    def _fuses(self) -> bool:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        # Frozen statistics are nothing to fuse.
        return all(module.training for module in self.modules() if isinstance(module, SharedBatchNorm2d))

    def _train_step(self, images: torch.Tensor) -> torch.Tensor:
        device = images.device.type
        if torch.is_autocast_enabled(device):
            images = images.to(torch.get_autocast_dtype(device))
        recompute = self.recompute
        x, sight, cells = self._stem(images)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            ahead: list[Sight] = []
            if sight is not None and cells is not None:
                ahead = _ahead(sight, layer)
                sight = ahead[-1]
                if sight.share > _MANY:
                    x, sight, cells = spread(x, cells), None, None
            for block in layer:
                # A stage's last result is kept: making it again would need all that came before it.
                recompute_result = recompute and block is not layer[-1]
                if cells is None:
                    x = _block(x, block, recompute, recompute_result, block is not self.layer4[-1])
                else:
                    seen, ahead = ahead[: _spatial(block)], ahead[_spatial(block) :]
                    x, cells = _block_of_rows(x, block, recompute, recompute_result, cells, seen)
        return x.y if cells is None else spread(x, cells).y

    def _stem(self, images: torch.Tensor) -> tuple[Activation, Sight | None, Cells | None]:
        """The stem's result; and what its cells see, and the distinct ones, where they alone are computed."""
        sight = self._sight(images)
        after = None if sight is None else sight.through(7, 2, 3)
        pooled = None if after is None else after.through(3, 2, 1)
        if after is None or pooled is None or _ahead(pooled, self.layer1)[-1].share > _MANY:
            x = _step(Activation(images), self.conv1, self.bn1, self.recompute)
            return max_pool(x, self.maxpool), None, None
        bordered = F.pad(images, (3, 3, 3, 3)).contiguous(memory_format=torch.channels_last)
        before, cells = after.cells(), pooled.cells()
        windows = before.pixel_windows(bordered.shape[2], bordered.shape[3], 7, 2)
        x = _step(Activation(bordered), self.conv1, self.bn1, self.recompute, rows=Rows(before, windows, of_pixels=7))
        return max_pool_of_rows(x, cells.windows(before, 3, 2, 1), 9), pooled, cells

    def _sight(self, images: torch.Tensor) -> Sight | None:
        """What the pixels show; None where all cells are to be computed."""
        norm = self.bn1
        assert isinstance(norm, SharedBatchNorm2d)
        if not self.distinct or images.device.type != "cpu" or norm.groups > 1:
            return None
        # Equal cells share a gradient: that of each image's own pixels is not known.
        return None if images.requires_grad else Sight.of(images, norm.inputs)

    def load_torchvision(self, state: Mapping[str, Any]) -> None:
        """Load a torchvision ResNet state dict; its classifier (``fc.*``) is left out.

        Raises CheckpointError when a key is missing, unknown or of another shape.
        """
        own = self.state_dict()
        for key, value in state.items():
            if not isinstance(key, str) or not isinstance(value, torch.Tensor):
                raise CheckpointError(f"not a state dict: {key!r} is a {type(value).__name__}, not a named tensor")
        given = {key: value for key, value in state.items() if not key.startswith("fc.")}
        # Checkpoints from before torch 0.4.1 lack these counters, and nothing depends on them.
        missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
        unknown = [key for key in given if key not in own]
        other = [key for key in given if key in own and own[key].shape != given[key].shape]
        for problem, keys in (("lacks", missing), ("has the unknown key", unknown), ("has another shape in", other)):
            if keys:
                raise CheckpointError(f"not weights of this trunk: the checkpoint {problem} {keys[0]} ({len(keys)} so)")
        self.load_state_dict(given, strict=False)


def _step(
    x: Activation,
    conv: nn.Module,
    norm: nn.Module,
    recompute: bool,
    *,
    relu: bool = True,
    residual: Activation | None = None,
    rows: Rows | None = None,
    inner: bool = True,
) -> Activation:
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, SharedBatchNorm2d)
    return conv_norm(x, conv, norm, relu=relu, residual=residual, recompute=recompute, rows=rows, inner=inner)


def _block(x: Activation, block: Any, recompute: bool, recompute_result: bool, inner: bool) -> Activation:
    """A residual block of torchvision's, basic or bottleneck."""
    shortcut = x
    if block.downsample is not None:
        shortcut = _step(x, block.downsample[0], block.downsample[1], recompute, relu=False)
    y = _step(x, block.conv1, block.bn1, recompute)
    if isinstance(block, Bottleneck):
        y = _step(y, block.conv2, block.bn2, recompute)
        return _step(y, block.conv3, block.bn3, recompute_result, residual=shortcut, inner=inner)
    return _step(y, block.conv2, block.bn2, recompute_result, residual=shortcut, inner=inner)


def _block_of_rows(
    x: Activation, block: Any, recompute: bool, recompute_result: bool, cells: Cells, seen: list[Sight]
) -> tuple[Activation, Cells]:
    """:func:`_block` for distinct cells; ``seen``: what is seen after each of its 3x3 convolutions."""
    stride = _stride(block)
    # A 1x1 convolution with a stride reads a part of what the 3x3 ones do.
    after = [cells, *(sight.cells() for sight in seen)]
    last = after[-1]
    shortcut, taken = x, last.windows(cells, 1, stride)
    if block.downsample is not None:
        rows = Rows(last, taken)
        shortcut = _step(x, block.downsample[0], block.downsample[1], recompute, relu=False, rows=rows)
    ends = Rows(last, shortcut=taken if block.downsample is None else None)
    if isinstance(block, Bottleneck):
        y = _step(x, block.conv1, block.bn1, recompute, rows=Rows(cells))
        y = _step(y, block.conv2, block.bn2, recompute, rows=Rows(last, last.windows(cells, 3, stride, 1)))
        y = _step(y, block.conv3, block.bn3, recompute_result, residual=shortcut, rows=ends)
        return y, last
    middle = after[1]
    y = _step(x, block.conv1, block.bn1, recompute, rows=Rows(middle, middle.windows(cells, 3, stride, 1)))
    ends = ends._replace(windows=last.windows(middle, 3, 1, 1))
    return _step(y, block.conv2, block.bn2, recompute_result, residual=shortcut, rows=ends), last


def _ahead(sight: Sight, layer: nn.Module) -> list[Sight]:
    """What is seen after each 3x3 convolution of a stage: what cells see changes in them alone."""
    found = [sight]
    for block in layer.children():
        found += [found[-1].through(3, _stride(block), 1)]
        found += [found[-1].through(3, 1, 1)] * (_spatial(block) - 1)
    return found[1:]


def _spatial(block: Any) -> int:
    """How many 3x3 convolutions a block has."""
    return 1 if isinstance(block, Bottleneck) else 2


def _stride(block: Any) -> int:
    """By how much a block's 3x3 convolutions thin the grid out."""
    conv = block.conv2 if isinstance(block, Bottleneck) else block.conv1
    stride: int = conv.stride[0]
    return stride
