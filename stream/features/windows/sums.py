"""Exact integer sums in machine words, and the floats that are made from them.

Amounts are integers up to 1e15 minor units (below 2**50). Their sums and sums of squares are kept exact
as limbs in base 2**25, each an int64 that is added to without carrying: 2**38 additions fit. Only the
last step of a feature is floating point, so every way of adding the same events gives the same bits.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from stream.jit import Ints, jit, jit_alloc

__all__ = ["ACC_SIZE", "LIMB_BITS", "limbs_to_float", "mean_of", "std_of", "sum_of"]

LIMB_BITS: Final = 25
_BASE: Final = 1 << LIMB_BITS
_MASK: Final = _BASE - 1
_SMALL: Final = 1 << 36
_EXACT_PRODUCT: Final = 4.0e18  # below 2**62, with room for the rounding of the test itself


@jit
def limbs_to_float(limbs: Ints, count: int) -> float:
    """Return the float nearest to a non-negative number of ``count`` carried limbs (ties to even).

    A negative number, which only a damaged history makes, gives NaN.
    """
    top = count - 1
    while top >= 0 and limbs[top] == 0:
        top -= 1
    if top < 0:
        return 0.0
    value = limbs[top]
    if value < 0:
        return math.nan
    bits = 0
    while (value >> bits) != 0:
        bits += 1
    index = top - 1
    while index >= 0 and bits + LIMB_BITS <= 62:
        value = (value << LIMB_BITS) | limbs[index]
        bits += LIMB_BITS
        index -= 1
    if index < 0:
        return float(value)
    room = 62 - bits
    value = (value << room) | (limbs[index] >> (LIMB_BITS - room))
    lost = limbs[index] & ((1 << (LIMB_BITS - room)) - 1)
    exponent = LIMB_BITS * index + (LIMB_BITS - room)
    index -= 1
    while index >= 0 and lost == 0:
        lost = limbs[index]
        index -= 1
    if lost != 0:
        value |= 1  # sticky: enough for one correct rounding, since 62 bits become 53
    return math.ldexp(float(value), exponent)


@jit
def _carry(limbs: Ints, count: int) -> None:
    for index in range(count - 1):
        limbs[index + 1] += limbs[index] >> LIMB_BITS
        limbs[index] &= _MASK


@jit_alloc
def sum_of(s0: int, s1: int) -> float:
    """Return the float nearest to ``s1 * 2**25 + s0``."""
    if s1 < _SMALL:
        return float((s1 << LIMB_BITS) + s0)
    limbs = np.zeros(4, np.int64)
    limbs[0] = s0
    limbs[1] = s1
    _carry(limbs, 4)
    return limbs_to_float(limbs, 4)


@jit
def mean_of(count: int, s0: int, s1: int) -> float:
    """Return the mean, in minor units; NaN without events."""
    if count == 0:
        return math.nan
    return sum_of(s0, s1) / float(count)


@jit_alloc
def _spread_numerator(count: int, s0: int, s1: int, q0: int, q1: int, q2: int, q3: int) -> float:
    """Return the float nearest to the exact ``n * sum(x**2) - sum(x)**2``."""
    if q2 == 0 and q3 == 0 and s1 < _SMALL and q1 < _SMALL:
        total = (s1 << LIMB_BITS) + s0
        squares = (q1 << LIMB_BITS) + q0
        if float(count) * float(squares) < _EXACT_PRODUCT:
            return float(count * squares - total * total)
    size = 14
    sums = np.zeros(5, np.int64)
    sums[0] = s0
    sums[1] = s1
    _carry(sums, 5)
    squares_limbs = np.zeros(8, np.int64)
    squares_limbs[0] = q0
    squares_limbs[1] = q1
    squares_limbs[2] = q2
    squares_limbs[3] = q3
    _carry(squares_limbs, 8)
    n0 = count & _MASK
    n1 = count >> LIMB_BITS
    result = np.zeros(size, np.int64)
    for i in range(8):
        result[i] += n0 * squares_limbs[i]
        result[i + 1] += n1 * squares_limbs[i]
    for i in range(5):
        for j in range(5):
            result[i + j] -= sums[i] * sums[j]
    # An arithmetic shift floors, so borrows travel upwards as negative carries; the total is >= 0.
    _carry(result, size)
    return limbs_to_float(result, size)


@jit
def std_of(count: int, s0: int, s1: int, q0: int, q1: int, q2: int, q3: int) -> float:
    """Return the sample standard deviation (n - 1), in minor units; NaN below two events."""
    if count < 2:
        return math.nan
    numerator = _spread_numerator(count, s0, s1, q0, q1, q2, q3)
    return math.sqrt(numerator / (float(count) * float(count - 1)))


# Columns of the accumulator; each window has a row.
_N: Final = 0
_S0: Final = 1
_Q0: Final = 3
_TOP: Final = 7
_DISTINCT: Final = 8
ACC_SIZE: Final = 9


@jit
def _popcount(bits: int) -> int:
    """Return the number of bits set in the low 32."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    return ((((bits + (bits >> 4)) & 0x0F0F0F0F) * 0x01010101) & 0xFFFFFFFF) >> 24


@jit
def _add_amount(acc: Ints, row: int, amount: int) -> None:
    low = amount & _MASK
    high = amount >> LIMB_BITS
    acc[row, _N] += 1
    acc[row, _S0] += low
    acc[row, _S0 + 1] += high
    square = low * low
    acc[row, _Q0] += square & _MASK
    square = (square >> LIMB_BITS) + 2 * low * high
    acc[row, _Q0 + 1] += square & _MASK
    square = (square >> LIMB_BITS) + high * high
    acc[row, _Q0 + 2] += square & _MASK
    acc[row, _Q0 + 3] += square >> LIMB_BITS
    acc[row, _TOP] = max(acc[row, _TOP], amount)


@jit
def _add_sums(acc: Ints, row: int, count: int, sums: Ints, live_count: int) -> None:
    acc[row, _N] += count
    total = sums[0]
    acc[row, _S0] += total & _MASK
    acc[row, _S0 + 1] += total >> LIMB_BITS
    squares = sums[1]
    acc[row, _Q0] += squares & _MASK
    acc[row, _Q0 + 1] += squares >> LIMB_BITS
    squares = sums[2]
    acc[row, _Q0 + 2] += squares & _MASK
    acc[row, _Q0 + 3] += squares >> LIMB_BITS
    acc[row, _TOP] = max(acc[row, _TOP], sums[3])
    acc[row, _DISTINCT] += live_count


@jit
def _write_sums(acc: Ints, row: int, sums: Ints) -> None:
    """Carry the limbs of an accumulator's row and pack them."""
    for limb in range(3):
        acc[row, _Q0 + limb + 1] += acc[row, _Q0 + limb] >> LIMB_BITS
        acc[row, _Q0 + limb] &= _MASK
    sums[0] = (acc[row, _S0 + 1] << LIMB_BITS) + acc[row, _S0]
    sums[1] = (acc[row, _Q0 + 1] << LIMB_BITS) | acc[row, _Q0]
    sums[2] = (acc[row, _Q0 + 3] << LIMB_BITS) | acc[row, _Q0 + 2]
    sums[3] = acc[row, _TOP]


@jit
def _mean(acc: Ints, row: int) -> float:
    return mean_of(acc[row, _N], acc[row, _S0], acc[row, _S0 + 1])


@jit
def _std(acc: Ints, row: int) -> float:
    return std_of(
        acc[row, _N], acc[row, _S0], acc[row, _S0 + 1],
        acc[row, _Q0], acc[row, _Q0 + 1], acc[row, _Q0 + 2], acc[row, _Q0 + 3],
    )  # fmt: skip
