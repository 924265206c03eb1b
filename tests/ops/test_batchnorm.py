"""batchnorm: torch's own batch norm in float64, gradients, groups, and ranks played by hand."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast import ops

module = importlib.import_module("mgran_fast.ops.batchnorm")
# Relative to the largest value; sums are taken in float32 and rounded once to the dtype.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Whole vectors, strips and what is left of them; one cell; several pieces of a row; several blocks of channels.
SHAPES = [(8, 64, 5, 3), (4, 3, 1, 1), (8, 130, 9, 7), (12, 1, 2, 2), (4, 70, 40, 30), (4, 200, 65, 33)]


def given(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, dtype=torch.float64, generator=generator)

    wide = torch.promote_types(dtype, torch.float32)
    return {
        "x": (2 * draw(*shape) + 1).to(dtype),
        "residual": draw(*shape).to(dtype),
        "grad": draw(*shape).to(dtype),
        "weight": draw(shape[1]).to(wide),
        "bias": draw(shape[1]).to(wide),
    }


def run(tensors: dict[str, torch.Tensor], residual: bool, relu: bool, groups: int, **more: Any) -> list[torch.Tensor]:
    """y, the gradients, and the running statistics."""
    x, weight, bias = (tensors[name].clone().requires_grad_() for name in ("x", "weight", "bias"))
    other = tensors["residual"].clone().requires_grad_() if residual else None
    mean, var = torch.zeros_like(weight.detach()), torch.ones_like(weight.detach())
    y = ops.batchnorm(
        x, weight, bias, mean, var, other, training=True, relu=relu, groups=groups, eps=1e-3, momentum=0.3, **more
    )
    y.backward(tensors["grad"])
    wanted = [x.grad, weight.grad, bias.grad, *([] if other is None else [other.grad])]
    assert all(grad is not None for grad in wanted)
    return [y.detach(), *[grad for grad in wanted if grad is not None], mean, var]


def torchs(tensors: dict[str, torch.Tensor], residual: bool, relu: bool, groups: int) -> list[torch.Tensor]:
    """The same by torch in float64, one call for each group."""
    exact = {name: value.double() for name, value in tensors.items()}
    x, weight, bias = (exact[name].requires_grad_() for name in ("x", "weight", "bias"))
    mean, var = torch.zeros(len(weight), dtype=torch.float64), torch.ones(len(weight), dtype=torch.float64)
    parts = [F.batch_norm(x[i::groups], mean, var, weight, bias, True, 0.3, 1e-3) for i in range(groups)]
    y = torch.stack(parts, 1).flatten(0, 1)
    other = exact["residual"].requires_grad_() if residual else None
    y = y if other is None else y + other
    y = y.relu() if relu else y
    y.backward(exact["grad"])
    found = [y.detach(), x.grad, weight.grad, bias.grad, *([] if other is None else [other.grad]), mean, var]
    return [value for value in found if value is not None]


def check(got: list[torch.Tensor], want: list[torch.Tensor], tolerance: float) -> None:
    assert len(got) == len(want)
    for place, (one, other) in enumerate(zip(got, want, strict=True)):
        error = (one.double() - other).abs().max()
        # Written so that NaN fails.
        assert error <= tolerance * other.abs().max().clamp(min=1e-3), (place, float(error))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_equals_torch(dtype: torch.dtype, residual: bool, relu: bool, groups: int) -> None:
    for shape in SHAPES:
        if shape[0] // groups * shape[2] * shape[3] < 2:
            continue  # torch wants two cells
        tensors = given(shape, dtype)
        check(run(tensors, residual, relu, groups), torchs(tensors, residual, relu, groups), TOLERANCES[dtype])


def test_layouts_and_types_of_the_results() -> None:
    tensors = given((4, 70, 5, 3), torch.bfloat16)
    y, *_ = run(tensors, True, True, 1)
    last = {name: value.contiguous(memory_format=torch.channels_last) for name, value in list(tensors.items())[:3]}
    again, grad_x, *_ = run({**tensors, **last}, True, True, 1)
    assert torch.equal(y, again)
    assert y.dtype == grad_x.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert grad_x.is_contiguous(memory_format=torch.channels_last)


def test_a_large_mean_keeps_a_small_variance() -> None:
    x = 1000 + 0.01 * torch.randn(4, 66, 40, 30, generator=torch.Generator().manual_seed(0))
    mean, var = torch.zeros(66), torch.zeros(66)
    ops.batchnorm(x, torch.ones(66), torch.zeros(66), mean, var, training=True, momentum=1.0)
    want = x.double().var((0, 2, 3))
    assert not bool(((var - want).abs() > 1e-3 * want).any())


def test_threads_do_not_change_a_bit() -> None:
    tensors = given((4, 200, 65, 33), torch.bfloat16)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(run(tensors, True, True, 1))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_a_nan_goes_its_way() -> None:
    tensors = given((4, 66, 3, 2), torch.float32)
    tensors["x"][1, 5, 0, 0] = torch.nan
    y, grad_x, *_ = run(tensors, False, True, 1)
    assert y[:, 5].isnan().all()
    assert grad_x[:, 5].isnan().all()
    others = [channel for channel in range(66) if channel != 5]
    assert y[:, others].isfinite().all()
    assert grad_x[:, others].isfinite().all()


def test_gradcheck() -> None:
    tensors = given((4, 3, 2, 2), torch.float64)
    inputs = tuple(tensors[name].requires_grad_() for name in ("x", "weight", "bias", "residual"))

    def call(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        return ops.batchnorm(x, weight, bias, mean, var, residual, training=True, relu=True, groups=2)

    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


def test_eval_mode_is_torchs_and_leaves_the_statistics_alone() -> None:
    tensors = given((4, 70, 5, 3), torch.float32)
    mean, var = torch.randn(70), torch.rand(70) + 0.5
    before = mean.clone(), var.clone()
    x = tensors["x"]
    want = F.batch_norm(x, mean, var, tensors["weight"], tensors["bias"], False, 0.1, 1e-5) + tensors["residual"]
    arguments = (tensors["weight"], tensors["bias"], mean, var, tensors["residual"])
    got = ops.batchnorm(x, *arguments, training=False, relu=True)
    torch.testing.assert_close(got, want.relu(), rtol=1e-5, atol=1e-5)
    learning = x.clone().requires_grad_()
    torch.testing.assert_close(ops.batchnorm(learning, *arguments, training=False, relu=True), got)
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])


def test_statistics_of_all_ranks() -> None:
    """Two ranks of different sizes, one after the other: what one says to the other is known from the whole."""
    tensors = given((6, 66, 4, 3), torch.float64)
    whole = run(tensors, True, True, 1)
    sizes, said = (4, 2), []

    # A first pass with sums that are not summed tells what each rank would say; wrong sums only change later ones, so
    # each round makes one more of them right.
    heard: list[torch.Tensor] = []
    for _ in range(5):
        rounds: list[list[torch.Tensor]] = []
        answers = []
        for part in range(2):
            rows = slice(0, 4) if part == 0 else slice(4, 6)
            said, calls = [], iter(heard)

            def all_sum(tensor: torch.Tensor, said: list[torch.Tensor] = said, calls: Any = calls) -> torch.Tensor:
                said.append(tensor.clone())
                return next(calls, tensor)

            own = {n: v[rows] if n in ("x", "residual", "grad") else v for n, v in tensors.items()}
            answers.append(run(own, True, True, 1, all_sum=all_sum))
            rounds.append(said)
        heard = [a + b for a, b in zip(*rounds, strict=True)]
    assert sizes == tuple(len(answer[0]) for answer in answers)
    for place in (0, 1, 4):  # y and the gradients of x and of the residual: each rank has its rows
        assert torch.allclose(torch.cat([answer[place] for answer in answers]), whole[place], rtol=1e-10, atol=1e-12)
    for place in (2, 3):  # of weight and bias: each rank has its share
        assert torch.allclose(answers[0][place] + answers[1][place], whole[place], rtol=1e-10, atol=1e-12)
    for place in (5, 6):
        assert torch.allclose(answers[0][place], whole[place], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    tensors = given((4, 66, 3, 2), dtype)
    x, residual, grad, weight, bias = (tensors[name] for name in ("x", "residual", "grad", "weight", "bias"))
    y, mean, _, invstd, scale, shift = torch.ops.mgran_fast.batchnorm(x, residual, weight, bias, 2, 1e-5, True, None)
    assert y.shape == x.shape
    found = (mean, invstd, scale, shift)
    counts = torch.arange(1, 25, dtype=weight.dtype).view(4, 3, 2)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("batchnorm", (x, None, weight, bias, 2, 1e-5, False, None)),
        ("batchnorm", (x, residual, weight, bias, 2, 1e-5, True, counts)),
        ("batchnorm_statistics", (x, 2, counts)),
        ("batchnorm_apply", (x, residual, scale, shift, True)),
        ("batchnorm_backward", (grad, x, residual, *found, True, True, counts)),
        ("batchnorm_reduce", (grad, x, None, *found, True)),
        ("batchnorm_grad", (grad, x, residual, *found, mean, mean, True, False, counts)),
    ]
    for name, arguments in calls:
        torch.library.opcheck(getattr(torch.ops.mgran_fast, name), arguments)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("residual", "relu"), [(False, False), (True, True)])
@pytest.mark.parametrize("ranks", [False, True])
def test_a_cell_that_counts_n_times_is_n_cells(dtype: torch.dtype, residual: bool, relu: bool, ranks: bool) -> None:
    # 70 channels: strips, whole vectors and a rest; 700 cells: several pieces.
    tensors = given((1, 70, 700, 1), dtype)
    generator = torch.Generator().manual_seed(5)
    counts = torch.randint(1, 5, (700,), generator=generator)
    each = torch.repeat_interleave(torch.arange(700), counts)
    many = {name: value[:, :, each] if value.ndim == 4 else value for name, value in tensors.items()}
    more: dict[str, Any] = {"all_sum": lambda tensor: tensor} if ranks else {}
    wide = torch.promote_types(dtype, torch.float32)
    got = run(tensors, residual, relu, 1, counts=counts.to(wide)[None, :, None], **more)
    # The gradient of the result is that of all n together.
    many["grad"] = many["grad"].double() / counts[each][:, None]
    want = torchs(many, residual, relu, 1)

    def summed(value: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros((1, 70, 700, 1), dtype=torch.float64)
        return zeros.index_add(2, each, value)

    first = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)[:-1]))
    want[0] = want[0][:, :, first]
    for i, value in enumerate(want[1:], 1):
        want[i] = summed(value) if value.ndim == 4 else value
    for one, other in zip(got, want, strict=True):
        error = (one.double() - other).abs().max()
        assert error <= TOLERANCES[dtype] * other.abs().max().clamp(min=1), float(error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gradient_that_is_overwritten_gives_the_same(dtype: torch.dtype, extension: Any) -> None:
    tensors = {
        name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in given((4, 130, 9, 7), dtype).items()
    }
    x, residual, grad = tensors["x"], tensors["residual"], tensors["grad"]
    whole = module.forward(x, tensors["weight"], tensors["bias"], residual, 1, 1e-5, True)
    arguments = (x, residual, (whole.mean, whole.invstd, whole.scale, whole.shift), whole.cells, True, True)
    want = module.backward(grad.clone(), *arguments)
    got = module.backward(grad, *arguments, overwrite=True)
    assert got[0].data_ptr() == grad.data_ptr()
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


def test_the_two_phases_apart_are_the_two_together() -> None:
    tensors = given((4, 130, 9, 7), torch.float32)
    x, residual, grad = tensors["x"], tensors["residual"], tensors["grad"]
    whole = module.forward(x, tensors["weight"], tensors["bias"], residual, 1, 1e-5, True)
    assert torch.equal(module.apply(x, residual, whole.scale, whole.shift, True), whole.y)
    mean, var = torch.ops.mgran_fast.batchnorm_statistics(x, 1, None)
    assert torch.equal(mean, whole.mean)
    assert torch.equal(var, whole.var)
    found = (whole.mean, whole.invstd, whole.scale, whole.shift)
    dx, dresidual, dweight, dbias = module.backward(grad, x, residual, found, whole.cells, True, True)
    apart = module.backward(grad, x, residual, found, whole.cells, True, True, all_sum=lambda tensor: tensor)
    for one, other in zip((dx, dresidual, dweight, dbias), apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(4, 3, 2)}, ValueError, "x must have the shape"),
        ({"counts": torch.ones(4, 2)}, ValueError, "counts must have the shape"),
        ({"counts": torch.ones(4, 2, 2, dtype=torch.int64)}, TypeError, "counts must be"),
        ({"x": torch.zeros(4, 3, 2, 2, dtype=torch.int64)}, TypeError, "x must be"),
        ({"x": torch.zeros(4, 3, 0, 2)}, ValueError, "no cells"),
        ({"weight": torch.zeros(2)}, ValueError, "weight must have the shape"),
        ({"weight": torch.zeros(3).half()}, TypeError, "weight must be float32"),
        ({"residual": torch.zeros(4, 3, 2, 1)}, ValueError, "residual must have the shape"),
        ({"residual": torch.zeros(4, 3, 2, 2).half()}, TypeError, "residual must be float32"),
        ({"groups": 3}, ValueError, "no multiple of 3 groups"),
        ({"groups": 0}, ValueError, "groups"),
        ({"eps": 0.0}, ValueError, "eps must be positive"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    good: dict[str, Any] = {
        "x": torch.zeros(4, 3, 2, 2), "weight": torch.ones(3), "bias": torch.zeros(3),
        "running_mean": torch.zeros(3), "running_var": torch.ones(3), "training": True,
    }  # fmt: skip
    with pytest.raises(error, match=words):
        ops.batchnorm(**{**good, **change})
