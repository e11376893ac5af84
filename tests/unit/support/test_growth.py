from __future__ import annotations

import pytest

from tests.support.growth import assert_linear


def sum_numbers(count: int) -> int:
    return sum(range(count))


def sum_to_square(count: int) -> int:
    """Cost as much with tracing, under coverage.py, as without."""
    return sum(range(count * count))


def test_linear() -> None:
    assert_linear(sum_numbers, lambda size: size, 2_000_000)


def test_quadratic() -> None:
    with pytest.raises(AssertionError, match=r"s for a size of 4000, .* s for half of it"):
        assert_linear(sum_to_square, lambda size: size, 4000)
