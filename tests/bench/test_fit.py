"""Cost that grows: known costs are found again, and curves are put together from races."""

from __future__ import annotations

from typing import Any

import pytest

from mgran_fast.bench.fit import curves, fit
from mgran_fast.errors import DataError

SIZES = (1, 2, 5, 10, 20, 50, 100, 200)


def test_a_known_cost() -> None:
    found = fit(SIZES, [6 + 0.4 * size for size in SIZES])
    assert (found.fixed, found.each) == pytest.approx((6, 0.4))
    assert found.at(1000) == pytest.approx(406)
    assert found.exponent < 0.9  # 6 ms still tell at the largest
    assert found.text.startswith("6 ms + 0.4 ms each, exponent 0.")


def test_errors_are_relative() -> None:
    """A tenth too much of the longest time must not make the shortest one several times wrong."""
    times = [1 + 0.5 * size for size in SIZES]
    times[-1] *= 1.1
    assert fit(SIZES, times).at(1) == pytest.approx(times[0], rel=0.05)


@pytest.mark.parametrize(("times", "fixed", "exponent"), [
    ([0.001 * size**2 for size in SIZES], 0, 2), ([0.3 * size for size in SIZES], 0, 1),
])  # fmt: skip
def test_no_call_has_a_negative_cost(times: list[float], fixed: float, exponent: float) -> None:
    found = fit(SIZES, times)
    assert found.fixed == pytest.approx(fixed, abs=1e-9)
    assert found.each > 0
    assert found.exponent == pytest.approx(exponent)


def test_cost_that_falls_is_fixed() -> None:
    found = fit(SIZES, [5 - 0.01 * size for size in SIZES])
    assert found.each == 0
    assert 3 < found.fixed < 5


def test_order_does_not_matter() -> None:
    times = [1 + 0.5 * size**1.1 for size in SIZES]
    assert fit(SIZES[::-1], times[::-1]) == fit(SIZES, times)


@pytest.mark.parametrize(
    ("sizes", "times"), [([1], [1]), ([2, 2], [1, 1]), ([0, 1], [1, 1]), ([1, 2], [1, 0]), ([1], [1, 2])]
)
def test_what_has_no_fit(sizes: list[float], times: list[float]) -> None:
    with pytest.raises(DataError, match="two different sizes"):
        fit(sizes, times)


def test_curves_of_a_record(suite_record: dict[str, Any]) -> None:
    found = curves(suite_record["results"][::-1])
    assert [(curve.name, curve.axis, curve.threads) for curve in found] == [
        ("embedding, more people", "people", 2),
        ("embedding, more people", "people", 1),
        ("crops of a frame", "boxes", 2),
        ("search, larger gallery", "gallery", 2),
        ("ranking, larger gallery", "gallery", 2),
    ]
    assert found[0].at == {"precision": "bfloat16"}
    assert found[1].sizes == [1, 2, 4, 8, 16]
    assert list(found[1].milliseconds["ours"]) == found[1].sizes
    known = found[0].fit("ours")
    assert known is not None
    assert (known.fixed, known.each) == pytest.approx((8, 25))
    assert found[0].fit("nobody") is None
