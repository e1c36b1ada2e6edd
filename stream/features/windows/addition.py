"""Adding a history's events up: whole chunks by their sums, chunks at a window's edge event by event."""

from __future__ import annotations

import numpy as np

from stream.features.windows.arrays import (
    _F_BUCKETS,
    _WINDOWS,
    AMOUNT,
    CHUNK,
    F_END,
    F_STRADDLING,
    H_BASE,
    H_FIRST_CHUNK,
    H_HEAD,
    H_LIVE,
    H_NEXT_CHUNK,
    H_PAGE,
    SEGMENT,
    TIME,
    Sealed,
    _bucket,
)
from stream.features.windows.chunks import _window_cache
from stream.features.windows.sums import _DISTINCT, _TOP, ACC_SIZE, _add_amount, _add_sums, _popcount
from stream.jit import Ints, jit

__all__ = ["accumulate", "add_history"]


@jit
def _add_event(acc: Ints, low: Ints, events: Ints, index: int, bits: int | np.int64) -> None:
    row = _bucket(low, events[TIME, index])
    if row >= 0:
        _add_amount(acc, row, events[AMOUNT, index])
        acc[row, _DISTINCT] += (bits >> index) & 1


@jit
def accumulate(acc: Ints) -> None:
    """Turn rings (each event in the shortest window that holds it) into windows."""
    for row in range(1, _WINDOWS):
        for column in range(ACC_SIZE):
            if column == _TOP:
                acc[row, column] = max(acc[row, column], acc[row - 1, column])
            else:
                acc[row, column] += acc[row - 1, column]


@jit
def add_history(hdr: Ints, head: Ints, sealed: Sealed, t: int, low: Ints, acc: Ints) -> None:
    """Add all kept events to the shortest windows that hold them, those later than ``t`` too.

    The chunks that :func:`.plan` lists must be loaded. :func:`accumulate` turns the sums into windows.
    """
    first = hdr[H_FIRST_CHUNK] - hdr[H_BASE]
    end = hdr[H_NEXT_CHUNK] - hdr[H_BASE]
    if first < end:
        _window_cache(hdr, sealed, t, low)
        window_cache = sealed.window_cache[hdr[H_PAGE]]
        for row in range(_WINDOWS):
            for column in range(ACC_SIZE):
                acc[row, column] = window_cache[_F_BUCKETS + ACC_SIZE * row + column]
        start = hdr[H_PAGE] * SEGMENT
        straddling = window_cache[F_STRADDLING]
        behind = max(first, window_cache[F_END])
        for index in range(straddling + end - behind):
            if index < straddling:
                chunk = np.int64(sealed.straddling[start + index])
                if chunk < first:
                    continue
            else:
                chunk = behind + index - straddling
                row = _bucket(low, sealed.times[chunk, 1])
                if row < 0:
                    continue
                if _bucket(low, sealed.times[chunk, 0]) == row:
                    _add_sums(acc, row, CHUNK, sealed.sums[chunk], _popcount(int(sealed.live[chunk])))
                    continue
            if sealed.slot[chunk] < 0:
                raise RuntimeError("a chunk that the query needs is not loaded")
            events = sealed.store[sealed.slot[chunk]]
            bits = np.int64(sealed.live[chunk])
            for event in range(CHUNK):
                _add_event(acc, low, events, event, bits)
    for event in range(hdr[H_HEAD]):
        _add_event(acc, low, head, event, hdr[H_LIVE])
