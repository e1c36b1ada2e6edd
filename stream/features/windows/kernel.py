"""The feature kernel: exact windows over one user's history, compiled by numba.

A user's history is a log of events in arrival order. The newest fewer than 64 lie in the *head*; once it is
full, its events are *sealed* as two chunks of 32, which never change. Each sealed chunk has its times, its
sums, a bitmap of *live* events (an event is live until a later event of the same merchant arrives), its
merchants, and 32-bit fingerprints of its transaction ids. A query for the window ``(t - W, t]`` adds whole
chunks by their sums and opens only chunks that straddle an edge. The *window cache* keeps the sums of whole
chunks until an edge reaches another chunk, and hash tables find ids and merchants, so an event's cost hardly
grows with the history. So it is for an event a few minutes older than the user's newest event; an event older
than that is the exception: it reads the whole log (:mod:`stream.features.windows.late`).

The same functions serve the worker (a few chunks loaded) and training (all chunks in memory), and every sum
is an exact integer until the last division, so both give the same bits.

A user's header is ``hdr : int64[HDR_SIZE]``, see the ``H_`` indices; its head is ``head : int64[4, HEAD]``
with the rows TIME (ms), AMOUNT (minor units), MERCHANT (hash, 0 unknown), ID (hash of the transaction id).
The rest is :class:`.Sealed`.
"""

from __future__ import annotations

import math

import numpy as np

from stream.features.windows.addition import accumulate, add_history
from stream.features.windows.arrays import (
    _MARK,
    _WINDOWS,
    AMOUNT,
    CHUNK,
    DUPLICATE,
    F_END,
    F_RECENT,
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
    HDR_SIZE,
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
    clear_header,
    is_recent,
    set_edges,
)
from stream.features.windows.chunks import _clear_live_bit, _entry_hash, _hash, _place_bits
from stream.features.windows.late import merchant_time_before, query_recent, query_whole, remember
from stream.features.windows.sums import (
    _DISTINCT,
    _MASK,
    _N,
    _Q0,
    _S0,
    _TOP,
    LIMB_BITS,
    _add_amount,
    _mean,
    _std,
    sum_of,
)
from stream.jit import Floats, Ints, jit, jit_alloc

__all__ = ["apply", "expire", "find_merchant", "is_duplicate", "query", "step"]


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
        add_history(hdr, head, sealed, t, low, acc)
        accumulate(acc)
        previous = int(hdr[H_NEWEST])
    elif hdr[H_FIRST_CHUNK] < hdr[H_NEXT_CHUNK] and is_recent(hdr, sealed, t):
        previous, merchant_time = query_recent(hdr, head, sealed, t, merchant, merchant_time, low, acc)
    else:
        previous = query_whole(hdr, head, sealed, t, low, gone, acc)
        if merchant != 0:
            merchant_time = merchant_time_before(hdr, head, sealed, merchant, t, gone)
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
    out[index + 10] = since / 86_400_000.0
    _write_lifetime(hdr, t, amount, units, acc, out[index + 4 : index + 10])


@jit
def _write_lifetime(hdr: Ints, t: int, amount: int, units: float, acc: Ints, out: Floats) -> None:
    """Write the profile of all events that the user ever had, this one included."""
    acc[0, _N] = hdr[H_COUNT]
    acc[0, _S0] = hdr[H_SUM]
    acc[0, _S0 + 1] = hdr[H_SUM + 1]
    for limb in range(4):
        acc[0, _Q0 + limb] = hdr[H_SQUARES + limb]
    acc[0, _TOP] = hdr[H_MAX]
    _add_amount(acc, 0, amount)
    mean = _mean(acc, 0)
    std = _std(acc, 0)
    out[0] = float(acc[0, _N])
    out[1] = mean / units
    out[2] = std / units
    out[3] = float(acc[0, _TOP]) / units
    out[4] = std / mean if mean > 0.0 else math.nan
    first = hdr[H_FIRST]
    first = t if first == NO_TIME or t < first else first
    out[5] = float(t - first) / 86_400_000.0


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
    if hdr[H_PAGES] > 0:
        if hdr[H_FIRST_CHUNK] < hdr[H_NEXT_CHUNK]:
            remember(hdr, sealed, t, amount, merchant, position, merchant_time)
        else:
            sealed.window_cache[hdr[H_PAGE], F_RECENT] = -1
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
def _is_forgotten(hdr: Ints, t: int, ttl_ms: int) -> bool:
    """Return whether the user's time to live has passed before an event at ``t``: its history begins anew."""
    return bool(ttl_ms > 0 and hdr[H_NEWEST] != NO_TIME and t - hdr[H_NEWEST] > ttl_ms)


@jit
def _forget(hdr: Ints, sealed: Sealed) -> None:
    """Make a history empty, but for the position in the source by which a replay is recognised."""
    hdr[H_NEWEST] = hdr[H_FIRST] = hdr[H_NEWEST_EXPIRED] = NO_TIME
    hdr[H_COUNT : H_MAX + 1] = 0
    hdr[H_FIRST_CHUNK] = hdr[H_NEXT_CHUNK]
    hdr[H_HEAD] = hdr[H_LIVE] = hdr[H_PENDING] = 0
    if hdr[H_PAGES] > 0:
        sealed.window_cache[hdr[H_PAGE], F_END] = -1
        sealed.window_cache[hdr[H_PAGE], F_RECENT] = -1


@jit_alloc
def _query_first(
    head: Ints, sealed: Sealed, t: int, amount: int, merchant: int, minor_units: int, horizon_ms: int,
    low: Ints, acc: Ints, out: Floats,
) -> None:  # fmt: skip
    """Write the features of a user's first event."""
    empty = np.empty(HDR_SIZE, np.int64)
    clear_header(empty)
    query(empty, head, sealed, t, amount, merchant, NO_TIME, minor_units, horizon_ms, low, acc, out)


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
    ttl_ms: int,
    learn: bool,
    low: Ints,
    acc: Ints,
    out: Floats,
) -> int:  # fmt: skip
    """Process an event: recognise it, write its features to ``out`` and, with ``learn``, apply it.

    A history without an event for longer than ``ttl_ms`` begins anew; 0 stands for no such time.

    Returns SCORED, LATE, DUPLICATE, or REPLAYED for a record whose effect the state already holds.
    """
    if hdr[H_SOURCE] == source and offset <= hdr[H_OFFSET]:
        return REPLAYED
    if is_duplicate(hdr, head, sealed, id_hash, horizon_ms):
        return DUPLICATE
    if _is_forgotten(hdr, t, ttl_ms):
        if not learn:
            _query_first(head, sealed, t, amount, merchant, minor_units, horizon_ms, low, acc, out)
            return SCORED
        _forget(hdr, sealed)
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
