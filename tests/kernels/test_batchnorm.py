"""The kernels of batch norm against the reference in float64: under Triton's interpreter, and on a GPU where one is."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

pytest.importorskip("triton")

from mgran_fast.kernels.tables import RowBlocks
from mgran_fast.reference import batchnorm as reference

# Relative: one rounding to the dtype after sums in float32. To bfloat16 the interpreter cuts off; a GPU rounds.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2.0**-11 + 2e-6, torch.bfloat16: 2.0**-7 + 2e-6}
# Of numbers of size 1, and of sums: relative to the largest of the channel.
ABSOLUTE = 4e-6
# Several tiles of rows for some programs and fewer for others, several blocks of channels, the last of each cut.
SMALL = RowBlocks(rows=8, channels=16, num_warps=4, num_stages=2, programs=8)
# images, channels, height, width, groups: even, odd, one channel, one row a group, one cell an image
SHAPES = [(4, 64, 4, 2, 4), (6, 3, 5, 3, 2), (3, 130, 3, 1, 1), (8, 1, 3, 7, 4), (4, 5, 1, 1, 4), (9, 18, 1, 1, 1)]


class Case:
    """Numbers on a grid, so that z is exact in float32, and 0 in many places: every z has the sign it should have."""

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: str = "cpu") -> None:
        *size, self.groups = shape
        generator = torch.Generator().manual_seed(sum(shape))

        def whole(low: int, high: int, *of: int) -> torch.Tensor:
            return torch.randint(low, high + 1, of, generator=generator).to(device)

        def field(low: int, high: int) -> torch.Tensor:
            made = (whole(low, high, *size) / 4).to(dtype)
            return made.to(memory_format=torch.channels_last)

        per_group = (self.groups, size[1])
        self.x, self.residual, self.dy = field(-12, 12), field(-8, 8), field(-9, 9)
        self.scale, self.shift = whole(1, 4, *per_group) / 2, whole(-3, 3, *per_group) / 4
        self.scale[:, ::3] *= -1
        self.mean, self.invstd = whole(-9, 9, *per_group) / 7, whole(1, 9, *per_group) / 3
        self.dbias_mean, self.dweight_mean = whole(-9, 9, *per_group) / 11, whole(-9, 9, *per_group) / 13


def assert_close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype, size: float | torch.Tensor = 1.0) -> None:
    """Within the dtype's tolerance relative, and ABSOLUTE times ``size``; NaN in the same places."""
    assert got.shape == want.shape
    assert torch.equal(got.isnan(), want.isnan())
    error = torch.where(want.isnan(), 0.0, (got.double() - want).abs())
    # Written so that NaN fails.
    assert bool((error <= TOLERANCES[dtype] * want.abs().nan_to_num() + ABSOLUTE * size).all())


def check(module: ModuleType, case: Case, residual: bool, relu: bool, blocks: RowBlocks | None) -> None:
    """apply, reduce and grad equal the reference; what is written is as the module says."""
    r = case.residual if residual else None
    dtype, x, dy = case.x.dtype, case.x.double(), case.dy.double()
    wide = None if r is None else r.double()
    affine, moments = (case.scale, case.shift), (case.mean, case.invstd)
    sums = (case.dbias_mean, case.dweight_mean)
    y = module.apply(case.x, r, *affine, relu, blocks=blocks)
    assert_close(y, reference.apply(x, wide, *affine, relu), dtype)
    got = module.reduce(case.dy, case.x, r, *affine, *moments, relu, blocks=blocks)
    want = reference.reduce(dy, x, wide, *affine, *moments, relu)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        assert_close(a, b, torch.float32, size=case.x.numel() ** 0.5)
    dx, dresidual = module.grad(case.dy, case.x, r, *affine, *moments, *sums, relu, residual, blocks=blocks)
    want = reference.grad(dy, x, wide, *affine, *moments, *sums, relu)
    assert_close(dx, want[0], dtype, size=10)
    assert (dresidual is None) == (not residual)
    if residual:
        assert_close(dresidual, want[1], dtype)
    for made in (y, dx) if dresidual is None else (y, dx, dresidual):
        assert made.dtype == dtype
        assert made.is_contiguous(memory_format=torch.channels_last)


def check_statistics(module: ModuleType, x: torch.Tensor, groups: int, blocks: RowBlocks | None) -> None:
    mean, var = module.statistics(x, groups, blocks=blocks)
    want_mean, want_var = reference.statistics(x.double(), groups)
    assert mean.dtype == var.dtype == torch.float32
    # A mean is as wrong as its own rounding and that of its sum, whose terms are as large as the deviation.
    assert_close(mean, want_mean, torch.float32, size=want_var.sqrt())
    assert_close(var, want_var, torch.float32, size=want_var)


def test_the_whole_of_it_against_autograd(batchnorm: ModuleType) -> None:
    """Through statistics, weight and bias, as a batch norm of torch's for each group."""
    groups, eps = 2, 1e-5
    case = Case((8, 18, 3, 1, groups), torch.float32)
    weight, bias = case.scale[0].clone(), case.shift[0].clone()
    mean, var = batchnorm.statistics(case.x, groups, blocks=SMALL)
    invstd, scale, shift = reference.coefficients(mean, var, weight, bias, eps)
    given = (case.x, case.residual, scale, shift)
    y = batchnorm.apply(*given, relu=True, blocks=SMALL)
    dbias, dweight = batchnorm.reduce(case.dy, *given, mean, invstd, relu=True, blocks=SMALL)
    rows = case.x[:, 0].numel() / groups
    shares = (dbias / rows, dweight / rows)
    dx, dresidual = batchnorm.grad(case.dy, *given, mean, invstd, *shares, relu=True, want_residual=True, blocks=SMALL)
    leaves = [t.double().requires_grad_() for t in (case.x, case.residual, weight, bias)]
    parts = reference.grouped(leaves[0], groups).unbind(1)
    normal = [torch.nn.functional.batch_norm(p, None, None, *leaves[2:], training=True, eps=eps) for p in parts]
    z = torch.stack(normal, 1).flatten(0, 1) + leaves[1]
    # No sign hangs on a rounding.
    assert z.abs().min() > 1e-4
    wanted = torch.autograd.grad(z.relu(), leaves, case.dy.double())
    assert_close(y, z.relu().detach(), torch.float32)
    for got, want in zip((dx, dresidual, dweight.sum(0), dbias.sum(0)), wanted, strict=True):
        assert_close(got, want, torch.float32, size=10)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_dtypes(batchnorm: ModuleType, dtype: torch.dtype, residual: bool, relu: bool, groups: int) -> None:
    case = Case((8, 18, 3, 2, groups), dtype)
    z = reference.apply(case.x.double(), case.residual.double() if residual else None, case.scale, case.shift, False)
    assert (z == 0).sum() > 10
    check(batchnorm, case, residual, relu, SMALL)


@pytest.mark.parametrize("blocks", [SMALL, None], ids=["small tiles", "table's tiles"])
def test_nan_stays_in_its_channel(batchnorm: ModuleType, blocks: RowBlocks | None) -> None:
    case = Case((4, 20, 3, 2, 2), torch.float32)
    case.x[1, 3, 2, 1] = case.residual[2, 5, 0, 0] = torch.nan
    check(batchnorm, case, residual=True, relu=True, blocks=blocks)
    mean, var = batchnorm.statistics(case.x, 2, blocks=blocks)
    assert mean.isnan().sum() == var.isnan().sum() == 1
    assert mean[1, 3].isnan()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blocks", [SMALL, None], ids=["small tiles", "table's tiles"])
def test_statistics(batchnorm: ModuleType, shape: tuple[int, int, int, int, int], blocks: RowBlocks | None) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape[:4], generator=generator).to(memory_format=torch.channels_last)
    for dtype in TOLERANCES if shape is SHAPES[1] else [torch.float32]:
        check_statistics(batchnorm, x.to(dtype), shape[4], blocks)


@pytest.mark.parametrize("outlier", [0.0, 1e4, -1e6])
def test_a_large_mean_and_a_small_variance(batchnorm: ModuleType, outlier: float) -> None:
    """Within float32's own rounding of the numbers; also where one of them, the first or the last, is none of them."""
    generator = torch.Generator().manual_seed(3)
    x = (1000 + 0.01 * torch.randn((4, 6, 5, 7), generator=generator)).to(memory_format=torch.channels_last)
    x[0, 1, 0, 0] += outlier
    x[3, 2, 4, 6] += outlier
    for groups in (1, 2):
        check_statistics(batchnorm, x, groups, SMALL)


def test_a_constant_has_no_variance(batchnorm: ModuleType) -> None:
    x = torch.full((4, 3, 5, 7), 0.1).to(memory_format=torch.channels_last)
    mean, var = batchnorm.statistics(x, 2, blocks=SMALL)
    assert torch.equal(mean, torch.full((2, 3), 0.1))
    assert not var.any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blocks", [SMALL, None], ids=["small tiles", "table's tiles"])
def test_shapes(batchnorm: ModuleType, shape: tuple[int, int, int, int, int], blocks: RowBlocks | None) -> None:
    check(batchnorm, Case(shape, torch.float32), residual=True, relu=True, blocks=blocks)


@pytest.mark.parametrize("groups", [1, 3])
def test_nobody(batchnorm: ModuleType, groups: int) -> None:
    case = Case((0, 5, 3, 2, groups), torch.float16)
    given = (case.x, case.residual, case.scale, case.shift)
    for made in (
        *batchnorm.statistics(case.x, groups),
        *batchnorm.reduce(case.dy, *given, case.mean, case.invstd, True),
    ):
        assert made.tolist() == [[0.0] * 5] * groups
    moments, sums = (case.mean, case.invstd), (case.dbias_mean, case.dweight_mean)
    for made in (batchnorm.apply(*given, True), *batchnorm.grad(case.dy, *given, *moments, *sums, True, True)):
        assert made.shape == (0, 5, 3, 2)
        assert made.dtype == torch.float16


def test_too_many_rows(batchnorm: ModuleType) -> None:
    x = torch.empty((2**16, 1, 2**8, 2**7), device="meta")
    with pytest.raises(ValueError, match="no more than 2147418112 cells, not 2147483648"):
        batchnorm.statistics(x, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("shape", [*SHAPES, (32, 64, 64, 32, 4), (16, 512, 16, 8, 1)])
def test_on_a_gpu(dtype: torch.dtype, shape: tuple[int, int, int, int, int]) -> None:
    from mgran_fast.kernels import batchnorm

    case = Case(shape, dtype, "cuda")
    for residual, relu in ((True, True), (False, True), (True, False), (False, False)):
        check(batchnorm, case, residual, relu, None)
    check_statistics(batchnorm, case.x + 100 * case.scale[0, 0].to(dtype), shape[4], None)
