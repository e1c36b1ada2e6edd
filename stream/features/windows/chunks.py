"""chunks."""

from __future__ import annotations

from typing import Final

import numpy as np

from stream.features.windows.arrays import (
    _F_LOW,
    _F_RINGS,
    _F_UNTIL,
    _MARK,
    _WINDOWS,
    AMOUNT,
    CHUNK,
    F_END,
    F_LOADED,
    F_OPENED,
    FRAME_SIZE,
    H_BASE,
    H_FIRST_CHUNK,
    H_HEAD,
    H_LIVE,
    H_NEWEST,
    H_NEXT_CHUNK,
    H_PAGE,
    H_PAGES,
    H_PENDING,
    ID,
    MERCHANT,
    NO_TIME,
    SEGMENT,
    TABLE,
    TIME,
    Sealed,
    _ring,
    set_edges,
)
from stream.features.windows.sums import _DISTINCT, ACC_SIZE, _add_amount, _add_sums, _popcount, _write_sums
from stream.jit import Ints, Slots, compiled, counted, prefetch

#: A frame is made anew when so many chunks have been sealed since.
_MOST_BEHIND: Final = 8

#: Words of 64 bits in a line of the processor's cache.
_LINE_WORDS: Final = 8

_HASH: Final = 0x1E3779B97F4A7C15


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
