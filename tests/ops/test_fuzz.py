"""The boundary of every op under fuzzing: a clear exception or the right answer, never a crash.

Shapes, strides, dtypes, devices and values are drawn without regard for the contract. What the op takes must equal
the reference on tidy copies; what it does not take must raise TypeError or ValueError, with words. The same file
runs with the extension under AddressSanitizer (``make sanitize``), where a read or write beyond a tensor's memory
ends the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgran_fast import ops
from mgran_fast.ops import rows
from mgran_fast.reference import align as align_reference
from mgran_fast.reference import crops as crops_reference
from mgran_fast.reference import inputs as inputs_reference
from mgran_fast.reference import pooling as pooling_reference
from mgran_fast.reference import regions as regions_reference
from mgran_fast.reference import rows as rows_reference

EXAMPLES = settings(max_examples=80)
# Of ops with many calls each: under a sanitizer time counts.
FEWER = settings(max_examples=60)
WILD = [float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 1e-45, -1.0, 0.0, 0.5, 1.0, 7.25, 1e6]
DTYPES = [torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
LAYOUTS = ["region", "part", "box", "none", "limbs"]
size = st.integers(0, 9)
number = st.one_of(st.floats(0, 1), st.sampled_from(WILD))


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor that is nearly always of this shape and dtype: sometimes another one, of any strides, or on meta."""
    odd = draw(st.integers(0, 11))
    if odd == 0:
        dtype = draw(st.sampled_from(DTYPES))
    if odd == 1:
        shape = tuple(draw(st.lists(size, min_size=max(len(shape) - 1, 0), max_size=len(shape) + 1)))
    if odd == 2 and shape:
        axis = draw(st.integers(0, len(shape) - 1))
        shape = (*shape[:axis], draw(size), *shape[axis + 1 :])
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    if dtype == torch.uint8:
        values = torch.from_numpy(generator.integers(0, draw(st.sampled_from([1, 4, 256])), shape, dtype=np.uint8))
    elif dtype.is_floating_point:
        values = torch.from_numpy(np.asarray(generator.uniform(-2.0, 12.0, shape), np.float32))
        if draw(st.booleans()):
            wild = torch.tensor(generator.choice(WILD, shape), dtype=torch.float32)
            values = torch.where(torch.from_numpy(np.asarray(generator.random(shape) < 0.2)), wild, values)
        values = values.to(dtype)
    else:
        values = torch.from_numpy(generator.integers(-1, 5, shape)).to(dtype)
    return strided(values, draw(st.sampled_from(["tidy", "shifted", "spread", "turned", "one", "meta"])))


def strided(values: torch.Tensor, how: str) -> torch.Tensor:
    """The same values in another arrangement of memory; "one" is a first row over and over, by a stride of 0."""
    if how == "shifted":
        memory = torch.zeros(values.numel() + 1, dtype=values.dtype)
        return memory[1:].view(values.shape).copy_(values)
    if how == "spread" and values.ndim:
        return values.repeat_interleave(3, -1)[..., 1::3]
    if how == "turned" and values.ndim > 1:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "one" and values.ndim and len(values):
        return values[:1].expand(values.shape)
    if how == "meta" and values.numel() % 5 == 0:
        return values.to("meta")
    return values


def answer(run: Callable[..., Any], *arguments: Any, more: type[Exception] = ValueError, **options: Any) -> Any:
    """What the op returns; None when it refuses (with words), and for meta tensors, which hold nothing."""
    refused = ""
    try:
        result = run(*arguments, **options)
    except (TypeError, ValueError, more) as error:
        refused = f"{error} "
    if refused:
        assert len(refused) > 10
        return None
    given = [a for a in arguments if isinstance(a, torch.Tensor)]
    return None if any(a.device.type == "meta" for a in given) else result


def tidy(*arguments: torch.Tensor) -> list[torch.Tensor]:
    return [a.clone(memory_format=torch.contiguous_format) for a in arguments]


def bits(values: torch.Tensor) -> torch.Tensor:
    # Not contiguous(): that leaves strides of sizes 0 and 1 as they are, and view() does not take all of them.
    return values.clone(memory_format=torch.contiguous_format).view(torch.uint8)


@st.composite
def corners(draw: st.DrawFn) -> torch.Tensor:
    rows = draw(st.lists(st.tuples(*[st.one_of(st.sampled_from(WILD), st.floats(-9, 20, width=32))] * 4), max_size=4))
    if draw(st.integers(0, 9)) == 0:
        return draw(tensors((2, 4), torch.float32))
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


@EXAMPLES
@given(data=st.data(), height=size, width=size, target=st.tuples(st.integers(-1, 20), st.integers(0, 20)))
def test_crops(isa: str, data: st.DataObject, height: int, width: int, target: tuple[int, int]) -> None:
    frame = data.draw(tensors((height, width, 3), torch.uint8))
    boxes = data.draw(corners())
    got = answer(ops.crops, frame, boxes, target)
    if got is not None:
        assert torch.equal(got, crops_reference.crops(*tidy(frame, boxes), target))


@EXAMPLES
@given(
    data=st.data(),
    people=st.integers(0, 3),
    source=st.tuples(size, size),
    target=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    layout=st.sampled_from(LAYOUTS),
    threshold=number,
    least=number,
)
def test_regions(
    isa: str,
    data: st.DataObject,
    people: int,
    source: tuple[int, int],
    target: tuple[int, int],
    layout: str,
    threshold: float,
    least: float,
) -> None:
    mask = data.draw(tensors((people, *source), data.draw(st.sampled_from([torch.float32, torch.uint8]))))
    keypoints = data.draw(tensors((people, 17, 3), torch.float32))
    got = answer(ops.regions, mask, keypoints, target, layout, threshold, keypoint_threshold=least)
    if got is not None:
        assert torch.equal(got, regions_reference.regions(*tidy(mask, keypoints), target, layout, threshold, least))


@EXAMPLES
@given(
    data=st.data(),
    people=st.integers(0, 3),
    grid=st.tuples(size, size),
    scale=number,
    mean=st.lists(number, min_size=3, max_size=4),
    std=st.lists(number, min_size=3, max_size=4),
    dtype=st.sampled_from(DTYPES[:4]),
    regions=st.integers(-1, 6),
)
def test_inputs(
    isa: str,
    data: st.DataObject,
    people: int,
    grid: tuple[int, int],
    scale: float,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    regions: int,
) -> None:
    crops = data.draw(tensors((people, *grid, 3), torch.uint8))
    map_ = data.draw(tensors((people, *grid), torch.uint8))
    got = answer(ops.inputs, crops, map_, scale, mean, std, dtype, regions=regions)
    if got is not None:
        want = inputs_reference.inputs(*tidy(crops, map_), scale, mean, std, dtype, regions)
        assert torch.equal(torch.nan_to_num(got), torch.nan_to_num(want))


@EXAMPLES
@given(
    data=st.data(),
    people=st.integers(0, 3),
    source=st.tuples(size, size),
    grid=st.tuples(size, size),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES[:4]),
)
def test_align(
    isa: str,
    data: st.DataObject,
    people: int,
    source: tuple[int, int],
    grid: tuple[int, int],
    layout: str,
    dtype: torch.dtype,
) -> None:
    crops = data.draw(tensors((people, *grid, 3), torch.uint8))
    mask = data.draw(tensors((people, *source), data.draw(st.sampled_from([torch.float32, torch.uint8]))))
    keypoints = data.draw(tensors((people, 17, 3), torch.float32))
    got = answer(ops.align, crops, mask, keypoints, layout, dtype=dtype)
    if got is not None:
        want, map_ = align_reference.align(
            *tidy(crops, mask, keypoints), layout, 0.5, 0.3, 1 / 256, (0.0,) * 3, (1.0,) * 3, dtype
        )
        assert torch.equal(bits(got.inputs), bits(want))
        assert torch.equal(got.region_map, map_)


@EXAMPLES
@given(
    data=st.data(),
    people=st.integers(0, 3),
    inputs=st.integers(0, 3),
    channels=st.integers(0, 40),
    grid=st.tuples(size, size),
    pixels=st.tuples(size, size),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    mode=st.sampled_from(["mean", "max", "gem", "sum"]),
    power=st.sampled_from([1.0, 2.0, 3.0, 0.5, 2.7, 0.0, float("nan")]),
)
def test_pooling(
    isa: str,
    data: st.DataObject,
    people: int,
    inputs: int,
    channels: int,
    grid: tuple[int, int],
    pixels: tuple[int, int],
    dtype: torch.dtype,
    mode: str,
    power: float,
) -> None:
    features = data.draw(tensors((people * inputs, channels, *grid), dtype))
    map_ = data.draw(tensors((people, *pixels), torch.uint8))
    region = data.draw(tensors((people * inputs,), torch.int64))
    if features.is_floating_point():
        features.requires_grad_()
    got = answer(ops.pooling, features, map_, region, mode, power=power)
    if got is None:
        return
    # Half precision rounds, and infinities in a region may come out as NaN: compare what is finite in both.
    x, maps, regions = (t.detach() for t in tidy(features, map_, region))  # type: ignore[misc]
    want = pooling_reference.pooling(x, maps, regions, mode, power)
    # A sum's rounding is of the size of its terms: those of either sign may cancel, in one order and not in another,
    # and where the terms themselves overflow, nothing can be said.
    size = pooling_reference.pooling(x.abs(), maps, regions, mode, power) if mode in ("sum", "mean") else want.abs()
    both = got.isfinite() & want.isfinite() & size.isfinite()
    error = (got.double() - want.double())[both].abs()
    assert bool((error <= 2e-2 * size.double()[both].clamp(min=1.0)).all())
    got.sum().backward()
    assert features.grad is not None
    assert features.grad.shape == features.shape


@FEWER
@given(
    data=st.data(),
    count=size,
    channels=st.sampled_from([0, 1, 3, 16, 70]),
    grid=st.tuples(size, size),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    training=st.booleans(),
    relu=st.booleans(),
    groups=st.integers(-1, 3),
    eps=st.sampled_from([1e-5, 1e-5, 1.0, 0.0, -1.0, float("nan")]),
    options=st.sets(st.sampled_from(["residual", "counts"])),
)
def test_batchnorm(
    isa: str,
    data: st.DataObject,
    count: int,
    channels: int,
    grid: tuple[int, int],
    dtype: torch.dtype,
    training: bool,
    relu: bool,
    groups: int,
    eps: float,
    options: set[str],
) -> None:
    x = data.draw(tensors((count, channels, *grid), dtype))
    weight, bias, mean, var = (data.draw(tensors((channels,), torch.float32)) for _ in range(4))
    residual = data.draw(tensors((count, channels, *grid), dtype)) if "residual" in options else None
    counts = data.draw(tensors((count, *grid), torch.float32)) if "counts" in options else None
    if x.is_floating_point():
        x.requires_grad_()
    # Running statistics are written to: not to a row that is there over and over.
    statistics = [value.clone() for value in (mean, var)]
    got = answer(
        ops.batchnorm, x, weight, bias, *statistics, residual, training=training, relu=relu, groups=groups, eps=eps,
        counts=counts,
    )  # fmt: skip
    if got is None:
        return
    assert got.shape == x.shape
    got.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    if training:
        # Of a batch's statistics where numbers are wild there is little to say; tests/ops/test_batchnorm.py says it.
        return
    with np.errstate(all="ignore"):
        exact = [value.detach().double()[:, None, None] for value in (weight, bias, mean, var)]
        want = (x.detach().double() - exact[2]) * torch.rsqrt(exact[3] + eps) * exact[0] + exact[1]
    # In float32 the formula is x * scale + shift, whose terms may cancel.
    terms = (x.detach().double().abs() + exact[2].abs()) * (torch.rsqrt(exact[3] + eps) * exact[0]).abs() + 1
    want = want if residual is None else want + residual.double()
    want = want.relu() if relu else want
    both = got.isfinite() & want.isfinite() & (terms < 1e30)
    error = (got.detach().double() - want)[both].abs()
    assert bool((error <= 2e-2 * (terms + want.abs())[both]).all())


@FEWER
@given(
    data=st.data(),
    height=size,
    channels=st.sampled_from([0, 1, 3, 16, 70]),
    length=st.integers(0, 30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    wild=st.booleans(),
)
def test_rows(
    isa: str, data: st.DataObject, height: int, channels: int, length: int, dtype: torch.dtype, wild: bool
) -> None:
    x = data.draw(tensors((height, channels), dtype))
    values = data.draw(tensors((length, channels), dtype))
    index = data.draw(tensors((length,), torch.int32))
    if not wild and index.dtype == torch.int32 and index.device.type == "cpu":
        index = index.clamp(-1, height - 1)
    got = answer(rows.gather, x, index, more=IndexError)
    if got is not None:
        assert torch.equal(bits(got), bits(rows_reference.gather(*tidy(x, index))))
    inverse = answer(rows.invert, index, height, more=IndexError)
    if inverse is None:
        return
    starts, members = rows_reference.invert(*tidy(index), height)
    used = int(starts[-1])
    assert torch.equal(inverse.starts, starts)
    assert torch.equal(inverse.members[:used], members[:used])
    base = data.draw(tensors((height, channels), dtype)) if data.draw(st.booleans()) else None
    if data.draw(st.booleans()):
        # Another inverse: of other places, or none at all.
        inverse = rows.Inverse(
            data.draw(tensors((height + 1,), torch.int32)), data.draw(tensors((length,), torch.int32))
        )
    got = answer(rows.total, values, inverse, base, more=IndexError)
    if got is None:
        return
    exact = [value.double() for value in tidy(values, *([] if base is None else [base]))]
    want = rows_reference.total(exact[0], *tidy(*inverse), *exact[1:])
    terms = rows_reference.total(exact[0].abs(), *tidy(*inverse), *(value.abs() for value in exact[1:]))
    both = got.isfinite() & want.isfinite() & (terms < 1e30)
    error = (got.double() - want)[both].abs()
    assert bool((error <= 2e-2 * terms[both]).all())
