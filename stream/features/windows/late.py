"""Events older than their user's newest event.

An event a few minutes late at most costs about as much as one in order: the windows are added up as for an
event in order, and the *recent events*, those later than ``t``, are taken off again. The recent events of a
user with sealed chunks are kept in memory, sorted by time, each with the time of its merchant's previous
event, since live bits describe the user's newest state and not an earlier time.

The recent events contain every event later than F_SINCE, which is the time of the latest event that they do
not contain. An older event than that reads the whole log.
"""

from __future__ import annotations

import numpy as np

from stream.features.windows.addition import accumulate, add_history
from stream.features.windows.arrays import (
    _WINDOWS,
    AMOUNT,
    CHUNK,
    F_RECENT,
    F_RECENT_FIRST,
    F_SINCE,
    H_BASE,
    H_FIRST_CHUNK,
    H_HEAD,
    H_NEWEST,
    H_NEWEST_EXPIRED,
    H_NEXT_CHUNK,
    H_PAGE,
    H_PAGES,
    HEAD,
    MERCHANT,
    NO_TIME,
    R_AMOUNT,
    R_MERCHANT,
    R_PREVIOUS,
    R_SEALED,
    R_SIZE,
    R_TIME,
    RECENT,
    SEGMENT,
    TIME,
    Sealed,
    _bucket,
)
from stream.features.windows.sums import (
    _DISTINCT,
    _MASK,
    _N,
    _Q0,
    _S0,
    _TOP,
    LIMB_BITS,
    _add_amount,
)
from stream.jit import Ints, jit, jit_alloc

__all__ = ["merchant_time_before", "query_recent", "query_whole", "remember"]


@jit
def _place(hdr: Ints, window_cache: Ints, index: int) -> int:
    """Return the row of ``sealed.recent`` with the user's recent event ``index``, in the order of time."""
    size = hdr[H_PAGES] * RECENT
    at = window_cache[F_RECENT_FIRST] + index
    return int(hdr[H_PAGE] * RECENT + (at if at < size else at - size))


@jit
def _previous_time(hdr: Ints, sealed: Sealed, recent: Ints) -> int:
    """Return the time of the event of the same merchant before a recent event.

    For an event in a chunk that is not loaded it is the chunk's latest time: no edge lies between the two.
    """
    if recent[R_SEALED] < 0:
        return int(recent[R_PREVIOUS])
    chunk, event = divmod(recent[R_SEALED] - hdr[H_BASE] * CHUNK, CHUNK)
    if chunk < hdr[H_FIRST_CHUNK] - hdr[H_BASE]:
        return NO_TIME
    slot = np.int64(sealed.slot[chunk])
    return int(sealed.store[slot, TIME, event] if slot >= 0 else sealed.times[chunk, 1])


@jit
def remember(
    hdr: Ints, sealed: Sealed, t: int, amount: int, merchant: int, position: int, merchant_time: int
) -> None:
    """Add an event to the recent events, before the header knows it; see :func:`.apply` for its arguments."""
    window_cache = sealed.window_cache[hdr[H_PAGE]]
    if window_cache[F_RECENT] < 0:
        window_cache[F_RECENT] = window_cache[F_RECENT_FIRST] = 0
        window_cache[F_SINCE] = hdr[H_NEWEST]
    count = window_cache[F_RECENT]
    sealed_before = np.int64(-1)
    previous = np.int64(NO_TIME)
    if position >= HEAD:
        sealed_before = position - HEAD + hdr[H_BASE] * CHUNK
    elif position >= 0:
        previous = np.int64(merchant_time)
    index = count
    while index > 0:
        other = sealed.recent[_place(hdr, window_cache, index - 1)]
        if other[R_TIME] <= t:
            break
        if merchant != 0 and other[R_MERCHANT] == merchant and _previous_time(hdr, sealed, other) <= t:
            # This event comes between that one and the event before it.
            previous, sealed_before = other[R_PREVIOUS], other[R_SEALED]
            other[R_PREVIOUS], other[R_SEALED] = t, -1
        index -= 1
    if t <= window_cache[F_SINCE]:
        return
    if count == hdr[H_PAGES] * RECENT:
        if index == 0:
            window_cache[F_SINCE] = t
            return
        window_cache[F_SINCE] = sealed.recent[_place(hdr, window_cache, 0), R_TIME]
        window_cache[F_RECENT_FIRST] = _place(hdr, window_cache, 1) - hdr[H_PAGE] * RECENT
        count -= 1
        index -= 1
    for later in range(count, index, -1):
        target = sealed.recent[_place(hdr, window_cache, later)]
        source = sealed.recent[_place(hdr, window_cache, later - 1)]
        for column in range(R_SIZE):
            target[column] = source[column]
    new = sealed.recent[_place(hdr, window_cache, index)]
    new[R_TIME] = t
    new[R_AMOUNT] = amount
    new[R_MERCHANT] = merchant
    new[R_PREVIOUS] = previous
    new[R_SEALED] = sealed_before
    window_cache[F_RECENT] = count + 1


@jit
def query_recent(
    hdr: Ints,
    head: Ints,
    sealed: Sealed,
    t: int,
    merchant: int,
    merchant_time: int,
    low: Ints,
    acc: Ints,
) -> tuple[int, int]:
    """Add up the windows of an event that is late by a few minutes at most, see :func:`.is_recent`.

    Returns the times of the user's and of the merchant's previous event.
    """
    add_history(hdr, head, sealed, t, low, acc)
    window_cache = sealed.window_cache[hdr[H_PAGE]]
    highest = np.int64(-1)
    index = window_cache[F_RECENT] - 1
    while index >= 0:
        recent = sealed.recent[_place(hdr, window_cache, index)]
        if recent[R_TIME] <= t:
            break
        index -= 1
        highest = max(highest, recent[R_AMOUNT])
        _take_off(acc, recent[R_AMOUNT])
        if recent[R_MERCHANT] == 0:
            continue
        before = _previous_time(hdr, sealed, recent)
        if before > t:
            continue  # the merchant's earliest event later than t speaks for it
        acc[0, _DISTINCT] -= 1
        row = _bucket(low, before)
        if row >= 0:
            acc[row, _DISTINCT] += 1
        if recent[R_MERCHANT] == merchant:
            merchant_time = before
    accumulate(acc)
    if highest >= acc[0, _TOP]:
        _find_tops(hdr, head, sealed, t, low, acc)
    if index < 0:
        return int(window_cache[F_SINCE]), merchant_time
    return int(sealed.recent[_place(hdr, window_cache, index), R_TIME]), merchant_time


@jit
def _take_off(acc: Ints, amount: int) -> None:
    """Undo the addition of an amount to the shortest window; limbs may become negative, their value not."""
    low = amount & _MASK
    high = amount >> LIMB_BITS
    acc[0, _N] -= 1
    acc[0, _S0] -= low
    acc[0, _S0 + 1] -= high
    square = low * low
    acc[0, _Q0] -= square & _MASK
    square = (square >> LIMB_BITS) + 2 * low * high
    acc[0, _Q0 + 1] -= square & _MASK
    square = (square >> LIMB_BITS) + high * high
    acc[0, _Q0 + 2] -= square & _MASK
    acc[0, _Q0 + 3] -= square >> LIMB_BITS


@jit
def _find_tops(hdr: Ints, head: Ints, sealed: Sealed, t: int, low: Ints, acc: Ints) -> None:
    """Find each window's largest amount among the events up to ``t``."""
    for row in range(_WINDOWS):
        acc[row, _TOP] = 0
    first = hdr[H_FIRST_CHUNK] - hdr[H_BASE]
    end = hdr[H_NEXT_CHUNK] - hdr[H_BASE]
    for segment in range(first // SEGMENT, (end + SEGMENT - 1) // SEGMENT):
        begin = segment * SEGMENT
        stop = begin + SEGMENT
        if begin >= first and stop <= end:
            earliest, latest = sealed.segment_sums[segment, 0], sealed.segment_sums[segment, 1]
            row = _bucket(low, latest)
            if row < 0:
                continue
            if latest <= t and _bucket(low, earliest) == row:
                acc[row, _TOP] = max(acc[row, _TOP], sealed.segment_sums[segment, 5])
                continue
        for chunk in range(max(first, begin), min(end, stop)):
            earliest, latest = sealed.times[chunk, 0], sealed.times[chunk, 1]
            row = _bucket(low, latest)
            if row < 0:
                continue
            if latest <= t and _bucket(low, earliest) == row:
                acc[row, _TOP] = max(acc[row, _TOP], sealed.sums[chunk, 3])
                continue
            if sealed.slot[chunk] < 0:
                raise RuntimeError("a chunk that the query needs is not loaded")
            _add_tops(sealed.store[sealed.slot[chunk]], CHUNK, t, low, acc)
    _add_tops(head, hdr[H_HEAD], t, low, acc)
    for row in range(1, _WINDOWS):
        acc[row, _TOP] = max(acc[row, _TOP], acc[row - 1, _TOP])


@jit
def _add_tops(events: Ints, count: int, t: int, low: Ints, acc: Ints) -> None:
    for event in range(count):
        if events[TIME, event] <= t:
            row = _bucket(low, events[TIME, event])
            if row >= 0:
                acc[row, _TOP] = max(acc[row, _TOP], events[AMOUNT, event])


@jit_alloc
def query_whole(
    hdr: Ints,
    head: Ints,
    sealed: Sealed,
    t: int,
    low: Ints,
    gone: int,
    acc: Ints,
) -> int:
    """Add up the windows of an event older than the newest one, from every kept event.

    Live bits describe the user's newest state and not an earlier time, so merchants are counted again: in a
    hash set that remembers the shortest window in which each merchant was seen.
    """
    base = hdr[H_BASE]
    first = hdr[H_FIRST_CHUNK] - base
    chunks = hdr[H_NEXT_CHUNK] - base - first
    size = 64
    while size < 2 * (chunks * CHUNK + HEAD):
        size *= 2
    keys = np.zeros(size, np.int64)
    rings = np.empty(size, np.int64)
    previous = NO_TIME
    lost = hdr[H_NEWEST_EXPIRED]
    for part in range(chunks):
        if sealed.slot[first + part] < 0:
            raise RuntimeError("a chunk that the query needs is not loaded")
    for part in range(chunks + 1):
        in_head = part == chunks
        events = head if in_head else sealed.store[sealed.slot[first + part]]
        for index in range(hdr[H_HEAD] if in_head else CHUNK):
            time = events[TIME, index]
            if time <= gone:
                lost = max(lost, time)
                continue
            if time > t:
                continue
            previous = max(previous, time)
            row = _bucket(low, time)
            if row < 0:
                continue
            _add_amount(acc, row, events[AMOUNT, index])
            merchant = events[MERCHANT, index]
            if merchant == 0:
                continue
            position = (merchant ^ (merchant >> 32)) & (size - 1)
            while keys[position] != 0 and keys[position] != merchant:
                position = (position + 1) & (size - 1)
            if keys[position] == 0:
                keys[position] = merchant
                rings[position] = row
            elif row < rings[position]:
                rings[position] = row
    for position in range(size):
        if keys[position] != 0:
            acc[rings[position], _DISTINCT] += 1
    accumulate(acc)
    if previous == NO_TIME and lost <= t:
        previous = lost
    return previous


@jit
def merchant_time_before(
    hdr: Ints,
    head: Ints,
    sealed: Sealed,
    merchant: int,
    t: int,
    gone: int,
) -> int:
    """Return the latest time at or before ``t`` of a kept event of this merchant."""
    found = NO_TIME
    base = hdr[H_BASE]
    first = hdr[H_FIRST_CHUNK] - base
    chunks = hdr[H_NEXT_CHUNK] - base - first
    for part in range(chunks + 1):
        in_head = part == chunks
        events = head if in_head else sealed.store[sealed.slot[first + part]]
        for index in range(hdr[H_HEAD] if in_head else CHUNK):
            time = events[TIME, index]
            if events[MERCHANT, index] == merchant and gone < time <= t and time > found:
                found = time
    return found
