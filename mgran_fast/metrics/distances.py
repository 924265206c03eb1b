"""Distances between embeddings: Euclidean, cosine, and over the parts that both pictures show.

All of them run in float32 (float64 when an input is float64) whatever autocast and the matmul precision of
the process say: reduced precision swaps neighbours in a ranking. Gradients are not recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

#: What the functions of this package take for numbers: a tensor, a NumPy array, or a (nested) list.
Numbers: TypeAlias = torch.Tensor | npt.NDArray[Any] | Sequence[Any]
#: ``rows(start, stop)`` gives something of these rows for every column, a tensor [stop - start, M].
Rows: TypeAlias = Callable[[int, int], torch.Tensor]

METRICS = ("euclidean", "cosine")
#: How many distances are worked on at once when no ``chunk`` is given.
CHUNK_DISTANCES = 2**23
#: Of products so many rows at least: 90 rows of a large gallery take half as long again for each.
PRODUCT_ROWS = 384
# Columns of one product on a CPU: a chunk's few rows by a whole gallery at once take half as long again.
_COLUMNS = 768


@dataclass(frozen=True, eq=False)
class Pairs:
    """The distances of N rows to M columns, prepared; each is computed when it is asked for.

    Attributes:
        shape: N, M.
        kind: "distances", or the metric of the embeddings whose products :attr:`values` are.
        values: float32 or float64, contiguous: the distances, or the products. They may be somebody else's memory.
        row_terms, column_terms: with products, in their dtype, [N] and [M]: the squared lengths of the embeddings
            ("euclidean"), or the inverses of their lengths ("cosine").
        device: where all this is.
    """

    shape: tuple[int, int]
    kind: str
    values: Rows
    row_terms: torch.Tensor | None
    column_terms: torch.Tensor | None
    device: torch.device

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """The distances [stop - start, M] of these rows, a new tensor."""
        values = self.values(start, stop)
        if self.row_terms is None or self.column_terms is None:
            # The sum is a copy, and turns -0 into 0, which some sorts tell apart.
            return values.add(0.0)
        return finish(self.kind, values, self.row_terms[start:stop, None], self.column_terms)


def finish(metric: str, products: torch.Tensor, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Products of embeddings become distances, in place, by the terms of :class:`Pairs`."""
    if metric == "euclidean":
        return products.mul_(-2).add_(own).add_(other).clamp_(min=0).sqrt_()
    return products.mul_(own).mul_(other).neg_().add_(1).clamp_(0, 2)


def terms(features: torch.Tensor, metric: str, dtype: torch.dtype, name: str) -> torch.Tensor:
    """What :func:`finish` takes of embeddings [N, D]: [N], in ``dtype``.

    Raises ValueError, which calls them ``name``, for a row that holds NaN, infinite or huge values.
    """
    squares = _squares(features, name).to(dtype)
    return squares if metric == "euclidean" else _inverse(squares.sqrt())


def as_tensor(values: Numbers, name: str) -> torch.Tensor:
    """``values`` as a tensor without gradients; NumPy memory is shared where that is possible.

    Raises TypeError, naming the argument ``name``, for anything that is not an array of numbers.
    """
    if isinstance(values, torch.Tensor):
        return values.detach()
    try:
        array = np.asarray(values)
    except ValueError as error:  # a ragged list
        raise TypeError(f"{name} must be a tensor or an array of numbers: {error}") from None
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and array.dtype.itemsize > 8):
        raise TypeError(f"{name} must be a tensor or an array of numbers, not of {array.dtype}")
    # torch takes neither the other byte order nor negative strides, and warns about read-only memory.
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    # An array of one row or none counts as contiguous whatever its strides.
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()
    return torch.from_numpy(array)


def rows_per_chunk(chunk: int | None, columns: int, least: int = 1) -> int:
    """The number of rows to work on at once: ``chunk``, by default ``least`` or more.

    Raises ValueError for a ``chunk`` under 1.
    """
    if chunk is None:
        return max(least, CHUNK_DISTANCES // max(1, columns))
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 row, not {chunk}")
    return int(chunk)


def pairwise(
    a: Numbers,
    b: Numbers,
    metric: str = "euclidean",
    a_visibility: Numbers | None = None,
    b_visibility: Numbers | None = None,
    *,
    names: tuple[str, str] = ("a", "b"),
) -> Pairs:
    """Check two sets of embeddings, and prepare their distances without computing any.

    Arguments and errors are those of :func:`euclidean`, :func:`cosine` and, with
    visibilities, :func:`visible`; ``names`` is what the errors call ``a`` and ``b``.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
    left, right = _features(a, names[0]), _features(b, names[1])
    if left.device != right.device:
        raise ValueError(f"{names[0]} is on {left.device} and {names[1]} on {right.device}: move one of them")
    dtype = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
    if (a_visibility is None) != (b_visibility is None):
        missing = names[0] if a_visibility is None else names[1]
        raise ValueError(f"the visibility of {missing} is missing: give it for both or for neither")
    if a_visibility is not None and b_visibility is not None:
        left, left_seen = _parts(left, a_visibility, names[0])
        right, right_seen = _parts(right, b_visibility, names[1])
        if left.shape[1:] != right.shape[1:]:
            raise ValueError(
                f"{names[0]} and {names[1]} must have the same parts [P, D]: "
                f"{list(left.shape[1:])} and {list(right.shape[1:])}"
            )
        _squares(left.flatten(0, 1), names[0])
        _squares(right.flatten(0, 1), names[1])
        rows = _visible_rows(left, right, left_seen, right_seen, metric, dtype)
        return Pairs((left.shape[0], right.shape[0]), "distances", rows, None, None, left.device)
    if left.ndim != 2 or right.ndim != 2:
        raise ValueError(
            f"{names[0]} and {names[1]} must be [N, D] and [M, D], not {list(left.shape)} and "
            f"{list(right.shape)}; parts [N, P, D] need their visibility too"
        )
    if left.shape[1] != right.shape[1]:
        raise ValueError(
            f"{names[0]} has {left.shape[1]} features a row and {names[1]} {right.shape[1]}: "
            "they must come from the same model"
        )
    own, other = (terms(side, metric, dtype, name) for side, name in zip((left, right), names, strict=True))
    right = right.to(dtype)

    def products(start: int, stop: int) -> torch.Tensor:
        return product(left[start:stop], right)

    return Pairs((left.shape[0], right.shape[0]), metric, products, own, other, left.device)


def euclidean(a: Numbers, b: Numbers, *, chunk: int | None = None) -> torch.Tensor:
    """Euclidean distances |a_i - b_j| = sqrt(|a_i|^2 + |b_j|^2 - 2 a_i . b_j), clamped at 0.

    The sum of squares cancels where two vectors are close: in float32 a distance is off by up to about
    3e-4 times the length of the vectors. Pass float64 where that matters.

    Args:
        a: floating point [N, D], tensor or array, of any length.
        b: floating point [M, D], on the same device.
        chunk: rows of ``a`` per step; by default about 8 million distances, but at least 384 rows. Besides the
            result it takes a float copy of ``chunk`` rows of ``a``, and of ``b`` where the dtypes differ.

    Returns:
        float32 [N, M], float64 when an input is float64, at least 0.

    Raises:
        TypeError: an input is not floating point.
        ValueError: shapes or devices do not fit, a value is NaN, infinite or too large to square.
    """
    return _fill(pairwise(a, b, "euclidean"), chunk)


def cosine(a: Numbers, b: Numbers, *, chunk: int | None = None) -> torch.Tensor:
    """Cosine distances 1 - a_i . b_j / (|a_i| |b_j|), in [0, 2]; a zero vector is at distance 1 of everything.

    Arguments, memory and errors as for :func:`euclidean`.
    """
    return _fill(pairwise(a, b, "cosine"), chunk)


def visible(
    a: Numbers,
    b: Numbers,
    a_visibility: Numbers,
    b_visibility: Numbers,
    *,
    metric: str = "euclidean",
    chunk: int | None = None,
) -> torch.Tensor:
    """Part distances, averaged over the parts that both sides show.

        d_ij = sum_p va_ip vb_jp d(a_ip, b_jp) / sum_p va_ip vb_jp

    Each part is first brought to unit length, so that all parts weigh the same. d is the *squared* Euclidean
    distance 2 - 2 cos, in [0, 4], or the cosine distance 1 - cos, in [0, 2]; both give the same ranking. A pair
    without a part in common has the largest possible distance, 4 or 2: it comes last, with its like. What
    hidden parts hold is not looked at, as long as it is finite.

    Args:
        a: floating point [N, P, D], or [N, P * D] part after part as a model returns it.
        b: floating point [M, P, D] or [M, P * D].
        a_visibility: 0 and 1 (or bool) [N, P]: 1 where the part is seen.
        b_visibility: the same, [M, P].
        metric: "euclidean" or "cosine".
        chunk: rows of ``a`` per step, as for :func:`euclidean`. Takes a float copy of ``b`` besides.

    Returns:
        float32 [N, M], float64 when an input is float64.

    Raises:
        TypeError, ValueError: as :func:`euclidean`; also a visibility other than 0 and 1.
    """
    return _fill(pairwise(a, b, metric, a_visibility, b_visibility), chunk)


@torch.no_grad()
def _fill(pairs: Pairs, chunk: int | None) -> torch.Tensor:
    n, m = pairs.shape
    step = rows_per_chunk(chunk, m, PRODUCT_ROWS)
    if n <= step:
        return pairs.rows(0, n)
    first = pairs.rows(0, step)
    out = first.new_empty(n, m)
    out[:step] = first
    for start in range(step, n, step):
        stop = min(start + step, n)
        out[start:stop] = pairs.rows(start, stop)
    return out


def _features(values: Numbers, name: str) -> torch.Tensor:
    features = as_tensor(values, name)
    if not features.is_floating_point():
        raise TypeError(f"{name} must be floating point, not {features.dtype}")
    return features


def _parts(features: torch.Tensor, visibility: Numbers, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features as [N, P, D] and visibility as bool [N, P]."""
    seen = as_tensor(visibility, f"the visibility of {name}")
    if seen.ndim != 2 or seen.shape[1] == 0 or seen.shape[0] != features.shape[0]:
        raise ValueError(
            f"the visibility of {name} must be [N, P] for {name} [N, P, D], not {list(seen.shape)} "
            f"for {list(features.shape)}"
        )
    if not bool(((seen == 0) | (seen == 1)).all()):
        raise ValueError(f"the visibility of {name} must be 0 or 1: threshold it first")
    parts = seen.shape[1]
    if features.ndim == 2 and features.shape[1] % parts == 0:
        features = features.reshape(features.shape[0], parts, features.shape[1] // parts)
    if features.ndim != 3 or features.shape[1] != parts:
        raise ValueError(
            f"{name} must be [N, {parts}, D] or [N, {parts} * D] for a visibility of {parts} parts, "
            f"not {list(features.shape)}"
        )
    return features, (seen == 1).to(features.device)


def _squares(features: torch.Tensor, name: str) -> torch.Tensor:
    """The squared length of each row, at least float32. Raises ValueError for a row that has none."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    squares = torch.empty(len(features), dtype=dtype, device=features.device)
    # Not the square of a norm, which rounds twice. In blocks, to hold no second copy of a gallery; and nothing is
    # allocated beside a block, or the C library would not use its memory for the next one.
    for block, out in zip(features.split(2**8), squares.split(2**8), strict=True):
        torch.sum(block.to(dtype).square(), dim=1, out=out)
    bad = ~squares.isfinite()
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"{name} holds NaN, infinite or huge values in {int(bad.sum())} rows, first in row {row}: "
            "look at the model and its inputs"
        )
    return squares


def _inverse(lengths: torch.Tensor) -> torch.Tensor:
    """1 / length, and 0 for a zero vector, which then has cosine 0 with everything."""
    return torch.where(lengths > torch.finfo(lengths.dtype).tiny, lengths.reciprocal(), 0)


def _visible_rows(
    a: torch.Tensor, b: torch.Tensor, a_seen: torch.Tensor, b_seen: torch.Tensor, metric: str, dtype: torch.dtype
) -> Rows:
    # With hidden parts set to 0, one product sums the cosines of the parts that both sides show.
    def masked(features: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        features = features.to(dtype)
        scale = _inverse(torch.linalg.vector_norm(features, dim=2))
        return (features * torch.where(seen, scale, 0)[..., None]).flatten(1)

    b_masked, b_count = masked(b, b_seen), b_seen.to(dtype)
    factor = 2.0 if metric == "euclidean" else 1.0

    def rows(start: int, stop: int) -> torch.Tensor:
        cosines = product(masked(a[start:stop], a_seen[start:stop]), b_masked)
        shared = product(a_seen[start:stop].to(dtype), b_count)
        distances = cosines.div_(shared.clamp(min=1)).neg_().add_(1).clamp_(0, 2).mul_(factor)
        return distances.masked_fill_(shared == 0, 2 * factor)

    return rows


def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """``a @ b.T`` in the full precision of b's dtype; into ``out`` [N, M], which may be some columns of a matrix."""
    with torch.no_grad(), torch.autocast(b.device.type, enabled=False), _full_precision():
        a = a.to(b.dtype)
        out = a.new_empty(len(a), len(b)) if out is None else out
        step = _COLUMNS if b.device.type == "cpu" else max(1, len(b))
        for columns, part in zip(out.split(step, dim=1), b.split(step), strict=True):
            torch.mm(a, part.T, out=columns)
        return out


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32 or bfloat16 inside float32 products; training loops commonly allow them process-wide."""
    backends: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    if all(hasattr(backend, "fp32_precision") for backend in backends):
        # The switch of each backend: reading the common one fails where somebody has set only one of them.
        before = [backend.fp32_precision for backend in backends]
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision
    else:
        common = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(common)
