"""The kernels' test cases: arguments of the launch ABI and what must come out, computed by mgran_fast.reference.

``cases(op, device)`` lists the cases of an op for the kernels of a device (``cuda`` or ``cpu``). Outputs and
workspaces begin as garbage, so that an unwritten byte shows. crops, regions, inputs and align are right to the bit, and
so are rows gathered and inverted, and rankings and re-rankings; pooling, batchnorm, totals of rows and chances of
shots within a tolerance of the reference in float64.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from abi import OK, Buffer

CUDA_OPS = ("crops", "regions", "inputs", "align")
ROWS_OPS = ("rows_gather", "rows_total", "rows_invert")
SEARCH_OPS = ("search_products", "search_first")
RERANK_OPS = ("rerank_nearest", "rerank_expand", "rerank_pairs", "rerank_mean", "rerank_jaccard")
CPU_OPS = (
    *CUDA_OPS,
    "pooling",
    "pooling_backward",
    "batchnorm",
    "batchnorm_backward",
    "ranking",
    "shots",
    *RERANK_OPS,
    *SEARCH_OPS,
    *ROWS_OPS,
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Case:
    """One call of an op.

    Attributes:
        name: unique among the op's cases.
        arguments: numbers, tuples and Buffers by the path of their field in the op's struct.
        expected: what every output must hold, by path: bits, or float64 where there is a tolerance.
        status: what the call returns.
        heavy: too much for the slow machines (ThreadSanitizer, the PTX simulator).
        dtype: of a floating output, for tolerances and words; by path where outputs differ.
        tolerance: by path, relative to the size of the output's numbers; none: to the bit.
        floor: by path, an absolute error that is allowed besides: the rounding of terms that cancel.
    """

    name: str
    op: str
    arguments: dict[str, Any]
    expected: dict[str, np.ndarray]
    status: int = OK
    heavy: bool = False
    dtype: torch.dtype | dict[str, torch.dtype] | None = None
    tolerance: dict[str, float] | None = None
    floor: dict[str, float] = field(default_factory=dict)

    def check(self, got: dict[str, np.ndarray]) -> str:
        """What is wrong, in one line; empty when all is right."""
        for path, want in self.expected.items():
            if path not in got:
                return f"{path} is missing"
            words = self._compare(path, got[path], want)
            if words:
                return f"{path}: {words}"
        return ""

    def _compare(self, path: str, got: np.ndarray, want: np.ndarray) -> str:
        got, want = got.reshape(-1), want.reshape(-1)
        if self.tolerance is None:
            got, want = got.view(np.uint8), want.view(np.uint8)
            if got.size != want.size:
                return f"{got.size} bytes, not {want.size}"
            wrong = np.flatnonzero(got != want)
            if wrong.size:
                at = int(wrong[0])
                return f"{wrong.size} of {want.size} bytes differ, the first at {at}: {got[at]}, not {want[at]}"
            return ""
        values = to_float64(got, self.dtype[path] if isinstance(self.dtype, dict) else self.dtype)
        if values.size != want.size:
            return f"{values.size} numbers, not {want.size}"
        scale = np.nan_to_num(np.abs(want), posinf=0.0)
        bound = self.tolerance[path] * (scale + (scale.mean() if scale.size else 0.0)) + self.floor.get(path, 0.0)
        same = (values == want) | (np.isnan(values) & np.isnan(want))
        with np.errstate(invalid="ignore"):
            # Written so that NaN is wrong.
            right = same | (np.abs(values - want) <= bound)
        wrong = np.flatnonzero(~right)
        if wrong.size:
            at = int(wrong[0])
            return f"{wrong.size} of {want.size} differ, the first at {at}: {values[at]:.6g}, not {want[at]:.6g}"
        return ""


def to_float64(bits: np.ndarray, dtype: torch.dtype | None) -> np.ndarray:
    if bits.size == 0:
        return np.zeros(0)
    tensor = torch.from_numpy(np.ascontiguousarray(bits).reshape(-1).view(np.uint8).copy())
    result: np.ndarray = tensor.view(dtype).double().numpy()
    return result


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's bytes in its logical order."""
    result: np.ndarray = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().copy()
    return result


def garbage(count: int, dtype: Any, seed: int, role: str, offset: int = 0) -> Buffer:
    """A buffer of ``count`` random elements for a kernel to write."""
    generator = np.random.default_rng(seed + 77)
    data = generator.integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    return Buffer(data, role, offset)


def seed_of(name: str) -> int:
    """A number that is the same in every run."""
    return zlib.crc32(name.encode())


@functools.cache
def cases(op: str, device: str = "cuda", heavy: bool = True) -> tuple[Case, ...]:
    """The cases of an op; ``heavy=False`` leaves out the big ones."""
    import cases_batchnorm
    import cases_geometry
    import cases_inputs
    import cases_pooling
    import cases_ranking
    import cases_rerank
    import cases_rows
    import cases_search
    import cases_shots

    makers: dict[str, Callable[[], Iterator[Case]]] = {
        "crops": cases_geometry.crops_cases,
        "regions": cases_geometry.regions_cases,
        "inputs": cases_inputs.inputs_cases,
        "align": cases_inputs.align_cases,
        "pooling": cases_pooling.forward_cases,
        "pooling_backward": cases_pooling.backward_cases,
        "batchnorm": cases_batchnorm.forward_cases,
        "batchnorm_backward": cases_batchnorm.backward_cases,
        "ranking": cases_ranking.ranking_cases,
        "shots": cases_shots.shots_cases,
        "rerank_nearest": cases_rerank.nearest_cases,
        "rerank_expand": cases_rerank.expand_cases,
        "rerank_pairs": cases_rerank.pairs_cases,
        "rerank_mean": cases_rerank.mean_cases,
        "rerank_jaccard": cases_rerank.jaccard_cases,
        "search_products": cases_search.products_cases,
        "search_first": cases_search.first_cases,
        "rows_gather": cases_rows.gather_cases,
        "rows_total": cases_rows.total_cases,
        "rows_invert": cases_rows.invert_cases,
    }
    if op not in (CUDA_OPS if device == "cuda" else CPU_OPS):
        raise ValueError(f"no op {op!r} for {device}")
    torch.set_num_threads(1)
    result = tuple(case for case in makers[op]() if heavy or not case.heavy)
    names = [case.name for case in result]
    assert len(set(names)) == len(names), f"two cases of {op} have one name"
    return result
