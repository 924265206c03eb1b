"""A convolution, its batch norm, the residual's addition and ReLU as one step of training, forward and backward.

What autograd keeps of such a step decides how much memory training takes. Here it is the convolution's result alone.
What follows from it without a convolution, the step's own result, is kept where it is cheap to keep, or, with
``recompute``, computed once more on the way back: one pass over memory, to the bit the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.autograd.function import once_differentiable

from mgran_fast.ma.cells import Cells, Index
from mgran_fast.ma.convolve import Geometry, as_image, as_rows, convolve, convolve_backward
from mgran_fast.ma.norm import SharedBatchNorm2d
from mgran_fast.ops.batchnorm import Sum, apply, backward, forward, update_running


class Recipe:
    """How a step's result is computed again from the convolution's."""

    def __init__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | Recipe | None,
        scale: torch.Tensor,
        shift: torch.Tensor,
        relu: bool,
        shortcut: Index | None,
    ) -> None:
        self.x, self.residual, self.scale, self.shift, self.relu = x, residual, scale, shift, relu
        self.shortcut = shortcut
        self._made: torch.Tensor | None = None

    def make(self) -> torch.Tensor:
        """The result. One with a residual is kept until :meth:`release`: the block after it needs it twice more."""
        if self._made is not None:
            return self._made
        made = apply(self.x, _taken(_value(self.residual), self.shortcut), self.scale, self.shift, self.relu)
        if self.residual is not None:
            self._made = made
        return made

    def release(self) -> None:
        """Forget the result: whoever came after this step has gone backward."""
        self._made = None


class Activation(NamedTuple):
    """A step's result for who comes next, and how to have it again; None where it is kept."""

    y: torch.Tensor
    recipe: Recipe | None = None


class Rows(NamedTuple):
    """What a step needs to know when its result is distinct cells.

    Attributes:
        cells: of its result.
        windows: the rows of its source that its convolution reads; None for each row its own.
        shortcut: the rows of the residual that it takes; None for each row its own.
        of_pixels: the source is images with a border of zeros; see :class:`mgran_fast.ma.convolve.Geometry`.
    """

    cells: Cells
    windows: Index | None = None
    shortcut: Index | None = None
    of_pixels: int = 0


class _Plan(NamedTuple):
    geometry: Geometry
    groups: int
    eps: float
    relu: bool
    recompute: bool
    all_sum: Sum | None
    source: Recipe | None
    residual: Recipe | None
    shortcut: Index | None
    counts: torch.Tensor | None
    inner: bool


class _Made:
    """What a step's forward pass tells besides its result."""

    recipe: Recipe | None
    mean: torch.Tensor
    var: torch.Tensor
    count: float | torch.Tensor


def conv_norm(
    source: Activation,
    conv: nn.Conv2d,
    norm: SharedBatchNorm2d,
    *,
    relu: bool,
    residual: Activation | None = None,
    recompute: bool = False,
    rows: Rows | None = None,
    inner: bool = False,
) -> Activation:
    """relu(norm(conv(source)) + residual), or without the ReLU, with the batch's statistics.

    Args:
        source, residual: what steps before this one gave.
        conv: without bias. norm: its running statistics are moved.
        recompute: keep no result of this step.
        rows: for a result of distinct cells.
        inner: the result goes to other steps alone, so that its gradient is nobody else's and may be overwritten.
    """
    assert isinstance(conv.padding, tuple)
    geometry = Geometry(conv.stride, conv.padding)
    if rows is not None:
        geometry = geometry._replace(windows=rows.windows, of_rows=not rows.of_pixels, of_pixels=rows.of_pixels)
    plan = _Plan(
        geometry, norm.groups, norm.eps, relu, recompute, norm.all_sum, source.recipe,
        None if residual is None else residual.recipe, None if rows is None else rows.shortcut,
        None if rows is None else rows.cells.counts, inner,
    )  # fmt: skip
    made = _Made()
    # Not in autocast's hands: which number format a step computes in is that of its source.
    with torch.autocast(source.y.device.type, enabled=False):
        y = _Step.apply(
            source.y, conv.weight, norm.weight, norm.bias, None if residual is None else residual.y, plan, made
        )
    mean, var, momentum = norm.running()
    update_running(mean, var, made.mean, made.var, made.count, momentum)
    return Activation(y, made.recipe)


def max_pool(source: Activation, pool: nn.MaxPool2d) -> Activation:
    """The stem's max pooling. With a recipe, backward finds again where the largest ones were."""
    if source.recipe is None:
        return Activation(pool(source.y))
    return Activation(_MaxPool.apply(source.y, source.recipe, pool))


def max_pool_of_rows(source: Activation, windows: Index, taps: int) -> Activation:
    """:func:`max_pool` of distinct cells, none of them negative: of each window's rows the largest."""
    return Activation(_RowsMaxPool.apply(source.y, source.recipe, windows, taps))


def spread(source: Activation, cells: Cells) -> Activation:
    """Distinct cells -> the images that they are cells of."""
    return Activation(_Spread.apply(source.y, cells))


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        gain: torch.Tensor,
        bias: torch.Tensor,
        residual: torch.Tensor | None,
        plan: _Plan,
        made: _Made,
    ) -> torch.Tensor:
        result = convolve(x, weight.to(x.dtype), plan.geometry)
        wide = torch.promote_types(x.dtype, torch.float32)
        normed = forward(
            result, gain.to(wide), bias.to(wide), _taken(residual, plan.shortcut), plan.groups, plan.eps, plan.relu,
            plan.all_sum, plan.counts,
        )  # fmt: skip
        made.mean, made.var, made.count = normed.mean, normed.var, normed.cells
        made.recipe = None
        if plan.recompute:
            before = plan.residual if plan.residual is not None else residual
            made.recipe = Recipe(result, before, normed.scale, normed.shift, plan.relu, plan.shortcut)
        # Backwards a residual matters to ReLU alone; one with a recipe is made again.
        kept = residual if plan.relu and plan.residual is None else None
        ctx.save_for_backward(
            result, None if plan.source is not None else x, kept, weight, normed.mean, normed.invstd, normed.scale,
            normed.shift,
        )  # fmt: skip
        ctx.plan, ctx.recipe, ctx.count = plan, made.recipe, normed.cells
        ctx.types = gain.dtype, bias.dtype
        return normed.y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        result, x, residual, weight, *normed = ctx.saved_tensors
        plan: _Plan | None = ctx.plan
        if plan is None:
            raise RuntimeError("the trunk's graph can be walked backward once: retain_graph keeps nothing of it")
        if ctx.recipe is not None:
            ctx.recipe.release()
        if plan.relu and plan.residual is not None:
            residual = plan.residual.make()
        grad, grad_residual, grad_gain, grad_bias = backward(
            grads[0], result, _taken(residual, plan.shortcut), tuple(normed), ctx.count, plan.relu,
            ctx.needs_input_grad[4], plan.all_sum, plan.counts, plan.inner,
        )  # fmt: skip
        if grad_residual is not None and plan.shortcut is not None:
            grad_residual = as_image(plan.shortcut.total(as_rows(grad_residual)))
        x = plan.source.make() if plan.source is not None else x
        grad_x, grad_weight = convolve_backward(grad, x, weight.to(x.dtype), plan.geometry, ctx.needs_input_grad[:2])
        # Nothing of a graph that was walked stays alive until the next one replaces it.
        ctx.plan = ctx.recipe = None
        return (
            grad_x,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            grad_gain.to(ctx.types[0]),
            grad_bias.to(ctx.types[1]),
            grad_residual,
            None,
            None,
        )


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, recipe: Recipe, pool: nn.MaxPool2d) -> torch.Tensor:
        ctx.recipe, ctx.arguments = recipe, (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
        y: torch.Tensor = F.max_pool2d(x, *ctx.arguments)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x = ctx.recipe.make()
        five = [[value, value] if isinstance(value, int) else list(value) for value in ctx.arguments[:4]]
        ceil = ctx.arguments[4]
        ctx.recipe = None
        _, indices = torch.ops.aten.max_pool2d_with_indices(x, *five, ceil)
        grad = torch.ops.aten.max_pool2d_with_indices_backward(grads[0], x, *five, ceil, indices)
        return grad, None, None


class _RowsMaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, recipe: Recipe | None, windows: Index, taps: int) -> torch.Tensor:
        ctx.recipe, ctx.windows, ctx.taps = recipe, windows, taps
        ctx.save_for_backward(None if recipe is not None else x)
        # What lies outside of the image is read as 0, which is no more than what lies inside.
        return as_image(_windows_of(x, windows, taps).amax(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        each = _windows_of(ctx.recipe.make() if ctx.recipe is not None else x, ctx.windows, ctx.taps)
        # The first of several that are as large, as torch's max pooling has it.
        place = each.max(1, keepdim=True).indices
        grad = torch.zeros_like(each).scatter_(1, place, as_rows(grads[0])[:, None])
        ctx.recipe = None
        return as_image(ctx.windows.total(grad.flatten(0, 1))), None, None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cells: Cells) -> torch.Tensor:
        ctx.cells = cells
        return cells.spread.gather(as_rows(x)).view(*cells.table.shape, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return as_image(ctx.cells.spread.total(as_rows(grads[0]))), None


def _windows_of(x: torch.Tensor, windows: Index, taps: int) -> torch.Tensor:
    """Rows -> [R, taps, C]."""
    rows = as_rows(x)
    return windows.gather(rows).view(-1, taps, rows.shape[1])


def _taken(residual: torch.Tensor | None, shortcut: Index | None) -> torch.Tensor | None:
    if residual is None or shortcut is None:
        return residual
    return as_image(shortcut.gather(as_rows(residual)))


def _value(residual: torch.Tensor | Recipe | None) -> torch.Tensor | None:
    return residual.make() if isinstance(residual, Recipe) else residual
