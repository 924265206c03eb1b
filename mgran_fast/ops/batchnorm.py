"""``batchnorm``: batch norm, the residual's addition and ReLU in one, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from mgran_fast.ops import backend, checks
from mgran_fast.ops.launch import DTYPES, launch
from mgran_fast.ops.library import register
from mgran_fast.reference import batchnorm as reference

#: float64 [...] -> the sum over all ranks of a distributed run, without gradients.
Sum = Callable[[torch.Tensor], torch.Tensor]
# As in csrc/batchnorm.h.
_SUM, _WRITE = 1, 2


class Normed(NamedTuple):
    """What :func:`forward` gives: y like x, and float32 [G, C] each (float64 for float64 features).

    ``cells`` is the number of cells that a group's statistics were taken over, all ranks together.
    """

    y: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor
    invstd: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor
    cells: float | torch.Tensor


def batchnorm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    residual: torch.Tensor | None = None,
    *,
    training: bool,
    relu: bool = False,
    groups: int = 1,
    momentum: float = 0.1,
    eps: float = 1e-5,
    all_sum: Sum | None = None,
    counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """max(batch norm(x) + residual, 0), or without the maximum.

    Saves x and the residual for the backward pass and nothing of what it writes: the gradient of ReLU is found from
    x again. The formulas: :mod:`mgran_fast.reference.batchnorm`.

    Args:
        x: [B, C, h, w], floating point; channels_last is the fast layout. Differentiable.
        weight, bias: float32 [C] (float64 for float64 features). Differentiable.
        running_mean, running_var: [C]; read in eval mode. In training they move by ``momentum`` towards the mean and
            the unbiased variance of each group, group after group, as G calls of torch's batch norm would.
        residual: like x, or None. Differentiable.
        training: statistics of the batch, or the running ones.
        relu: whether the result is clipped at 0 from below.
        groups: G; B is a multiple of it, row b is of group b % G, and each group has statistics of its own.
        momentum: in [0, 1]. eps: added to the variance, positive.
        all_sum: sums a tensor over the ranks of a distributed run; the statistics are then those of all ranks' rows.
        counts: [B, h, w], in the dtype of weight, positive: for how many equal cells each one stands, in training. The
            gradients of the result and of x are then those of all of these together. On a GPU the reference does it.

    Returns:
        [B, C, h, w] in the dtype of x, channels_last.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device, number of groups or eps, or, in training,
            a group without a cell.
    """
    _check(x, weight, bias, running_mean, running_var, residual, groups, eps, counts)
    given = (x, weight, bias, residual)
    learning = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given)
    if not training:
        _, scale, shift = reference.coefficients(running_mean[None], running_var[None], weight, bias, eps)
        if learning:
            # Rare (frozen statistics): by torch's own autograd.
            return _dense(reference.apply(x, residual, scale, shift, relu))
        return apply(x, residual, scale, shift, relu)
    if learning:
        y, mean, var, count = _BatchNorm.apply(x, weight, bias, residual, groups, eps, relu, all_sum, counts)
    else:
        normed = forward(x, weight, bias, residual, groups, eps, relu, all_sum, counts)
        y, mean, var, count = normed.y, normed.mean, normed.var, normed.cells
    update_running(running_mean, running_var, mean, var, count, momentum)
    result: torch.Tensor = y
    return result


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    groups: int,
    eps: float,
    relu: bool,
    all_sum: Sum | None = None,
    counts: torch.Tensor | None = None,
) -> Normed:
    """The forward pass in training, outside of autograd; the arguments are :func:`batchnorm`'s, already checked."""
    own = _cells_of(x, groups, counts)
    if all_sum is None:
        y, mean, var, invstd, scale, shift = _forward_op(x, residual, weight, bias, groups, eps, relu, counts)
        return Normed(y, mean, var, invstd, scale, shift, own)
    mean, var = _statistics_op(x, groups, counts)
    mean, var, count = _over_ranks(mean, var, torch.as_tensor(own, dtype=torch.float64, device=x.device), all_sum)
    invstd, scale, shift = reference.coefficients(mean, var, weight, bias, eps)
    return Normed(apply(x, residual, scale, shift, relu), mean, var, invstd, scale, shift, count)


def apply(
    x: torch.Tensor, residual: torch.Tensor | None, scale: torch.Tensor, shift: torch.Tensor, relu: bool
) -> torch.Tensor:
    """x * scale + shift + residual, clipped if ``relu``, outside of autograd: the y of :func:`forward` to the bit."""
    y: torch.Tensor = _apply_op(x, residual, scale, shift, relu)
    return y


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    normed: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    count: float | torch.Tensor,
    relu: bool,
    want_residual: bool,
    all_sum: Sum | None = None,
    counts: torch.Tensor | None = None,
    overwrite: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """dx, dresidual (None where not wanted), and this rank's share of dweight and dbias [C].

    Args:
        normed: mean, invstd, scale and shift of :func:`forward`. count: its cells.
        overwrite: nobody needs ``grad`` any more: dx may take its memory, which is in the cache and needs no new pages.
    """
    mean, invstd, scale, shift = normed
    module = _kernel(x) if overwrite and all_sum is None and x.device.type == "cpu" else None
    if module is not None and grad.is_contiguous(memory_format=torch.channels_last):
        dx, dresidual = grad, _like(x) if want_residual else None
        dbias, dweight = _both(module, dx, dresidual, grad, x, residual, mean, invstd, scale, shift, relu, counts)
    elif all_sum is None:
        dx, dresidual, dbias, dweight = _backward_op(
            grad, x, residual, mean, invstd, scale, shift, relu, want_residual, counts
        )
    else:
        dbias, dweight = _reduce_op(grad, x, residual, mean, invstd, scale, shift, relu)
        means = all_sum(torch.stack((dbias, dweight)).double()) / count
        dbias_mean, dweight_mean = means.to(dbias.dtype)
        dx, dresidual = _grad_op(
            grad, x, residual, mean, invstd, scale, shift, dbias_mean, dweight_mean, relu, want_residual, counts
        )
    return dx, dresidual if want_residual else None, dweight.sum(0), dbias.sum(0)


@torch.no_grad()
def update_running(
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    count: float | torch.Tensor,
    momentum: float,
) -> None:
    """Move the running statistics towards those of each group, the variance made unbiased by count / (count - 1)."""
    unbiased = var * (count / (count - 1)) if isinstance(count, torch.Tensor) else var * (count / max(count - 1, 1))
    for one_mean, one_var in zip(mean, unbiased, strict=True):
        running_mean.lerp_(one_mean.to(running_mean.dtype), momentum)
        running_var.lerp_(one_var.to(running_var.dtype), momentum)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        residual: torch.Tensor | None,
        groups: int,
        eps: float,
        relu: bool,
        all_sum: Sum | None,
        counts: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float | torch.Tensor]:
        normed = forward(x, weight, bias, residual, groups, eps, relu, all_sum, counts)
        # Backwards a residual matters to ReLU alone.
        kept = residual if relu else None
        ctx.save_for_backward(x, kept, counts, normed.mean, normed.invstd, normed.scale, normed.shift)
        ctx.count, ctx.relu, ctx.all_sum, ctx.has_residual = normed.cells, relu, all_sum, residual is not None
        ctx.mark_non_differentiable(normed.mean, normed.var)
        return normed.y, normed.mean, normed.var, normed.cells

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        x, residual, counts, *normed = ctx.saved_tensors
        wanted = ctx.has_residual and ctx.needs_input_grad[3]
        dx, dresidual, dweight, dbias = backward(
            grad, x, residual, tuple(normed), ctx.count, ctx.relu, wanted, ctx.all_sum, counts
        )
        return dx, dweight, dbias, dresidual, None, None, None, None, None


def _over_ranks(
    mean: torch.Tensor, var: torch.Tensor, count: torch.Tensor, all_sum: Sum
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Statistics of all ranks' cells from each rank's own [G, C] and number of cells."""
    total = all_sum(count)
    share = count / total
    overall = all_sum(mean.double() * share)
    # About the common mean: no difference of large squares.
    spread = all_sum((var.double() + (mean.double() - overall).square()) * share)
    return overall.to(mean.dtype), spread.to(var.dtype), total


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    residual: torch.Tensor | None,
    groups: int,
    eps: float,
    counts: torch.Tensor | None,
) -> None:
    checks.tensor("x", x, (None, None, None, None), (*DTYPES, torch.float64))
    wide = reference.wide(x)
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, value in vectors.items():
        checks.tensor(name, value, (x.shape[1],), (wide,))
    if residual is not None:
        checks.tensor("residual", residual, tuple(x.shape), (x.dtype,))
        checks.same_device(x=x, residual=residual)
    if counts is not None:
        checks.tensor("counts", counts, (x.shape[0], x.shape[2], x.shape[3]), (wide,))
        vectors["counts"] = counts
    checks.same_device(x=x, **vectors)
    if groups < 1 or x.shape[0] % groups != 0:
        raise ValueError(f"x has {x.shape[0]} rows, which is no multiple of {groups} groups")
    if x.numel() == 0:
        raise ValueError(f"x has no cells: its shape is {list(x.shape)}")
    if not 0 < eps < 1e9:
        raise ValueError(f"eps must be positive and finite, not {eps!r}")


def _cells_of(x: torch.Tensor, groups: int, counts: torch.Tensor | None) -> float | torch.Tensor:
    """How many cells a group's statistics are taken over; all groups have as many."""
    if counts is None:
        return x.shape[0] // groups * x.shape[2] * x.shape[3]
    total = counts.double().sum() / groups
    # A float where reading it waits for nobody.
    return float(total) if total.device.type == "cpu" else total


# --- the registered ops ---------------------------------------------------------------------------------------------


def _kernel(x: torch.Tensor) -> ModuleType | None:
    # No kernel computes in float64: that is the reference's, for gradcheck.
    return None if x.dtype == torch.float64 else backend.native("batchnorm", x.device.type)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _dense_or_none(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else _dense(tensor)


def _contiguous(counts: torch.Tensor | None) -> torch.Tensor | None:
    return None if counts is None else counts.contiguous()


def _fresh(tensor: torch.Tensor) -> torch.Tensor:
    """A copy as the kernels would write it: an op may answer with neither an argument nor a view of anything."""
    return tensor.clone(memory_format=torch.channels_last)


def _launch(module: ModuleType, op: str, x: torch.Tensor, **arguments: Any) -> None:
    """Call the CPU kernel; pointers that are not named are null."""
    rows, channels, height, width = x.shape
    pointers = (
        "residual", "grad", "out", "out_residual", "weight", "bias", "mean", "var", "invstd", "scale", "shift",
        "grad_bias", "grad_weight", "grad_bias_mean", "grad_weight_mean", "counts",
    )  # fmt: skip
    given: dict[str, Any] = {"groups": 1, "relu": False, "eps": 1.0, **dict.fromkeys(pointers), **arguments}
    launch(
        module, op, x.device, x=x, rows=rows, cells=height * width, channels=channels, dtype=DTYPES[x.dtype], **given
    )


def _vectors(x: torch.Tensor, groups: int, count: int) -> list[torch.Tensor]:
    return [x.new_empty((groups, x.shape[1]), dtype=reference.wide(x)) for _ in range(count)]


def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float,
    relu: bool,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    module = _kernel(x)
    if module is None or x.device.type == "cuda":
        mean, var = _statistics(x, groups, counts)
        invstd, scale, shift = reference.coefficients(mean, var, weight, bias, eps)
        return _apply(x, residual, scale, shift, relu), mean, var, invstd, scale, shift
    y, mean, var, invstd, scale, shift = _forward_fake(x, residual, weight, bias, groups, eps, relu, counts)
    dense = _dense(x)
    _launch(
        module, "batchnorm", dense, residual=_dense_or_none(residual), out=y, weight=weight.contiguous(),
        bias=bias.contiguous(), mean=mean, var=var, invstd=invstd, scale=scale, shift=shift, groups=groups, eps=eps,
        relu=relu, counts=_contiguous(counts), phases=_SUM | _WRITE,
    )  # fmt: skip
    return y, mean, var, invstd, scale, shift


def _forward_fake(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float,
    relu: bool,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    return (_like(x), *_vectors(x, groups, 5))


def _statistics(x: torch.Tensor, groups: int, counts: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    module, dense = _kernel(x), _dense(x)
    if module is None or (x.device.type == "cuda" and counts is not None):
        return reference.statistics(x, groups, counts)
    if x.device.type == "cuda":
        found: tuple[torch.Tensor, torch.Tensor] = module.statistics(dense, groups)
        return found
    mean, var = _statistics_fake(x, groups, counts)
    _launch(
        module, "batchnorm", dense, mean=mean, var=var, groups=groups, counts=_contiguous(counts), phases=_SUM
    )  # fmt: skip
    return mean, var


def _statistics_fake(
    x: torch.Tensor, groups: int, counts: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    mean, var = _vectors(x, groups, 2)
    return mean, var


def _apply(
    x: torch.Tensor, residual: torch.Tensor | None, scale: torch.Tensor, shift: torch.Tensor, relu: bool
) -> torch.Tensor:
    module, dense = _kernel(x), _dense(x)
    if module is None:
        return _fresh(reference.apply(x, residual, scale, shift, relu))
    if x.device.type == "cuda":
        y: torch.Tensor = module.apply(dense, _dense_or_none(residual), scale.contiguous(), shift.contiguous(), relu)
        return y
    y = _like(x)
    _launch(
        module, "batchnorm", dense, residual=_dense_or_none(residual), out=y, scale=scale.contiguous(),
        shift=shift.contiguous(), groups=len(scale), relu=relu, phases=_WRITE,
    )  # fmt: skip
    return y


def _apply_fake(
    x: torch.Tensor, residual: torch.Tensor | None, scale: torch.Tensor, shift: torch.Tensor, relu: bool
) -> torch.Tensor:
    return _like(x)


def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    relu: bool,
    want_residual: bool,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    module = _kernel(x)
    if module is None or x.device.type == "cuda":
        dbias, dweight = _reduce(grad, x, residual, mean, invstd, scale, shift, relu)
        count = max(_cells_of(x, len(mean), counts), 1)
        dx, dresidual = _grad(
            grad, x, residual, mean, invstd, scale, shift, dbias / count, dweight / count, relu, want_residual, counts
        )
        return dx, dresidual, dbias, dweight
    dx, dresidual = _grad_fake(grad, x, residual, mean, invstd, scale, shift, mean, mean, relu, want_residual, counts)
    wanted = dresidual if want_residual else None
    dbias, dweight = _both(module, dx, wanted, grad, x, residual, mean, invstd, scale, shift, relu, counts)
    return dx, dresidual, dbias, dweight


def _backward_fake(
    grad: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    relu: bool,
    want_residual: bool,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dbias, dweight = _vectors(x, len(mean), 2)
    return _like(x), _like(x) if want_residual else x.new_empty(0), dbias, dweight


def _both(
    module: ModuleType,
    dx: torch.Tensor,
    dresidual: torch.Tensor | None,
    grad: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    relu: bool,
    counts: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both phases of the CPU kernel into dx, which may be grad itself, and dresidual; returns dbias and dweight."""
    dbias, dweight = _vectors(x, len(mean), 2)
    _launch_backward(
        module, grad, x, residual, relu, out=dx, out_residual=dresidual, mean=mean, invstd=invstd, scale=scale,
        shift=shift, grad_bias=dbias, grad_weight=dweight, groups=len(mean), counts=_contiguous(counts),
        phases=_SUM | _WRITE,
    )  # fmt: skip
    return dbias, dweight


def _launch_backward(
    module: ModuleType, grad: torch.Tensor, x: torch.Tensor, residual: torch.Tensor | None, relu: bool, **more: Any
) -> None:
    dense = _dense(x)
    # What is [G, C]; the kernel knows no strides.
    for name, value in more.items():
        if isinstance(value, torch.Tensor) and value.ndim == 2:
            more[name] = value.contiguous()
    _launch(
        module, "batchnorm_backward", dense, grad=_dense(grad), residual=_dense_or_none(residual) if relu else None,
        relu=relu, **more,
    )  # fmt: skip


def _reduce(
    grad: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    module = _kernel(x)
    if module is None:
        return reference.reduce(grad, x, residual, scale, shift, mean, invstd, relu)
    if x.device.type == "cuda":
        found: tuple[torch.Tensor, torch.Tensor] = module.reduce(
            _dense(grad), _dense(x), _dense_or_none(residual), scale, shift, mean, invstd, relu
        )
        return found
    dbias, dweight = _vectors(x, len(mean), 2)
    _launch_backward(
        module, grad, x, residual, relu, mean=mean, invstd=invstd, scale=scale, shift=shift, grad_bias=dbias,
        grad_weight=dweight, groups=len(mean), phases=_SUM,
    )  # fmt: skip
    return dbias, dweight


def _reduce_fake(
    grad: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    dbias, dweight = _vectors(x, len(mean), 2)
    return dbias, dweight


def _grad(
    grad: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    dbias_mean: torch.Tensor,
    dweight_mean: torch.Tensor,
    relu: bool,
    want_residual: bool,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    module = _kernel(x)
    if module is None or (x.device.type == "cuda" and counts is not None):
        dx, dresidual = reference.grad(
            grad, x, residual, scale, shift, mean, invstd, dbias_mean, dweight_mean, relu, counts
        )
        return _fresh(dx), _fresh(dresidual) if want_residual else x.new_empty(0)
    if x.device.type == "cuda":
        dx, other = module.grad(
            _dense(grad), _dense(x), _dense_or_none(residual), scale, shift, mean, invstd, dbias_mean, dweight_mean,
            relu, want_residual,
        )  # fmt: skip
        return dx, x.new_empty(0) if other is None else other
    dx, dresidual = _grad_fake(
        grad, x, residual, mean, invstd, scale, shift, dbias_mean, dweight_mean, relu, want_residual, counts
    )
    _launch_backward(
        module, grad, x, residual, relu, out=dx, out_residual=dresidual if want_residual else None, mean=mean,
        invstd=invstd, scale=scale, shift=shift, grad_bias_mean=dbias_mean, grad_weight_mean=dweight_mean,
        groups=len(mean), counts=_contiguous(counts), phases=_WRITE,
    )  # fmt: skip
    return dx, dresidual


def _grad_fake(
    grad: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    dbias_mean: torch.Tensor,
    dweight_mean: torch.Tensor,
    relu: bool,
    want_residual: bool,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _like(x), _like(x) if want_residual else x.new_empty(0)


_forward_op = register(
    "batchnorm(Tensor x, Tensor? residual, Tensor weight, Tensor bias, int groups, float eps, bool relu,"
    " Tensor? counts=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_statistics_op = register(
    "batchnorm_statistics(Tensor x, int groups, Tensor? counts=None) -> (Tensor, Tensor)", _statistics, _statistics_fake
)
_apply_op = register(
    "batchnorm_apply(Tensor x, Tensor? residual, Tensor scale, Tensor shift, bool relu) -> Tensor", _apply, _apply_fake
)
_COEFFICIENTS = "Tensor mean, Tensor invstd, Tensor scale, Tensor shift"
_backward_op = register(
    f"batchnorm_backward(Tensor grad, Tensor x, Tensor? residual, {_COEFFICIENTS}, bool relu, bool want_residual,"
    " Tensor? counts=None) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
_reduce_op = register(
    f"batchnorm_reduce(Tensor grad, Tensor x, Tensor? residual, {_COEFFICIENTS}, bool relu) -> (Tensor, Tensor)",
    _reduce,
    _reduce_fake,
)
_grad_op = register(
    f"batchnorm_grad(Tensor grad, Tensor x, Tensor? residual, {_COEFFICIENTS}, Tensor dbias_mean, Tensor dweight_mean,"
    " bool relu, bool want_residual, Tensor? counts=None) -> (Tensor, Tensor)",
    _grad,
    _grad_fake,
)
