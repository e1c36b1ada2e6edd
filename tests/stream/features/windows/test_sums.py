"""Sums, means and spreads are those of exact integers."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.features.windows import sums as exact
from stream.features.windows.sums import ACC_SIZE, _add_amount
from support.window_histories import REPEATABLE, amounts

# --- (d) exact sums ------------------------------------------------------------------------------------

repeated = st.lists(st.tuples(amounts, st.integers(1, 2**30)), min_size=1, max_size=8)


def limbs(values: list[tuple[int, int]]) -> tuple[int, list[int], list[int]]:
    """Return count, the two limbs of the sum and the four of the sum of squares, as the kernel adds them."""
    acc = np.zeros((1, ACC_SIZE), np.int64)
    totals = np.zeros(ACC_SIZE, np.int64)
    for amount, times in values:
        acc[:] = 0
        _add_amount(acc, 0, amount)
        totals += acc[0] * times
    found = totals.tolist()
    return found[0], found[1:3], found[3:7]


@REPEATABLE
@given(repeated)
def test_sums_means_and_spreads_are_those_of_integers(values: list[tuple[int, int]]) -> None:
    count, sums, squares = limbs(values)
    total = sum(amount * times for amount, times in values)
    total_squares = sum(amount * amount * times for amount, times in values)
    assert count == sum(times for _, times in values)
    assert exact.sum_of(*sums) == float(total)
    assert exact.mean_of(count, *sums) == float(total) / float(count)
    numerator = count * total_squares - total**2
    spread = exact.std_of(count, *sums, *squares)
    if count < 2:
        assert math.isnan(spread)
    else:
        assert spread == math.sqrt(float(numerator) / (float(count) * float(count - 1)))


@REPEATABLE
@given(st.integers(1, 200), st.integers(0, 200), st.integers(-3, 3))
def test_floats_are_the_nearest_ties_to_even(high_bit: int, low_bit: int, nudge: int) -> None:
    value = max(0, (1 << high_bit) + (1 << min(low_bit, high_bit)) + nudge)
    carried = np.array([value >> (25 * at) & (2**25 - 1) for at in range(10)], np.int64)
    assert exact.limbs_to_float(carried, 10) == float(value)


@REPEATABLE
@given(st.integers(0, 2**250))
def test_floats_are_the_nearest(value: int) -> None:
    carried = np.array([value >> (25 * at) & (2**25 - 1) for at in range(12)], np.int64)
    assert exact.limbs_to_float(carried, 12) == float(value)


def test_nothing_has_no_mean_and_no_spread() -> None:
    assert exact.sum_of(0, 0) == 0.0
    assert math.isnan(exact.mean_of(0, 0, 0))
    assert math.isnan(exact.std_of(0, 0, 0, 0, 0, 0, 0))
    assert math.isnan(exact.std_of(1, 5, 0, 25, 0, 0, 0))
    assert exact.std_of(2, 10, 0, 50, 0, 0, 0) == 0.0
