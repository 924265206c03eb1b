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

from mgran_fast.ma.norm import SharedBatchNorm2d
from mgran_fast.ops.batchnorm import Sum, apply, backward, forward, update_running

# From this many channels on, on either side, a 1x1 convolution is faster as a product of matrices (bfloat16, oneDNN).
_AS_PRODUCT = 2048


class Recipe:
    """How a step's result is computed again from the convolution's."""

    def __init__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | Recipe | None,
        scale: torch.Tensor,
        shift: torch.Tensor,
        relu: bool,
    ) -> None:
        self.x, self.residual, self.scale, self.shift, self.relu = x, residual, scale, shift, relu
        self._made: torch.Tensor | None = None

    def make(self) -> torch.Tensor:
        """The result. One with a residual is kept until :meth:`release`: the block after it needs it twice more."""
        if self._made is not None:
            return self._made
        made = apply(self.x, _value(self.residual), self.scale, self.shift, self.relu)
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


class _Plan(NamedTuple):
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int
    eps: float
    relu: bool
    recompute: bool
    all_sum: Sum | None
    source: Recipe | None
    residual: Recipe | None


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
) -> Activation:
    """relu(norm(conv(source)) + residual), or without the ReLU, with the batch's statistics.

    Args:
        source, residual: what steps before this one gave.
        conv: without bias. norm: its running statistics are moved.
        recompute: keep no result of this step.
    """
    assert isinstance(conv.padding, tuple)
    plan = _Plan(
        conv.stride, conv.padding, norm.groups, norm.eps, relu, recompute, norm.all_sum, source.recipe,
        None if residual is None else residual.recipe,
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
        result = _convolve(x, weight.to(x.dtype), plan)
        wide = torch.promote_types(x.dtype, torch.float32)
        normed = forward(result, gain.to(wide), bias.to(wide), residual, plan.groups, plan.eps, plan.relu, plan.all_sum)
        made.mean, made.var, made.count = normed.mean, normed.var, normed.cells
        made.recipe = None
        if plan.recompute:
            before = plan.residual if plan.residual is not None else residual
            made.recipe = Recipe(result, before, normed.scale, normed.shift, plan.relu)
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
        plan: _Plan = ctx.plan
        if ctx.recipe is not None:
            ctx.recipe.release()
        if plan.relu and plan.residual is not None:
            residual = plan.residual.make()
        grad, grad_residual, grad_gain, grad_bias = backward(
            grads[0], result, residual, tuple(normed), ctx.count, plan.relu, ctx.needs_input_grad[4], plan.all_sum
        )
        x = plan.source.make() if plan.source is not None else x
        grad_x, grad_weight = _convolve_backward(grad, x, weight.to(x.dtype), plan, ctx.needs_input_grad[:2])
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


def _value(residual: torch.Tensor | Recipe | None) -> torch.Tensor | None:
    return residual.make() if isinstance(residual, Recipe) else residual


def _is_product(x: torch.Tensor, weight: torch.Tensor, plan: _Plan) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and tuple(weight.shape[2:]) == (1, 1)
        and set(plan.stride) == {1}
        and max(weight.shape[:2]) >= _AS_PRODUCT
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _rows(x: torch.Tensor) -> torch.Tensor:
    """channels_last [B, C, h, w] -> the same memory as [B h w, C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _images(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return rows.view(like.shape[0], like.shape[2], like.shape[3], rows.shape[1]).permute(0, 3, 1, 2)


def _convolve(x: torch.Tensor, weight: torch.Tensor, plan: _Plan) -> torch.Tensor:
    if _is_product(x, weight, plan):
        return _images(_rows(x) @ weight.flatten(1).t(), x)
    return F.conv2d(x, weight, None, plan.stride, plan.padding).contiguous(memory_format=torch.channels_last)


def _convolve_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, plan: _Plan, wanted: tuple[bool, bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of x and weight, each where it is wanted."""
    if _is_product(x, weight, plan) and grad.is_contiguous(memory_format=torch.channels_last):
        rows = _rows(grad)
        grad_x = _images(rows @ weight.flatten(1), grad) if wanted[0] else None
        grad_weight = (rows.t() @ _rows(x)).view(weight.shape) if wanted[1] else None
        return grad_x, grad_weight
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, plan.stride, plan.padding, [1, 1], False, [0, 0], 1, [*wanted, False]
    )
    return grad_x, grad_weight
