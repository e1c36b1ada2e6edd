"""The feature kernel: exact windows over one user's history, compiled by numba.

A user's history is a log of events in arrival order. The newest fewer than 64 lie in the *head*; once it is
full, its events are *sealed* as two chunks of 32, which never change. Each sealed chunk has its times, its
sums, a bitmap of *live* events (an event is live while no later one of the same merchant is known), its
merchants, and 32-bit fingerprints of its transaction ids. A query for the window ``(t - W, t]`` adds whole
chunks by their sums and opens only those that straddle an edge. What it added of whole chunks is kept in a
*frame* until an edge meets another chunk, and ids and merchants are found in hash tables, so an event's cost
hardly grows with the history; one older than the user's newest event is the exception and reads the whole
log.

The same functions serve the worker (a few chunks loaded) and training (all of them in memory), and
every sum is an exact integer until the last division, so both give the same bits.

A user's header is ``hdr : int64[HDR_SIZE]``, see the ``H_`` indices; its head is ``head : int64[4, HEAD]``
with the rows TIME (ms), AMOUNT (minor units), MERCHANT (hash, 0 unknown), ID (hash of the transaction id).
The rest is :class:`Sealed`.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from stream.features.compiled import Codes, Flags, Floats, Ints, Marks, Slots, compiled, counted, prefetch
from stream.features.exact import LIMB_BITS, mean_of, std_of, sum_of
from stream.features.spec import HISTORY_FEATURES, WINDOW_MS

__all__ = [
    "AMOUNT",
    "CHUNK",
    "HDR_SIZE",
    "HEAD",
    "ID",
    "MERCHANT",
    "NO_TIME",
    "TABLE",
    "TIME",
    "Sealed",
    "new_header",
]

CHUNK: Final = 32
HEAD: Final = 2 * CHUNK  # so that a user of an ordinary month has nothing sealed
SEGMENT: Final = 32
TABLE: Final = 1280  # entries that a hash table has for the 1,024 events of a segment
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
H_BASE: Final = 18  # number that a chunk at index 0 of the chunk arrays would have; memory only
H_PAGE: Final = 19  # the user's first row of the segment arrays; memory only
H_PAGES: Final = 20  # and how many rows are the user's; memory only
HDR_SIZE: Final = 21

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

# Columns of a frame: what whole chunks add to the windows while the edges stay between the same chunks.
F_END: Final = 0  # index behind the last chunk that the frame accounts for; -1 where there is no frame
F_LOADED: Final = 1  # how many of the user's chunks are loaded; not part of the frame
F_OPENED: Final = 2  # how many chunks straddle an edge: not in the sums, but in ``opened``
_F_LOW: Final = 3  # the edges it was made for, and those from which on it no longer holds
_F_UNTIL: Final = _F_LOW + _WINDOWS
_F_RINGS: Final = _F_UNTIL + _WINDOWS
FRAME_SIZE: Final = 48
#: A frame is made anew when so many chunks have been sealed since.
_MOST_BEHIND: Final = 8

#: Words of 64 bits in a line of the processor's cache.
_LINE_WORDS: Final = 8
#: How many events ahead the offline driver asks for a row's memory.
_AHEAD: Final = 8

_HASH: Final = 0x1E3779B97F4A7C15


class Sealed(NamedTuple):
    """Sealed chunks: of one user offline, of all resident users in the worker.

    A user has a range of whole segments; chunk ``n`` is at index ``n - hdr[H_BASE]``, its segment at that
    by SEGMENT.

    Attributes
    ----------
    times : int64[chunks, 2]
        Earliest and latest time of each chunk.
    sums : int64[chunks, 4]
        Sum, two halves of the sum of squares, maximum.
    live : uint32[chunks]
        Bitmap of each chunk's live events.
    merchants : int64[chunks, CHUNK]
        The events' merchants.
    marks : uint32[chunks, CHUNK]
        Fingerprints of their transaction ids.
    seg : int64[segments, 7]
        Per segment of 32 chunks: earliest and latest time, sums like a chunk's, number of live events.
    ids, shops : uint32[segments * TABLE]
        Hash tables of the transaction ids and of the live events' merchants; an entry is a part of the
        hash and the event's place in the user's range, 0 is free. A user's segments make one table.
    frame : int64[segments, FRAME_SIZE]
        The frame, in the user's first row.
    opened : int32[chunks]
        Chunks that straddle an edge of the frame, from the user's first place on.
    slot : int32[chunks]
        Where in ``store`` a chunk's events lie, or below 0 when it is not loaded.
    store : int64[slots, 4, CHUNK]
        Loaded chunks.
    """

    times: Ints
    sums: Ints
    live: Marks
    merchants: Ints
    marks: Marks
    seg: Ints
    ids: Marks
    shops: Marks
    frame: Ints
    opened: Slots
    slot: Slots
    store: Ints


def new_sealed(chunks: int, slots: int) -> Sealed:
    """Return room for so many chunks, whole segments, of which so many can be loaded."""
    segments = chunks // SEGMENT
    return Sealed(
        times=np.zeros((chunks, 2), np.int64),
        sums=np.zeros((chunks, 4), np.int64),
        live=np.zeros(chunks, np.uint32),
        merchants=np.zeros((chunks, CHUNK), np.int64),
        marks=np.zeros((chunks, CHUNK), np.uint32),
        seg=np.zeros((segments, 7), np.int64),
        ids=np.zeros(segments * TABLE, np.uint32),
        shops=np.zeros(segments * TABLE, np.uint32),
        frame=np.zeros((segments, FRAME_SIZE), np.int64),
        opened=np.zeros(chunks, np.int32),
        slot=np.zeros(chunks, np.int32),
        store=np.zeros((slots, 4, CHUNK), np.int64),
    )


@compiled
def clear_sealed(sealed: Sealed, page: int, pages: int) -> None:
    """Make a range that of a user without chunks."""
    sealed.live[page * SEGMENT : (page + pages) * SEGMENT] = 0
    sealed.slot[page * SEGMENT : (page + pages) * SEGMENT] = -1
    sealed.ids[page * TABLE : (page + pages) * TABLE] = 0
    sealed.shops[page * TABLE : (page + pages) * TABLE] = 0
    sealed.frame[page, F_END] = -1
    sealed.frame[page, F_LOADED] = 0


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
def _bit(index: int | np.int64) -> np.int64:
    """Return a word with one bit set; the 63rd is the sign."""
    return np.int64(1) << np.int64(index)


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


@compiled
def _write_sums(acc: Ints, row: int, sums: Ints) -> None:
    """Carry the limbs of an accumulator's row and pack them."""
    for limb in range(3):
        acc[row, _Q0 + limb + 1] += acc[row, _Q0 + limb] >> LIMB_BITS
        acc[row, _Q0 + limb] &= _MASK
    sums[0] = (acc[row, _S0 + 1] << LIMB_BITS) + acc[row, _S0]
    sums[1] = (acc[row, _Q0 + 1] << LIMB_BITS) | acc[row, _Q0]
    sums[2] = (acc[row, _Q0 + 3] << LIMB_BITS) | acc[row, _Q0 + 2]
    sums[3] = acc[row, _TOP]


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
def _place_bits(pages: int) -> int:
    """Return how many bits of a hash table's entry say an event's place in a range of ``pages``."""
    bits = 10
    while (1 << (bits - 10)) < pages:
        bits += 1
    return bits


@compiled
def _hash(value: int | np.int64) -> int:
    """Return 32 bits that depend on all of ``value``."""
    return int(((value ^ (value >> 32)) * _HASH >> 24) & _MARK)


@compiled
def _entry_hash(hashed: int, place_bits: int) -> int:
    """Return the part of a hash that is kept in a table's entry; never 0, which stands for a free one."""
    return (hashed & (_MARK >> place_bits)) | 1


@compiled
def _add_to_tables(hdr: Ints, sealed: Sealed, chunk: int) -> None:
    """Add a chunk's transaction ids and its live events' merchants to the user's tables."""
    page = hdr[H_PAGE]
    size = hdr[H_PAGES] * TABLE
    bits = _place_bits(hdr[H_PAGES])
    start = page * SEGMENT
    first = hdr[H_FIRST_CHUNK] - hdr[H_BASE]
    ids = sealed.ids[page * TABLE : page * TABLE + size]
    shops = sealed.shops[page * TABLE : page * TABLE + size]
    live = np.int64(sealed.live[chunk])
    for event in range(CHUNK):
        place = (chunk - start) * CHUNK + event
        hashed = _hash(np.int64(sealed.marks[chunk, event]))
        at = (hashed * size) >> 32
        while ids[at] != 0:
            at = at + 1 if at + 1 < size else 0
        ids[at] = np.uint32((_entry_hash(hashed, bits) << bits) | place)
        if not (live >> event) & 1:
            continue
        hashed = _hash(sealed.merchants[chunk, event])
        part = _entry_hash(hashed, bits)
        at = (hashed * size) >> 32
        while shops[at] != 0:
            entry = np.int64(shops[at])
            if entry >> bits == part:
                # The entry of an event that is no longer live, nearly always one of the same merchant.
                other, bit = divmod(entry & ((1 << bits) - 1), CHUNK)
                if start + other < first or not (np.int64(sealed.live[start + other]) >> bit) & 1:
                    break
            at = at + 1 if at + 1 < size else 0
        shops[at] = np.uint32((part << bits) | place)


@compiled
def _add_event(acc: Ints, low: Ints, events: Ints, index: int, bits: int | np.int64) -> None:
    row = _ring(low, events[TIME, index])
    if row >= 0:
        _add_amount(acc, row, events[AMOUNT, index])
        acc[row, _DISTINCT] += (bits >> index) & 1


@compiled
def _hold_until(frame: Ints, row: int, earliest: int) -> None:
    """Note that events of ring ``row`` are in a frame's sums, the earliest of them at ``earliest``."""
    for edge in range(row, _WINDOWS):
        frame[_F_UNTIL + edge] = min(frame[_F_UNTIL + edge], earliest)


@compiled
def _frame(hdr: Ints, sealed: Sealed, low: Ints) -> None:
    """Make the frame for these edges, unless the one that is there holds for them."""
    frame = sealed.frame[hdr[H_PAGE]]
    first = hdr[H_FIRST_CHUNK] - hdr[H_BASE]
    end = hdr[H_NEXT_CHUNK] - hdr[H_BASE]
    holds = frame[F_END] >= 0 and end - frame[F_END] <= _MOST_BEHIND
    for row in range(_WINDOWS):
        holds = holds and frame[_F_LOW + row] <= low[row] < frame[_F_UNTIL + row]
    if holds:
        return
    for row in range(_WINDOWS):
        frame[_F_LOW + row] = low[row]
        frame[_F_UNTIL + row] = -NO_TIME
    frame[_F_RINGS:] = 0
    rings = frame[_F_RINGS : _F_RINGS + _WINDOWS * ACC_SIZE].reshape((_WINDOWS, ACC_SIZE))
    opened = hdr[H_PAGE] * SEGMENT
    for segment in range(first // SEGMENT, (end + SEGMENT - 1) // SEGMENT):
        begin = segment * SEGMENT
        stop = begin + SEGMENT
        if begin >= first and stop <= end:
            earliest = sealed.seg[segment, 0]
            row = _ring(low, sealed.seg[segment, 1])
            if row < 0:
                continue
            if _ring(low, earliest) == row:
                _add_sums(rings, row, SEGMENT * CHUNK, sealed.seg[segment, 2:6], sealed.seg[segment, 6])
                _hold_until(frame, row, earliest)
                continue
        for chunk in range(max(first, begin), min(end, stop)):
            earliest = sealed.times[chunk, 0]
            row = _ring(low, sealed.times[chunk, 1])
            if row < 0:
                continue
            if _ring(low, earliest) == row:
                _add_sums(rings, row, CHUNK, sealed.sums[chunk], _popcount(int(sealed.live[chunk])))
                _hold_until(frame, row, earliest)
            else:
                sealed.opened[opened] = chunk
                opened += 1
    frame[F_OPENED] = opened - hdr[H_PAGE] * SEGMENT
    frame[F_END] = end


@compiled
def ask_for_frame(hdr: Ints, sealed: Sealed, ident: int, merchant: int) -> None:
    """Ask for the memory that an event of this user needs first: its frame and its places in the tables."""
    page = hdr[H_PAGE]
    size = hdr[H_PAGES] * TABLE
    for item in range(0, FRAME_SIZE, _LINE_WORDS):
        prefetch(sealed.frame, page * FRAME_SIZE + item)
    prefetch(sealed.opened, page * SEGMENT)
    prefetch(sealed.ids, page * TABLE + ((_hash(ident & _MARK) * size) >> 32))
    prefetch(sealed.shops, page * TABLE + ((_hash(merchant) * size) >> 32))


@compiled
def ask_for_places(hdr: Ints, sealed: Sealed, merchant: int) -> None:
    """Ask for what the frame and the tables name: opened chunks' places, the merchant's live event."""
    page = hdr[H_PAGE]
    start = page * SEGMENT
    for index in range(start, start + sealed.frame[page, F_OPENED]):
        chunk = np.int64(sealed.opened[index])
        prefetch(sealed.slot, chunk)
        prefetch(sealed.live, chunk)
    size = hdr[H_PAGES] * TABLE
    entry = np.int64(sealed.shops[page * TABLE + ((_hash(merchant) * size) >> 32)])
    place = entry & ((1 << _place_bits(hdr[H_PAGES])) - 1)
    chunk = start + place // CHUNK
    prefetch(sealed.merchants, start * CHUNK + place)
    prefetch(sealed.live, chunk)
    prefetch(sealed.slot, chunk)
    prefetch(sealed.times, 2 * chunk)
    prefetch(sealed.sums, 4 * chunk)


@compiled
def ask_for_chunks(hdr: Ints, sealed: Sealed) -> None:
    """Ask for the events of the opened chunks: their times and amounts."""
    page = hdr[H_PAGE]
    start = page * SEGMENT
    for index in range(start, start + sealed.frame[page, F_OPENED]):
        slot = np.int64(sealed.slot[np.int64(sealed.opened[index])])
        if slot >= 0:
            for item in range(0, 2 * CHUNK, _LINE_WORDS):
                prefetch(sealed.store, 4 * CHUNK * slot + item)


@compiled
def plan(
    hdr: Ints,
    sealed: Sealed,
    t: int,
    ident: int,
    horizon_ms: int,
    low: Ints,
    wanted: Ints,
) -> int:
    """List the chunks (by index) that an event at ``t`` needs and that are not loaded.

    Returns how many of ``wanted`` are set, each chunk once.
    """
    count = 0
    base = hdr[H_BASE]
    first = hdr[H_FIRST_CHUNK] - base
    end = hdr[H_NEXT_CHUNK] - base
    if first >= end:
        return count
    slot = sealed.slot
    if t < hdr[H_NEWEST]:
        for chunk in range(first, end):
            if slot[chunk] < 0:
                wanted[count] = chunk
                count += 1
        return count
    set_edges(hdr, t, horizon_ms, low)
    _frame(hdr, sealed, low)
    page = hdr[H_PAGE]
    frame = sealed.frame[page]
    start = page * SEGMENT
    for index in range(start, start + frame[F_OPENED]):
        straddling = np.int64(sealed.opened[index])
        if straddling >= first and slot[straddling] < 0:
            wanted[count] = straddling
            count += 1
    for chunk in range(max(first, frame[F_END]), end):
        if slot[chunk] < 0 and _ring(low, sealed.times[chunk, 0]) != _ring(low, sealed.times[chunk, 1]):
            wanted[count] = chunk
            count += 1
    gone = hdr[H_NEWEST] - horizon_ms
    size = hdr[H_PAGES] * TABLE
    bits = _place_bits(hdr[H_PAGES])
    mark = np.uint32(ident & _MARK)
    hashed = _hash(np.int64(mark))
    part = _entry_hash(hashed, bits)
    at = (hashed * size) >> 32
    while sealed.ids[page * TABLE + at] != 0:
        entry = np.int64(sealed.ids[page * TABLE + at])
        if entry >> bits == part:
            other, event = divmod(entry & ((1 << bits) - 1), CHUNK)
            held = start + other
            need = held >= first and slot[held] < 0 and sealed.marks[held, event] == mark
            if need and sealed.times[held, 1] > gone:
                for index in range(count):
                    need = need and wanted[index] != held
                if need:
                    wanted[count] = held
                    count += 1
        at = at + 1 if at + 1 < size else 0
    return count


@compiled
def is_duplicate(hdr: Ints, head: Ints, sealed: Sealed, ident: int, horizon_ms: int) -> bool:
    """Return whether a remembered event has this transaction id.

    An event is remembered while its time lies less than the horizon behind the user's newest.
    """
    gone = hdr[H_NEWEST] - horizon_ms
    for index in range(hdr[H_HEAD]):
        if head[ID, index] == ident and head[TIME, index] > gone:
            return True
    first = hdr[H_FIRST_CHUNK] - hdr[H_BASE]
    if first >= hdr[H_NEXT_CHUNK] - hdr[H_BASE]:
        return False
    page = hdr[H_PAGE]
    size = hdr[H_PAGES] * TABLE
    bits = _place_bits(hdr[H_PAGES])
    hashed = _hash(ident & _MARK)
    part = _entry_hash(hashed, bits)
    at = (hashed * size) >> 32
    while sealed.ids[page * TABLE + at] != 0:
        entry = np.int64(sealed.ids[page * TABLE + at])
        if entry >> bits == part:
            other, event = divmod(entry & ((1 << bits) - 1), CHUNK)
            chunk = page * SEGMENT + other
            place = np.int64(sealed.slot[chunk])
            if chunk >= first and place >= 0:
                events = sealed.store[place]
                if events[ID, event] == ident and events[TIME, event] > gone:
                    return True
        at = at + 1 if at + 1 < size else 0
    return False


@compiled
def find_merchant(hdr: Ints, head: Ints, sealed: Sealed, merchant: int) -> tuple[int, int]:
    """Return ``(place, time)`` of the merchant's live event.

    ``place`` is -1 where there is none, the index in the head, or HEAD plus the place in the sealed log.
    Of an event in a chunk that is not loaded ``time`` is the chunk's latest: no edge lies between the two,
    or :func:`plan` would have named the chunk, and no event taken now is older.
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
    while sealed.shops[page * TABLE + at] != 0:
        entry = np.int64(sealed.shops[page * TABLE + at])
        if entry >> bits == part:
            other, event = divmod(entry & ((1 << bits) - 1), CHUNK)
            chunk = page * SEGMENT + other
            if (
                chunk >= first
                and (np.int64(sealed.live[chunk]) >> event) & 1
                and sealed.merchants[chunk, event] == merchant
            ):
                place = np.int64(sealed.slot[chunk])
                time = sealed.store[place, TIME, event] if place >= 0 else sealed.times[chunk, 1]
                return HEAD + chunk * CHUNK + event, time
        at = at + 1 if at + 1 < size else 0
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
def _query_in_order(hdr: Ints, head: Ints, sealed: Sealed, low: Ints, acc: Ints) -> int:
    """Add up the windows of an event that is not older than the newest; returns the newest time."""
    first = hdr[H_FIRST_CHUNK] - hdr[H_BASE]
    end = hdr[H_NEXT_CHUNK] - hdr[H_BASE]
    if first < end:
        _frame(hdr, sealed, low)
        frame = sealed.frame[hdr[H_PAGE]]
        for row in range(_WINDOWS):
            for column in range(ACC_SIZE):
                acc[row, column] = frame[_F_RINGS + ACC_SIZE * row + column]
        start = hdr[H_PAGE] * SEGMENT
        opened = frame[F_OPENED]
        behind = max(first, frame[F_END])
        for index in range(opened + end - behind):
            if index < opened:
                chunk = np.int64(sealed.opened[start + index])
                if chunk < first:
                    continue
            else:
                chunk = behind + index - opened
                row = _ring(low, sealed.times[chunk, 1])
                if row < 0:
                    continue
                if _ring(low, sealed.times[chunk, 0]) == row:
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
    _nest(acc)
    return int(hdr[H_NEWEST])


@counted
def _query_late(
    hdr: Ints,
    head: Ints,
    sealed: Sealed,
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
    while size < 2 * (chunks * CHUNK + HEAD):
        size *= 2
    keys = np.zeros(size, np.int64)
    rings = np.empty(size, np.int64)
    previous = NO_TIME
    lost = hdr[H_GONE]
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


@compiled
def _mean(acc: Ints, row: int) -> float:
    return mean_of(acc[row, _N], acc[row, _S0], acc[row, _S0 + 1])


@compiled
def _std(acc: Ints, row: int) -> float:
    return std_of(
        acc[row, _N], acc[row, _S0], acc[row, _S0 + 1],
        acc[row, _Q0], acc[row, _Q0 + 1], acc[row, _Q0 + 2], acc[row, _Q0 + 3],
    )  # fmt: skip


@compiled
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
    """Write the history features of one event to ``out``, in the order of ``HISTORY_FEATURES``.

    The chunks that :func:`plan` names must be loaded. Changes nothing of the history.

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
    place = 0
    mean_7d = _mean(acc, 2)
    mean_30d = _mean(acc, 3)
    std_30d = _std(acc, 3)
    for row in range(_WINDOWS):
        _add_amount(acc, row, amount)
        count = acc[row, _N]
        if merchant != 0 and merchant_time <= low[row]:
            acc[row, _DISTINCT] += 1
        out[place] = float(count)
        out[place + 1] = sum_of(acc[row, _S0], acc[row, _S0 + 1]) / units
        out[place + 2] = _mean(acc, row) / units
        out[place + 3] = float(acc[row, _TOP]) / units
        out[place + 4] = _std(acc, row) / units
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
    mean = _mean(acc, 0)
    std = _std(acc, 0)
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
def _lose(hdr: Ints, sealed: Sealed, chunk: int, bit: int) -> None:
    """Clear the live bit of a sealed event."""
    sealed.live[chunk] = np.uint32(np.int64(sealed.live[chunk]) & ~(1 << bit))
    sealed.seg[chunk // SEGMENT, 6] -= 1
    frame = sealed.frame[hdr[H_PAGE]]
    if chunk < frame[F_END]:
        low = frame[_F_LOW : _F_LOW + _WINDOWS]
        row = _ring(low, sealed.times[chunk, 1])
        if row >= 0 and row == _ring(low, sealed.times[chunk, 0]):
            frame[_F_RINGS + ACC_SIZE * row + _DISTINCT] -= 1


@compiled
def apply(
    hdr: Ints,
    head: Ints,
    sealed: Sealed,
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
        hdr[H_LIVE] |= _bit(index)
        if 0 <= place < HEAD:
            hdr[H_LIVE] &= ~_bit(place)
        elif place >= HEAD:
            chunk, bit = divmod(place - HEAD, CHUNK)
            _lose(hdr, sealed, chunk, bit)
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
def expire(hdr: Ints, head: Ints, sealed: Sealed, horizon_ms: int) -> None:
    """Forget what no window can ask for: gone events of the head, and chunks gone as a whole."""
    gone = hdr[H_NEWEST] - horizon_ms
    kept = 0
    bits = np.int64(0)
    for index in range(hdr[H_HEAD]):
        if head[TIME, index] <= gone:
            hdr[H_GONE] = max(hdr[H_GONE], head[TIME, index])
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
        hdr[H_GONE] = max(hdr[H_GONE], latest)
        hdr[H_FIRST_CHUNK] += 1


@counted
def index_chunk(hdr: Ints, sealed: Sealed, chunk: int) -> None:
    """Add a sealed chunk to its segment's sums and, unless it is gone, to the user's tables."""
    segment = chunk // SEGMENT
    seg = sealed.seg[segment]
    acc = np.zeros((1, ACC_SIZE), np.int64)
    if chunk % SEGMENT == 0:
        seg[:] = 0
        seg[0] = sealed.times[chunk, 0]
        seg[1] = sealed.times[chunk, 1]
    else:
        seg[0] = min(seg[0], sealed.times[chunk, 0])
        seg[1] = max(seg[1], sealed.times[chunk, 1])
        _add_sums(acc, 0, 0, seg[2:6], 0)
    _add_sums(acc, 0, 0, sealed.sums[chunk], 0)
    _write_sums(acc, 0, seg[2:6])
    seg[6] += _popcount(int(sealed.live[chunk]))
    if chunk >= hdr[H_FIRST_CHUNK] - hdr[H_BASE]:
        _add_to_tables(hdr, sealed, chunk)


@compiled
def is_full(hdr: Ints) -> bool:
    """Say whether the head must be sealed before another event.

    A user of few events has nothing sealed as long as that can be, so the first chunks are made of all that a
    head can hold. Who has chunks writes less with a head of one chunk at the most.
    """
    count = hdr[H_HEAD]
    full: bool = count == HEAD or (count == CHUNK and hdr[H_NEXT_CHUNK] > hdr[H_FIRST_CHUNK])
    return full


@counted
def seal(hdr: Ints, head: Ints, sealed: Sealed, spare: Slots, used: int) -> int:
    """Make sealed chunks of a full head, their events in ``store[spare[used:]]``; empties the head.

    Returns how many slots are used then.
    """
    for begin in range(0, hdr[H_HEAD], CHUNK):
        target = spare[used]
        used += 1
        chunk = hdr[H_NEXT_CHUNK] - hdr[H_BASE]
        earliest = head[TIME, begin]
        latest = earliest
        acc = np.zeros((1, ACC_SIZE), np.int64)
        for event in range(CHUNK):
            index = begin + event
            earliest = min(earliest, head[TIME, index])
            latest = max(latest, head[TIME, index])
            _add_amount(acc, 0, head[AMOUNT, index])
            sealed.merchants[chunk, event] = head[MERCHANT, index]
            sealed.marks[chunk, event] = np.uint32(head[ID, index] & _MARK)
            for row in range(4):
                sealed.store[target, row, event] = head[row, index]
        sealed.times[chunk, 0] = earliest
        sealed.times[chunk, 1] = latest
        _write_sums(acc, 0, sealed.sums[chunk])
        sealed.live[chunk] = np.uint32((hdr[H_LIVE] >> begin) & _MARK)
        sealed.slot[chunk] = target
        sealed.frame[hdr[H_PAGE], F_LOADED] += 1
        index_chunk(hdr, sealed, chunk)
        hdr[H_NEXT_CHUNK] += 1
    hdr[H_HEAD] = 0
    hdr[H_LIVE] = 0
    hdr[H_PENDING] = 0
    return used


@compiled
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
    if is_duplicate(hdr, head, sealed, ident, horizon_ms):
        return DUPLICATE
    outcome = LATE if hdr[H_NEWEST] != NO_TIME and t < hdr[H_NEWEST] - lateness_ms else SCORED
    place, merchant_time = find_merchant(hdr, head, sealed, merchant)
    query(
        hdr, head, sealed, t, amount, merchant, merchant_time, minor_units, horizon_ms, low, acc, out,
    )  # fmt: skip
    if learn:
        apply(hdr, head, sealed, pending, t, amount, merchant, ident, place, merchant_time)
        hdr[H_OFFSET] = offset
        hdr[H_SOURCE] = source
        expire(hdr, head, sealed, horizon_ms)
    return outcome


@counted
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
    sealed: Sealed,
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
    sealed
        Scratch, of whole segments, for the chunks of the user with most events, all of them loaded.
    """
    hdr = np.zeros(HDR_SIZE, np.int64)
    head = np.zeros((4, HEAD), np.int64)
    slots = np.arange(len(sealed.store)).astype(np.int32)
    pending = np.zeros(CHUNK, np.int64)
    low = np.zeros(_WINDOWS, np.int64)
    acc = np.zeros((_WINDOWS, ACC_SIZE), np.int64)
    row_words = features.strides[0] // features.itemsize
    for user in range(len(starts) - 1):
        clear_header(hdr)
        chunks = (starts[user + 1] - starts[user]) // CHUNK
        hdr[H_PAGES] = (chunks + SEGMENT - 1) // SEGMENT
        if chunks > 0:
            clear_sealed(sealed, 0, hdr[H_PAGES])
        for place in range(starts[user], starts[user + 1]):
            # A user's rows lie far apart in the file.
            if place + _AHEAD < len(order):
                coming = order[place + _AHEAD]
                prefetch(t, coming)
                prefetch(amount, coming)
                prefetch(merchant, coming)
                prefetch(ident, coming)
                prefetch(minor_units, coming)
                prefetch(outcome, coming)
                for word in range(0, OUT_SIZE + _LINE_WORDS, _LINE_WORDS):
                    prefetch(features, coming * row_words + word)
            row = order[place]
            outcome[row] = step(
                hdr, head, sealed, pending,
                place, 1, t[row], amount[row], merchant[row], ident[row], minor_units[row],
                horizon_ms, lateness_ms, True, low, acc, features[row],
            )  # fmt: skip
            if hdr[H_PENDING] == CHUNK:
                hdr[H_PENDING] = 0
            if is_full(hdr):
                seal(hdr, head, sealed, slots, hdr[H_NEXT_CHUNK])


@counted
def run_heads(
    hdrs: Ints,
    heads: Ints,
    busy: Flags,
    user: Ints,
    offset: Ints,
    source: Ints,
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
    later events in the batch are marked DEFERRED for the caller to take.
    """
    sealed = Sealed(
        np.zeros((0, 2), np.int64),
        np.zeros((0, 4), np.int64),
        np.zeros(0, np.uint32),
        np.zeros((0, CHUNK), np.int64),
        np.zeros((0, CHUNK), np.uint32),
        np.zeros((0, 7), np.int64),
        np.zeros(0, np.uint32),
        np.zeros(0, np.uint32),
        np.zeros((0, FRAME_SIZE), np.int64),
        np.zeros(0, np.int32),
        np.zeros(0, np.int32),
        np.zeros((0, 4, CHUNK), np.int64),
    )
    pending = np.zeros(CHUNK, np.int64)
    low = np.zeros(_WINDOWS, np.int64)
    acc = np.zeros((_WINDOWS, ACC_SIZE), np.int64)
    for index in range(len(user)):
        who = user[index]
        if busy[who]:
            outcome[index] = DEFERRED
            continue
        outcome[index] = step(
            hdrs[who], heads[who], sealed, pending,
            offset[index], source[who], t[index], amount[index],
            merchant[index], ident[index], minor_units[index],
            horizon_ms, lateness_ms, learn, low, acc, features[index],
        )  # fmt: skip
        if is_full(hdrs[who]):
            busy[who] = True
