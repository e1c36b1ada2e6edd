"""The feature kernel: exact windows over one user's history, compiled by numba.

A user's history is a log of events in arrival order. The newest fewer than 32 lie in the *head*; full
chunks of 32 are *sealed* and never change. Each sealed chunk has a summary (times, sums, maximum), a
bitmap of *live* events (an event is live while no later one of the same merchant is known) and 32-bit
fingerprints of its transaction and merchant ids. A query for the window ``(t - W, t]`` adds whole
chunks by their summaries and opens only those that straddle an edge, so its cost hardly grows with
the history; an event older than the user's newest one is the exception and reads the whole log.

The same functions serve the worker (a few chunks loaded) and training (all of them in memory), and
every sum is an exact integer until the last division, so both give the same bits.

Arrays
------
hdr : int64[HDR_SIZE]
    The user's header, see the ``H_`` indices.
head : int64[4, CHUNK]
    Rows TIME (ms), AMOUNT (minor units), MERCHANT (hash, 0 unknown), ID (hash of the transaction id).
summary : int64[chunks, 6]
    Per sealed chunk: earliest time, latest time, sum, two halves of the sum of squares, maximum.
live : uint32[chunks]
    Bitmap of each chunk's live events.
marks : uint32[chunks, 2, CHUNK]
    Fingerprints of the transaction ids and of the merchants.
seg : int64[segments, 7]
    Per SEGMENT of 32 chunks: a summary like a chunk's, and the number of live events.
bloom : uint32[segments, 2, BLOOM_WORDS]
    Per segment, Bloom filters over both kinds of fingerprints (two probes).
slot : int32[chunks]
    Where in ``store`` a chunk's events lie, or -1 when it is not loaded.
store : int64[slots, 4, CHUNK]
    Loaded chunks.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from stream.features.compiled import Codes, Flags, Floats, Ints, Marks, Slots, compiled
from stream.features.exact import LIMB_BITS, mean_of, std_of, sum_of
from stream.features.spec import HISTORY_FEATURES, WINDOW_MS

__all__ = [
    "AMOUNT",
    "CHUNK",
    "HDR_SIZE",
    "ID",
    "MERCHANT",
    "NO_TIME",
    "TIME",
    "new_header",
]

CHUNK: Final = 32
SEGMENT: Final = 32
BLOOM_WORDS: Final = 256
_BLOOM_LINES: Final = BLOOM_WORDS // 16 - 1  # mask of a filter's cache lines, 16 words each
TIME: Final = 0
AMOUNT: Final = 1
MERCHANT: Final = 2
ID: Final = 3

#: Stands for "no such time"; before every real one.
NO_TIME: Final = -(1 << 62)

H_OFFSET: Final = 0  # last applied source offset
H_SOURCE: Final = 1  # which incarnation and partition of the source topic that offset belongs to
H_NEWEST: Final = 2  # latest event time applied
H_FIRST: Final = 3  # earliest event time applied
H_COUNT: Final = 4  # lifetime count, sum (2 limbs), sum of squares (4 limbs), maximum
H_SUM: Final = 5
H_SQUARES: Final = 7
H_MAX: Final = 11
H_FIRST_CHUNK: Final = 12  # number of the oldest chunk kept
H_NEXT_CHUNK: Final = 13  # number that the next sealed chunk gets
H_GONE: Final = 14  # latest event time among the events no longer kept
H_HEAD: Final = 15  # events in the head
H_LIVE: Final = 16  # bitmap of the head's live events
H_PENDING: Final = 17  # sealed events that lost their live bit since the last seal
H_BASE: Final = 18  # number of the chunk at index 0 of the chunk arrays; memory only
HDR_SIZE: Final = 19

_MASK: Final = (1 << LIMB_BITS) - 1
_WINDOWS: Final = len(WINDOW_MS)
_LONGEST: Final = _WINDOWS - 1
_MARK: Final = 0xFFFFFFFF
_W0, _W1, _W2, _W3 = WINDOW_MS

#: What :func:`step` says of an event; the first three are the codes of ``Outcome``'s values.
SCORED: Final = 0
LATE: Final = 1
DUPLICATE: Final = 2
REPLAYED: Final = 4
DEFERRED: Final = 5

#: Features that the kernel writes.
OUT_SIZE: Final = len(HISTORY_FEATURES)

# Columns of the accumulator, one row a window.
_N: Final = 0
_S0: Final = 1
_Q0: Final = 3
_TOP: Final = 7
_DISTINCT: Final = 8
ACC_SIZE: Final = 9


def new_header() -> np.ndarray:
    """Return the header of a user without history."""
    header = np.zeros(HDR_SIZE, np.int64)
    clear_header(header)
    return header


@compiled
def clear_header(hdr: Ints) -> None:
    """Make ``hdr`` that of a user without history."""
    hdr[:] = 0
    hdr[H_OFFSET] = -1
    hdr[H_NEWEST] = NO_TIME
    hdr[H_FIRST] = NO_TIME
    hdr[H_GONE] = NO_TIME


@compiled
def _popcount(bits: int) -> int:
    """Return the number of bits set in the low 32."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    return ((((bits + (bits >> 4)) & 0x0F0F0F0F) * 0x01010101) & 0xFFFFFFFF) >> 24


@compiled
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


@compiled
def _add_summary(acc: Ints, row: int, count: int, summary: Ints, live_count: int) -> None:
    acc[row, _N] += count
    total = summary[2]
    acc[row, _S0] += total & _MASK
    acc[row, _S0 + 1] += total >> LIMB_BITS
    squares = summary[3]
    acc[row, _Q0] += squares & _MASK
    acc[row, _Q0 + 1] += squares >> LIMB_BITS
    squares = summary[4]
    acc[row, _Q0 + 2] += squares & _MASK
    acc[row, _Q0 + 3] += squares >> LIMB_BITS
    acc[row, _TOP] = max(acc[row, _TOP], summary[5])
    acc[row, _DISTINCT] += live_count


@compiled
def _write_summary(acc: Ints, row: int, earliest: int, latest: int, summary: Ints) -> None:
    """Carry the limbs of an accumulator's row and pack them into a summary."""
    for limb in range(3):
        acc[row, _Q0 + limb + 1] += acc[row, _Q0 + limb] >> LIMB_BITS
        acc[row, _Q0 + limb] &= _MASK
    summary[0] = earliest
    summary[1] = latest
    summary[2] = (acc[row, _S0 + 1] << LIMB_BITS) + acc[row, _S0]
    summary[3] = (acc[row, _Q0 + 1] << LIMB_BITS) | acc[row, _Q0]
    summary[4] = (acc[row, _Q0 + 3] << LIMB_BITS) | acc[row, _Q0 + 2]
    summary[5] = acc[row, _TOP]


@compiled
def _ring(low: Ints, t: int) -> int:
    """Return the shortest window that holds time ``t``, or -1 where none does."""
    if t <= low[_LONGEST]:
        return -1
    row = _LONGEST
    while row > 0 and t > low[row - 1]:
        row -= 1
    return row


@compiled
def set_edges(hdr: Ints, t: int, horizon_ms: int, low: Ints) -> int:
    """Set each window's lower edge (exclusive), and return the edge before which events are gone."""
    newest = hdr[H_NEWEST]
    gone = (max(newest, t)) - horizon_ms
    low[0] = max(t - _W0, gone)
    low[1] = max(t - _W1, gone)
    low[2] = max(t - _W2, gone)
    low[3] = max(t - _W3, gone)
    return int(gone)


@compiled
def _has_mark(marks: Marks, mark: np.uint32, bits: np.uint32) -> bool:
    """Return whether one of a chunk's 32 marks, of those that ``bits`` names, equals ``mark``."""
    found = np.uint32(0)
    for index in range(CHUNK):  # no early exit, so that the compiler makes SIMD of this
        found |= np.uint32(marks[index] == mark) & (bits >> np.uint32(index))
    return bool((found & np.uint32(1)) != 0)


@compiled
def _bloom_set(bloom: Marks, mark: np.uint32) -> None:
    """Set a fingerprint's two bits, both in the same cache line of the filter."""
    line = (np.int64(mark) & _BLOOM_LINES) << 4
    for shift in (4, 13):
        bit = (np.int64(mark) >> shift) & 511
        bloom[line + (bit >> 5)] |= np.uint32(1 << (bit & 31))


@compiled
def _bloom_may_hold(bloom: Marks, mark: np.uint32) -> bool:
    line = (np.int64(mark) & _BLOOM_LINES) << 4
    first = (np.int64(mark) >> 4) & 511
    second = (np.int64(mark) >> 13) & 511
    hits = (np.int64(bloom[line + (first >> 5)]) >> (first & 31)) & (
        np.int64(bloom[line + (second >> 5)]) >> (second & 31)
    )
    return bool(hits & 1)


@compiled
def _straddles(low: Ints, earliest: int, latest: int) -> bool:
    """Return whether a window's edge parts the events between two times."""
    for row in range(_WINDOWS):
        if earliest <= low[row] < latest:
            return True
    return False


@compiled
def plan(
    hdr: Ints,
    head: Ints,
    summary: Ints,
    live: Marks,
    marks: Marks,
    seg: Ints,
    bloom: Marks,
    slot: Slots,
    t: int,
    merchant: int,
    ident: int,
    horizon_ms: int,
    low: Ints,
    wanted: Ints,
) -> int:
    """List the chunks (by index) that an event at ``t`` needs and that are not loaded.

    Returns how many of ``wanted`` are set.
    """
    gone = set_edges(hdr, t, horizon_ms, low)
    count = 0
    base = hdr[H_BASE]
    first = hdr[H_FIRST_CHUNK] - base
    end = hdr[H_NEXT_CHUNK] - base
    late = t < hdr[H_NEWEST]
    id_mark = np.uint32(ident & _MARK)
    merchant_mark = np.uint32(merchant & _MARK)
    look_for_merchant = merchant != 0
    for index in range(hdr[H_HEAD]):
        if head[MERCHANT, index] == merchant and (hdr[H_LIVE] >> index) & 1:
            look_for_merchant = False
    for segment in range(first // SEGMENT, (end + SEGMENT - 1) // SEGMENT):
        edge = _straddles(low, seg[segment, 0], seg[segment, 1])
        may_id = _bloom_may_hold(bloom[segment, 0], id_mark)
        may_merchant = (
            look_for_merchant and seg[segment, 6] > 0 and _bloom_may_hold(bloom[segment, 1], merchant_mark)
        )
        if not (late or edge or may_id or may_merchant):
            continue
        for index in range(max(first, segment * SEGMENT), min(end, (segment + 1) * SEGMENT)):
            if slot[index] >= 0:
                continue
            latest = summary[index, 1]
            need = late or (edge and _straddles(low, summary[index, 0], latest))
            if not need and may_id and latest > gone:
                need = _has_mark(marks[index, 0], id_mark, np.uint32(_MARK))
            if not need and may_merchant and live[index] != 0:
                need = _has_mark(marks[index, 1], merchant_mark, live[index])
            if need:
                wanted[count] = index
                count += 1
    return count


@compiled
def is_duplicate(
    hdr: Ints,
    head: Ints,
    marks: Marks,
    bloom: Marks,
    slot: Slots,
    store: Ints,
    ident: int,
    horizon_ms: int,
) -> bool:
    """Return whether a remembered event has this transaction id.

    An event is remembered while its time lies less than the horizon behind the user's newest.
    """
    gone = hdr[H_NEWEST] - horizon_ms
    for index in range(hdr[H_HEAD]):
        if head[ID, index] == ident and head[TIME, index] > gone:
            return True
    base = hdr[H_BASE]
    first = hdr[H_FIRST_CHUNK] - base
    end = hdr[H_NEXT_CHUNK] - base
    mark = np.uint32(ident & _MARK)
    for segment in range(first // SEGMENT, (end + SEGMENT - 1) // SEGMENT):
        if not _bloom_may_hold(bloom[segment, 0], mark):
            continue
        for chunk in range(max(first, segment * SEGMENT), min(end, (segment + 1) * SEGMENT)):
            if slot[chunk] < 0 or not _has_mark(marks[chunk, 0], mark, np.uint32(_MARK)):
                continue
            events = store[slot[chunk]]
            for index in range(CHUNK):
                if events[ID, index] == ident and events[TIME, index] > gone:
                    return True
    return False


@compiled
def find_merchant(
    hdr: Ints,
    head: Ints,
    live: Marks,
    marks: Marks,
    seg: Ints,
    bloom: Marks,
    slot: Slots,
    store: Ints,
    merchant: int,
) -> tuple[int, int]:
    """Return ``(place, time)`` of the merchant's live event.

    ``place`` is -1 where there is none, the index in the head, or CHUNK plus the place in the sealed log.
    """
    if merchant == 0:
        return -1, NO_TIME
    bits = hdr[H_LIVE]
    for index in range(hdr[H_HEAD]):
        if head[MERCHANT, index] == merchant and (bits >> index) & 1:
            return index, head[TIME, index]
    base = hdr[H_BASE]
    first = hdr[H_FIRST_CHUNK] - base
    end = hdr[H_NEXT_CHUNK] - base
    mark = np.uint32(merchant & _MARK)
    for segment in range((end + SEGMENT - 1) // SEGMENT - 1, first // SEGMENT - 1, -1):
        if seg[segment, 6] == 0 or not _bloom_may_hold(bloom[segment, 1], mark):
            continue
        for chunk in range(min(end, (segment + 1) * SEGMENT) - 1, max(first, segment * SEGMENT) - 1, -1):
            if live[chunk] == 0 or slot[chunk] < 0 or not _has_mark(marks[chunk, 1], mark, live[chunk]):
                continue
            events = store[slot[chunk]]
            bits = np.int64(live[chunk])
            for index in range(CHUNK):
                if events[MERCHANT, index] == merchant and (bits >> index) & 1:
                    return CHUNK + chunk * CHUNK + index, events[TIME, index]
    return -1, NO_TIME


@compiled
def _nest(acc: Ints) -> None:
    """Turn rings (each event in the shortest window that holds it) into windows."""
    for row in range(1, _WINDOWS):
        for column in range(ACC_SIZE):
            if column == _TOP:
                acc[row, column] = max(acc[row, column], acc[row - 1, column])
            else:
                acc[row, column] += acc[row - 1, column]


@compiled
def _query_in_order(
    hdr: Ints,
    head: Ints,
    summary: Ints,
    live: Marks,
    seg: Ints,
    slot: Slots,
    store: Ints,
    low: Ints,
    acc: Ints,
) -> int:
    """Add up the windows of an event that is not older than the newest; returns the newest time."""
    base = hdr[H_BASE]
    first = hdr[H_FIRST_CHUNK] - base
    end = hdr[H_NEXT_CHUNK] - base
    for segment in range(first // SEGMENT, (end + SEGMENT - 1) // SEGMENT):
        begin = segment * SEGMENT
        stop = begin + SEGMENT
        if begin >= first and stop <= end:
            outer = _ring(low, seg[segment, 1])
            if outer < 0:
                continue
            if _ring(low, seg[segment, 0]) == outer:
                _add_summary(acc, outer, SEGMENT * CHUNK, seg[segment], seg[segment, 6])
                continue
        for chunk in range(max(first, begin), min(end, stop)):
            outer = _ring(low, summary[chunk, 1])
            if outer < 0:
                continue
            if _ring(low, summary[chunk, 0]) == outer:
                _add_summary(acc, outer, CHUNK, summary[chunk], _popcount(int(live[chunk])))
                continue
            if slot[chunk] < 0:
                raise RuntimeError("a chunk that the query needs is not loaded")
            events = store[slot[chunk]]
            bits = np.int64(live[chunk])
            for index in range(CHUNK):
                row = _ring(low, events[TIME, index])
                if row >= 0:
                    _add_amount(acc, row, events[AMOUNT, index])
                    acc[row, _DISTINCT] += (bits >> index) & 1
    bits = hdr[H_LIVE]
    for index in range(hdr[H_HEAD]):
        row = _ring(low, head[TIME, index])
        if row >= 0:
            _add_amount(acc, row, head[AMOUNT, index])
            acc[row, _DISTINCT] += (bits >> index) & 1
    _nest(acc)
    return int(hdr[H_NEWEST])


@compiled
def _query_late(
    hdr: Ints,
    head: Ints,
    slot: Slots,
    store: Ints,
    t: int,
    low: Ints,
    gone: int,
    acc: Ints,
) -> int:
    """Add up the windows of an event older than the newest, from every event kept.

    Live bits speak of the user's newest state and cannot answer for an earlier time, so merchants are
    counted afresh: in a hash set that remembers the shortest window each was seen in.
    """
    base = hdr[H_BASE]
    first = hdr[H_FIRST_CHUNK] - base
    chunks = hdr[H_NEXT_CHUNK] - base - first
    size = 64
    while size < 2 * (chunks + 1) * CHUNK:
        size *= 2
    keys = np.zeros(size, np.int64)
    rings = np.empty(size, np.int64)
    previous = NO_TIME
    lost = hdr[H_GONE]
    for part in range(chunks):
        if slot[first + part] < 0:
            raise RuntimeError("a chunk that the query needs is not loaded")
    for part in range(chunks + 1):
        in_head = part == chunks
        events = head if in_head else store[slot[first + part]]
        for index in range(hdr[H_HEAD] if in_head else CHUNK):
            time = events[TIME, index]
            if time <= gone:
                lost = max(lost, time)
                continue
            if time > t:
                continue
            previous = max(previous, time)
            row = _ring(low, time)
            if row < 0:
                continue
            _add_amount(acc, row, events[AMOUNT, index])
            merchant = events[MERCHANT, index]
            if merchant == 0:
                continue
            place = (merchant ^ (merchant >> 32)) & (size - 1)
            while keys[place] != 0 and keys[place] != merchant:
                place = (place + 1) & (size - 1)
            if keys[place] == 0:
                keys[place] = merchant
                rings[place] = row
            elif row < rings[place]:
                rings[place] = row
    for place in range(size):
        if keys[place] != 0:
            acc[rings[place], _DISTINCT] += 1
    _nest(acc)
    if previous == NO_TIME and lost <= t:
        previous = lost
    return previous


@compiled
def _merchant_time_before(
    hdr: Ints,
    head: Ints,
    slot: Slots,
    store: Ints,
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
        events = head if in_head else store[slot[first + part]]
        for index in range(hdr[H_HEAD] if in_head else CHUNK):
            time = events[TIME, index]
            if events[MERCHANT, index] == merchant and gone < time <= t and time > found:
                found = time
    return found


@compiled
def query(
    hdr: Ints,
    head: Ints,
    summary: Ints,
    live: Marks,
    seg: Ints,
    slot: Slots,
    store: Ints,
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
    """Write the history features of one event to ``out``, in the order of ``HISTORY_FEATURES``.

    The chunks that :func:`plan` names must be loaded. Changes nothing of the history.

    ``merchant_time`` is the time of the merchant's live event, from :func:`find_merchant`.
    """
    gone = set_edges(hdr, t, horizon_ms, low)
    acc[:, :] = 0
    if t >= hdr[H_NEWEST]:
        previous = _query_in_order(hdr, head, summary, live, seg, slot, store, low, acc)
    else:
        previous = _query_late(hdr, head, slot, store, t, low, gone, acc)
        if merchant != 0:
            merchant_time = _merchant_time_before(hdr, head, slot, store, merchant, t, gone)
    units = float(minor_units)
    place = 0
    mean_7d = mean_of(acc[2, _N], acc[2, _S0], acc[2, _S0 + 1])
    mean_30d = mean_of(acc[3, _N], acc[3, _S0], acc[3, _S0 + 1])
    std_30d = std_of(
        acc[3, _N],
        acc[3, _S0],
        acc[3, _S0 + 1],
        acc[3, _Q0],
        acc[3, _Q0 + 1],
        acc[3, _Q0 + 2],
        acc[3, _Q0 + 3],
    )
    for row in range(_WINDOWS):
        _add_amount(acc, row, amount)
        count = acc[row, _N]
        if merchant != 0 and merchant_time <= low[row]:
            acc[row, _DISTINCT] += 1
        out[place] = float(count)
        out[place + 1] = sum_of(acc[row, _S0], acc[row, _S0 + 1]) / units
        out[place + 2] = mean_of(count, acc[row, _S0], acc[row, _S0 + 1]) / units
        out[place + 3] = float(acc[row, _TOP]) / units
        out[place + 4] = (
            std_of(
                count,
                acc[row, _S0],
                acc[row, _S0 + 1],
                acc[row, _Q0],
                acc[row, _Q0 + 1],
                acc[row, _Q0 + 2],
                acc[row, _Q0 + 3],
            )
            / units
        )
        out[place + 5] = float(acc[row, _DISTINCT])
        place += 6
    value = float(amount)
    since = math.nan if previous == NO_TIME else float(t - previous)
    out[place] = since / 1000.0
    out[place + 1] = value / mean_7d if mean_7d > 0.0 else math.nan
    out[place + 2] = value / mean_30d if mean_30d > 0.0 else math.nan
    out[place + 3] = (value - mean_30d) / std_30d if std_30d > 0.0 else math.nan
    # The lifetime profile, this event included, in the accumulator's first row.
    acc[0, _N] = hdr[H_COUNT]
    acc[0, _S0] = hdr[H_SUM]
    acc[0, _S0 + 1] = hdr[H_SUM + 1]
    for limb in range(4):
        acc[0, _Q0 + limb] = hdr[H_SQUARES + limb]
    acc[0, _TOP] = hdr[H_MAX]
    _add_amount(acc, 0, amount)
    mean = mean_of(acc[0, _N], acc[0, _S0], acc[0, _S0 + 1])
    std = std_of(
        acc[0, _N],
        acc[0, _S0],
        acc[0, _S0 + 1],
        acc[0, _Q0],
        acc[0, _Q0 + 1],
        acc[0, _Q0 + 2],
        acc[0, _Q0 + 3],
    )
    out[place + 4] = float(acc[0, _N])
    out[place + 5] = mean / units
    out[place + 6] = std / units
    out[place + 7] = float(acc[0, _TOP]) / units
    out[place + 8] = std / mean if mean > 0.0 else math.nan
    first = hdr[H_FIRST]
    first = t if first == NO_TIME or t < first else first
    out[place + 9] = float(t - first) / 86_400_000.0
    out[place + 10] = since / 86_400_000.0


@compiled
def apply(
    hdr: Ints,
    head: Ints,
    live: Marks,
    seg: Ints,
    pending: Ints,
    t: int,
    amount: int,
    merchant: int,
    ident: int,
    place: int,
    merchant_time: int,
) -> None:
    """Append one event to the head and update the header; ``place`` is from :func:`find_merchant`.

    The caller empties ``pending`` (by storing the live bitmaps) before it holds more than CHUNK.
    """
    index = hdr[H_HEAD]
    head[TIME, index] = t
    head[AMOUNT, index] = amount
    head[MERCHANT, index] = merchant
    head[ID, index] = ident
    if merchant != 0 and (place < 0 or merchant_time <= t):
        hdr[H_LIVE] |= 1 << index
        if 0 <= place < CHUNK:
            hdr[H_LIVE] &= ~(1 << place)
        elif place >= CHUNK:
            chunk, bit = divmod(place - CHUNK, CHUNK)
            live[chunk] = np.uint32(np.int64(live[chunk]) & ~(1 << bit))
            seg[chunk // SEGMENT, 6] -= 1
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


@compiled
def expire(hdr: Ints, head: Ints, summary: Ints, horizon_ms: int) -> None:
    """Forget what no window can ask for: gone events of the head, and chunks gone as a whole."""
    gone = hdr[H_NEWEST] - horizon_ms
    kept = 0
    bits = 0
    for index in range(hdr[H_HEAD]):
        if head[TIME, index] <= gone:
            hdr[H_GONE] = max(hdr[H_GONE], head[TIME, index])
            continue
        if (hdr[H_LIVE] >> index) & 1:
            bits |= 1 << kept
        if kept != index:
            for row in range(4):
                head[row, kept] = head[row, index]
        kept += 1
    hdr[H_HEAD] = kept
    hdr[H_LIVE] = bits
    while hdr[H_FIRST_CHUNK] < hdr[H_NEXT_CHUNK]:
        latest = summary[hdr[H_FIRST_CHUNK] - hdr[H_BASE], 1]
        if latest > gone:
            break
        hdr[H_GONE] = max(hdr[H_GONE], latest)
        hdr[H_FIRST_CHUNK] += 1


@compiled
def index_chunk(chunk: int, summary: Ints, live: Marks, marks: Marks, seg: Ints, bloom: Marks) -> None:
    """Add a sealed chunk to its segment's summary and filters."""
    segment = chunk // SEGMENT
    acc = np.zeros((1, ACC_SIZE), np.int64)
    earliest = summary[chunk, 0]
    latest = summary[chunk, 1]
    if chunk % SEGMENT == 0:
        seg[segment, :] = 0
        bloom[segment, 0, :] = 0
        bloom[segment, 1, :] = 0
    else:
        earliest = min(earliest, seg[segment, 0])
        latest = max(latest, seg[segment, 1])
        _add_summary(acc, 0, 0, seg[segment], 0)
    _add_summary(acc, 0, 0, summary[chunk], 0)
    _write_summary(acc, 0, earliest, latest, seg[segment])
    seg[segment, 6] += _popcount(int(live[chunk]))
    for event in range(CHUNK):
        _bloom_set(bloom[segment, 0], marks[chunk, 0, event])
        _bloom_set(bloom[segment, 1], marks[chunk, 1, event])


@compiled
def index_chunks(count: int, summary: Ints, live: Marks, marks: Marks, seg: Ints, bloom: Marks) -> None:
    """Make the segments' summaries and filters of the first ``count`` chunks."""
    for chunk in range(count):
        index_chunk(chunk, summary, live, marks, seg, bloom)


@compiled
def seal(
    hdr: Ints,
    head: Ints,
    summary: Ints,
    live: Marks,
    marks: Marks,
    seg: Ints,
    bloom: Marks,
    slot: Slots,
    store: Ints,
    target: int,
) -> None:
    """Make a sealed chunk of the full head, its events in ``store[target]``; empties the head."""
    index = hdr[H_NEXT_CHUNK] - hdr[H_BASE]
    earliest = head[TIME, 0]
    latest = earliest
    acc = np.zeros((1, ACC_SIZE), np.int64)
    for event in range(CHUNK):
        earliest = min(earliest, head[TIME, event])
        latest = max(latest, head[TIME, event])
        _add_amount(acc, 0, head[AMOUNT, event])
        marks[index, 0, event] = np.uint32(head[ID, event] & _MARK)
        marks[index, 1, event] = np.uint32(head[MERCHANT, event] & _MARK)
        for row in range(4):
            store[target, row, event] = head[row, event]
    _write_summary(acc, 0, earliest, latest, summary[index])
    live[index] = np.uint32(hdr[H_LIVE])
    slot[index] = target
    index_chunk(index, summary, live, marks, seg, bloom)
    hdr[H_NEXT_CHUNK] += 1
    hdr[H_HEAD] = 0
    hdr[H_LIVE] = 0
    hdr[H_PENDING] = 0


@compiled
def step(
    hdr: Ints,
    head: Ints,
    summary: Ints,
    live: Marks,
    marks: Marks,
    seg: Ints,
    bloom: Marks,
    slot: Slots,
    store: Ints,
    pending: Ints,
    offset: int,
    source: int,
    t: int,
    amount: int,
    merchant: int,
    ident: int,
    minor_units: int,
    horizon_ms: int,
    lateness_ms: int,
    learn: bool,
    low: Ints,
    acc: Ints,
    out: Floats,
) -> int:  # fmt: skip
    """Take one event whole: recognise it, write its features to ``out`` and, to ``learn``, apply it.

    Returns SCORED, LATE, DUPLICATE, or REPLAYED for a record whose effect the state already holds.
    """
    if hdr[H_SOURCE] == source and offset <= hdr[H_OFFSET]:
        return REPLAYED
    if is_duplicate(hdr, head, marks, bloom, slot, store, ident, horizon_ms):
        return DUPLICATE
    outcome = LATE if hdr[H_NEWEST] != NO_TIME and t < hdr[H_NEWEST] - lateness_ms else SCORED
    place, merchant_time = find_merchant(hdr, head, live, marks, seg, bloom, slot, store, merchant)
    query(
        hdr, head, summary, live, seg, slot, store, t, amount, merchant, merchant_time, minor_units,
        horizon_ms, low, acc, out,
    )  # fmt: skip
    if learn:
        apply(hdr, head, live, seg, pending, t, amount, merchant, ident, place, merchant_time)
        hdr[H_OFFSET] = offset
        hdr[H_SOURCE] = source
        expire(hdr, head, summary, horizon_ms)
    return outcome


@compiled
def run_users(
    starts: Ints,
    order: Ints,
    t: Ints,
    amount: Ints,
    merchant: Ints,
    ident: Ints,
    minor_units: Ints,
    horizon_ms: int,
    lateness_ms: int,
    outcome: Codes,
    features: Floats,
    scratch_chunks: int,
) -> None:
    """Run whole users from nothing, each one's events in arrival order: the offline driver.

    Parameters
    ----------
    starts : int64[users + 1]
        Where in ``order`` each user's events begin.
    order : int64[events]
        Row numbers, grouped by user.
    outcome : uint8[rows], features : float64[rows, OUT_SIZE]
        Written at the events' rows.
    scratch_chunks : int
        Chunks that the user with most events fills.

    """
    hdr = np.zeros(HDR_SIZE, np.int64)
    head = np.zeros((4, CHUNK), np.int64)
    summary = np.zeros((scratch_chunks, 6), np.int64)
    live = np.zeros(scratch_chunks, np.uint32)
    marks = np.zeros((scratch_chunks, 2, CHUNK), np.uint32)
    segments = scratch_chunks // SEGMENT + 1
    seg = np.zeros((segments, 7), np.int64)
    bloom = np.zeros((segments, 2, BLOOM_WORDS), np.uint32)
    slot = np.zeros(scratch_chunks, np.int32)
    store = np.zeros((scratch_chunks, 4, CHUNK), np.int64)
    pending = np.zeros(CHUNK, np.int64)
    low = np.zeros(_WINDOWS, np.int64)
    acc = np.zeros((_WINDOWS, ACC_SIZE), np.int64)
    for user in range(len(starts) - 1):
        clear_header(hdr)
        for place in range(starts[user], starts[user + 1]):
            row = order[place]
            outcome[row] = step(
                hdr, head, summary, live, marks, seg, bloom, slot, store, pending,
                place, 1, t[row], amount[row], merchant[row], ident[row], minor_units[row],
                horizon_ms, lateness_ms, True, low, acc, features[row],
            )  # fmt: skip
            if hdr[H_PENDING] == CHUNK:
                hdr[H_PENDING] = 0
            if hdr[H_HEAD] == CHUNK:
                seal(hdr, head, summary, live, marks, seg, bloom, slot, store, hdr[H_NEXT_CHUNK])


@compiled
def run_heads(
    hdrs: Ints,
    heads: Ints,
    busy: Flags,
    user: Ints,
    offset: Ints,
    source: int,
    t: Ints,
    amount: Ints,
    merchant: Ints,
    ident: Ints,
    minor_units: Ints,
    horizon_ms: int,
    lateness_ms: int,
    learn: bool,
    outcome: Codes,
    features: Floats,
) -> None:
    """Take a batch's events of users that have no sealed chunks: the worker's common case.

    ``busy[u]`` marks users to leave alone; a user whose head fills up becomes one, and that user's
    later events in the batch are marked DEFERRED for the caller to take one by one.
    """
    summary = np.zeros((1, 6), np.int64)
    live = np.zeros(1, np.uint32)
    marks = np.zeros((1, 2, CHUNK), np.uint32)
    seg = np.zeros((1, 7), np.int64)
    bloom = np.zeros((1, 2, BLOOM_WORDS), np.uint32)
    slot = np.zeros(1, np.int32)
    store = np.zeros((1, 4, CHUNK), np.int64)
    pending = np.zeros(CHUNK, np.int64)
    low = np.zeros(_WINDOWS, np.int64)
    acc = np.zeros((_WINDOWS, ACC_SIZE), np.int64)
    for index in range(len(user)):
        who = user[index]
        if busy[who]:
            outcome[index] = DEFERRED
            continue
        outcome[index] = step(
            hdrs[who], heads[who], summary, live, marks, seg, bloom, slot, store, pending,
            offset[index], source, t[index], amount[index], merchant[index], ident[index], minor_units[index],
            horizon_ms, lateness_ms, learn, low, acc, features[index],
        )  # fmt: skip
        if hdrs[who, H_HEAD] == CHUNK:
            busy[who] = True
