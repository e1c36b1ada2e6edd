"""The feature kernel: exact windows over one user's history, compiled by numba.

A user's history is a log of events in arrival order. The newest fewer than 64 lie in the *head*; once it is
full, its events are *sealed* as two chunks of 32, which never change. Each sealed chunk has its times, its
sums, a bitmap of *live* events (an event is live until a later event of the same merchant arrives), its
merchants, and 32-bit fingerprints of its transaction ids. A query for the window ``(t - W, t]`` adds whole
chunks by their sums and opens only chunks that straddle an edge. The *window cache* keeps the sums of whole
chunks until an edge reaches another chunk, and hash tables find ids and merchants, so an event's cost hardly
grows with the history. An event older than the user's newest event is the exception: it reads the whole log.

The same functions serve the worker (a few chunks loaded) and training (all chunks in memory), and every sum
is an exact integer until the last division, so both give the same bits.

A user's header is ``hdr : int64[HDR_SIZE]``, see the ``H_`` indices; its head is ``head : int64[4, HEAD]``
with the rows TIME (ms), AMOUNT (minor units), MERCHANT (hash, 0 unknown), ID (hash of the transaction id).
The rest is :class:`.Sealed`.
"""

from __future__ import annotations

import math

import numpy as np

from stream.features.windows.arrays import (
    _F_BUCKETS,
    _MARK,
    _WINDOWS,
    AMOUNT,
    CHUNK,
    DUPLICATE,
    F_END,
    F_STRADDLING,
    H_BASE,
    H_COUNT,
    H_FIRST,
    H_FIRST_CHUNK,
    H_HEAD,
    H_LIVE,
    H_MAX,
    H_NEWEST,
    H_NEWEST_EXPIRED,
    H_NEXT_CHUNK,
    H_OFFSET,
    H_PAGE,
    H_PAGES,
    H_PENDING,
    H_SOURCE,
    H_SQUARES,
    H_SUM,
    HEAD,
    ID,
    LATE,
    MERCHANT,
    NO_TIME,
    REPLAYED,
    SCORED,
    SEGMENT,
    TABLE,
    TIME,
    Sealed,
    _bit,
    _bucket,
    set_edges,
)
from stream.features.windows.chunks import _clear_live_bit, _entry_hash, _hash, _place_bits, _window_cache
from stream.features.windows.sums import (
    _DISTINCT,
    _MASK,
    _N,
    _Q0,
    _S0,
    _TOP,
    ACC_SIZE,
    LIMB_BITS,
    _add_amount,
    _add_sums,
    _mean,
    _popcount,
    _std,
    sum_of,
)
from stream.jit import Floats, Ints, jit, jit_alloc

__all__ = ["apply", "expire", "find_merchant", "is_duplicate", "query", "step"]


@jit
def _add_event(acc: Ints, low: Ints, events: Ints, index: int, bits: int | np.int64) -> None:
    row = _bucket(low, events[TIME, index])
    if row >= 0:
        _add_amount(acc, row, events[AMOUNT, index])
        acc[row, _DISTINCT] += (bits >> index) & 1


@jit
def is_duplicate(hdr: Ints, head: Ints, sealed: Sealed, id_hash: int, horizon_ms: int) -> bool:
    """Return whether a remembered event has this transaction id.

    An event is remembered while its time lies less than the horizon behind the user's newest event.
    """
    gone = hdr[H_NEWEST] - horizon_ms
    for index in range(hdr[H_HEAD]):
        if head[ID, index] == id_hash and head[TIME, index] > gone:
            return True
    first = hdr[H_FIRST_CHUNK] - hdr[H_BASE]
    if first >= hdr[H_NEXT_CHUNK] - hdr[H_BASE]:
        return False
    page = hdr[H_PAGE]
    size = hdr[H_PAGES] * TABLE
    bits = _place_bits(hdr[H_PAGES])
    hashed = _hash(id_hash & _MARK)
    part = _entry_hash(hashed, bits)
    at = (hashed * size) >> 32
    while sealed.id_table[page * TABLE + at] != 0:
        entry = np.int64(sealed.id_table[page * TABLE + at])
        if entry >> bits == part:
            other, event = divmod(entry & ((1 << bits) - 1), CHUNK)
            chunk = page * SEGMENT + other
            position = np.int64(sealed.slot[chunk])
            if chunk >= first and position >= 0:
                events = sealed.store[position]
                if events[ID, event] == id_hash and events[TIME, event] > gone:
                    return True
        at = at + 1 if at + 1 < size else 0
    return False


@jit
def find_merchant(hdr: Ints, head: Ints, sealed: Sealed, merchant: int) -> tuple[int, int]:
    """Return ``(index, time)`` of the merchant's live event.

    ``index`` is -1 without one, the index in the head, or HEAD plus the index in the sealed log. For an event
    in a chunk that is not loaded, ``time`` is the chunk's latest time: no edge lies between the two, or
    :func:`.plan` would have listed the chunk, and no event processed now is older.
    """
    if merchant == 0:
        return -1, NO_TIME
    live = hdr[H_LIVE]
    for index in range(hdr[H_HEAD]):
        if head[MERCHANT, index] == merchant and (live >> index) & 1:
            return index, head[TIME, index]
    first = hdr[H_FIRST_CHUNK] - hdr[H_BASE]
    if first >= hdr[H_NEXT_CHUNK] - hdr[H_BASE]:
        return -1, NO_TIME
    page = hdr[H_PAGE]
    size = hdr[H_PAGES] * TABLE
    bits = _place_bits(hdr[H_PAGES])
    hashed = _hash(merchant)
    part = _entry_hash(hashed, bits)
    at = (hashed * size) >> 32
    while sealed.merchant_table[page * TABLE + at] != 0:
        entry = np.int64(sealed.merchant_table[page * TABLE + at])
        if entry >> bits == part:
            other, event = divmod(entry & ((1 << bits) - 1), CHUNK)
            chunk = page * SEGMENT + other
            if (
                chunk >= first
                and (np.int64(sealed.live[chunk]) >> event) & 1
                and sealed.merchants[chunk, event] == merchant
            ):
                position = np.int64(sealed.slot[chunk])
                time = sealed.store[position, TIME, event] if position >= 0 else sealed.times[chunk, 1]
                return HEAD + chunk * CHUNK + event, time
        at = at + 1 if at + 1 < size else 0
    return -1, NO_TIME


@jit
def _accumulate(acc: Ints) -> None:
    """Turn rings (each event in the shortest window that holds it) into windows."""
    for row in range(1, _WINDOWS):
        for column in range(ACC_SIZE):
            if column == _TOP:
                acc[row, column] = max(acc[row, column], acc[row - 1, column])
            else:
                acc[row, column] += acc[row - 1, column]


@jit
def _query_in_order(hdr: Ints, head: Ints, sealed: Sealed, low: Ints, acc: Ints) -> int:
    """Add up the windows of an event that is not older than the newest; returns the newest time."""
    first = hdr[H_FIRST_CHUNK] - hdr[H_BASE]
    end = hdr[H_NEXT_CHUNK] - hdr[H_BASE]
    if first < end:
        _window_cache(hdr, sealed, low)
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
    _accumulate(acc)
    return int(hdr[H_NEWEST])


@jit_alloc
def _query_late(
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
    _accumulate(acc)
    if previous == NO_TIME and lost <= t:
        previous = lost
    return previous


@jit
def _merchant_time_before(
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


@jit
def query(
    hdr: Ints,
    head: Ints,
    sealed: Sealed,
    t: int,
    amount: int,
    merchant: int,
    merchant_time: int,
    minor_units: int,
    horizon_ms: int,
    low: Ints,
    acc: Ints,
    out: Floats,
) -> None:
    """Write the history features of an event to ``out``, in the order of ``HISTORY_FEATURES``.

    The chunks that :func:`.plan` lists must be loaded. The history does not change.

    ``merchant_time`` is the time of the merchant's live event, from :func:`find_merchant`.
    """
    gone = set_edges(hdr, t, horizon_ms, low)
    acc[:, :] = 0
    if t >= hdr[H_NEWEST]:
        previous = _query_in_order(hdr, head, sealed, low, acc)
    else:
        previous = _query_late(hdr, head, sealed, t, low, gone, acc)
        if merchant != 0:
            merchant_time = _merchant_time_before(hdr, head, sealed, merchant, t, gone)
    units = float(minor_units)
    index = 0
    mean_7d = _mean(acc, 2)
    mean_30d = _mean(acc, 3)
    std_30d = _std(acc, 3)
    for row in range(_WINDOWS):
        _add_amount(acc, row, amount)
        count = acc[row, _N]
        if merchant != 0 and merchant_time <= low[row]:
            acc[row, _DISTINCT] += 1
        out[index] = float(count)
        out[index + 1] = sum_of(acc[row, _S0], acc[row, _S0 + 1]) / units
        out[index + 2] = _mean(acc, row) / units
        out[index + 3] = float(acc[row, _TOP]) / units
        out[index + 4] = _std(acc, row) / units
        out[index + 5] = float(acc[row, _DISTINCT])
        index += 6
    value = float(amount)
    since = math.nan if previous == NO_TIME else float(t - previous)
    out[index] = since / 1000.0
    out[index + 1] = value / mean_7d if mean_7d > 0.0 else math.nan
    out[index + 2] = value / mean_30d if mean_30d > 0.0 else math.nan
    out[index + 3] = (value - mean_30d) / std_30d if std_30d > 0.0 else math.nan
    # The lifetime profile, this event included, in the accumulator's first row.
    acc[0, _N] = hdr[H_COUNT]
    acc[0, _S0] = hdr[H_SUM]
    acc[0, _S0 + 1] = hdr[H_SUM + 1]
    for limb in range(4):
        acc[0, _Q0 + limb] = hdr[H_SQUARES + limb]
    acc[0, _TOP] = hdr[H_MAX]
    _add_amount(acc, 0, amount)
    mean = _mean(acc, 0)
    std = _std(acc, 0)
    out[index + 4] = float(acc[0, _N])
    out[index + 5] = mean / units
    out[index + 6] = std / units
    out[index + 7] = float(acc[0, _TOP]) / units
    out[index + 8] = std / mean if mean > 0.0 else math.nan
    first = hdr[H_FIRST]
    first = t if first == NO_TIME or t < first else first
    out[index + 9] = float(t - first) / 86_400_000.0
    out[index + 10] = since / 86_400_000.0


@jit
def apply(
    hdr: Ints,
    head: Ints,
    sealed: Sealed,
    pending: Ints,
    t: int,
    amount: int,
    merchant: int,
    id_hash: int,
    position: int,
    merchant_time: int,
) -> None:
    """Append an event to the head and update the header; ``position`` is from :func:`find_merchant`.

    The caller empties ``pending`` (by storing the live bitmaps) before it holds more than CHUNK entries.
    """
    index = hdr[H_HEAD]
    head[TIME, index] = t
    head[AMOUNT, index] = amount
    head[MERCHANT, index] = merchant
    head[ID, index] = id_hash
    if merchant != 0 and (position < 0 or merchant_time <= t):
        hdr[H_LIVE] |= _bit(index)
        if 0 <= position < HEAD:
            hdr[H_LIVE] &= ~_bit(position)
        elif position >= HEAD:
            chunk, bit = divmod(position - HEAD, CHUNK)
            _clear_live_bit(hdr, sealed, chunk, bit)
            pending[hdr[H_PENDING]] = (chunk + hdr[H_BASE]) * CHUNK + bit
            hdr[H_PENDING] += 1
    hdr[H_HEAD] = index + 1
    low = amount & _MASK
    high = amount >> LIMB_BITS
    hdr[H_COUNT] += 1
    hdr[H_SUM] += low
    hdr[H_SUM + 1] += high
    square = low * low
    hdr[H_SQUARES] += square & _MASK
    square = (square >> LIMB_BITS) + 2 * low * high
    hdr[H_SQUARES + 1] += square & _MASK
    square = (square >> LIMB_BITS) + high * high
    hdr[H_SQUARES + 2] += square & _MASK
    hdr[H_SQUARES + 3] += square >> LIMB_BITS
    hdr[H_MAX] = max(hdr[H_MAX], amount)
    if hdr[H_FIRST] == NO_TIME or t < hdr[H_FIRST]:
        hdr[H_FIRST] = t
    hdr[H_NEWEST] = max(hdr[H_NEWEST], t)


@jit
def expire(hdr: Ints, head: Ints, sealed: Sealed, horizon_ms: int) -> None:
    """Drop everything that no window can reach: expired events of the head, and wholly expired chunks."""
    gone = hdr[H_NEWEST] - horizon_ms
    kept = 0
    bits = np.int64(0)
    for index in range(hdr[H_HEAD]):
        if head[TIME, index] <= gone:
            hdr[H_NEWEST_EXPIRED] = max(hdr[H_NEWEST_EXPIRED], head[TIME, index])
            continue
        if (hdr[H_LIVE] >> index) & 1:
            bits |= _bit(kept)
        if kept != index:
            for row in range(4):
                head[row, kept] = head[row, index]
        kept += 1
    hdr[H_HEAD] = kept
    hdr[H_LIVE] = bits
    while hdr[H_FIRST_CHUNK] < hdr[H_NEXT_CHUNK]:
        latest = sealed.times[hdr[H_FIRST_CHUNK] - hdr[H_BASE], 1]
        if latest > gone:
            break
        hdr[H_NEWEST_EXPIRED] = max(hdr[H_NEWEST_EXPIRED], latest)
        hdr[H_FIRST_CHUNK] += 1


@jit
def step(
    hdr: Ints,
    head: Ints,
    sealed: Sealed,
    pending: Ints,
    offset: int,
    source: int,
    t: int,
    amount: int,
    merchant: int,
    id_hash: int,
    minor_units: int,
    horizon_ms: int,
    lateness_ms: int,
    learn: bool,
    low: Ints,
    acc: Ints,
    out: Floats,
) -> int:  # fmt: skip
    """Process an event: recognise it, write its features to ``out`` and, with ``learn``, apply it.

    Returns SCORED, LATE, DUPLICATE, or REPLAYED for a record whose effect the state already holds.
    """
    if hdr[H_SOURCE] == source and offset <= hdr[H_OFFSET]:
        return REPLAYED
    if is_duplicate(hdr, head, sealed, id_hash, horizon_ms):
        return DUPLICATE
    outcome = LATE if hdr[H_NEWEST] != NO_TIME and t < hdr[H_NEWEST] - lateness_ms else SCORED
    index, merchant_time = find_merchant(hdr, head, sealed, merchant)
    query(
        hdr, head, sealed, t, amount, merchant, merchant_time, minor_units, horizon_ms, low, acc, out,
    )  # fmt: skip
    if learn:
        apply(hdr, head, sealed, pending, t, amount, merchant, id_hash, index, merchant_time)
        hdr[H_OFFSET] = offset
        hdr[H_SOURCE] = source
        expire(hdr, head, sealed, horizon_ms)
    return outcome
