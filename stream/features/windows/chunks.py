"""What keeps long histories cheap: window cache, hash tables, and the sealing of chunks."""

from __future__ import annotations

from typing import Final

import numpy as np

from stream.features.windows.arrays import (
    _F_BUCKETS,
    _F_HIGH,
    _F_LOW,
    _F_UNTIL,
    _MARK,
    _W0,
    _W1,
    _W2,
    _W3,
    _WINDOWS,
    AMOUNT,
    CHUNK,
    F_END,
    F_LOADED,
    F_MARGIN,
    F_RECENT,
    F_SINCE,
    F_STRADDLING,
    H_BASE,
    H_FIRST_CHUNK,
    H_HEAD,
    H_LIVE,
    H_NEWEST,
    H_NEWEST_EXPIRED,
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
    WINDOW_CACHE_SIZE,
    Sealed,
    _bucket,
    is_recent,
    set_edges,
)
from stream.features.windows.sums import _DISTINCT, ACC_SIZE, _add_amount, _add_sums, _popcount, _write_sums
from stream.jit import Flags, Ints, Slots, jit, jit_alloc, prefetch

__all__ = ["index_stored", "plan", "prefetch_chunks", "prefetch_table_slots", "prefetch_window_cache", "seal"]

#: A frame is made anew when so many chunks have been sealed since.
_MAX_BEHIND: Final = 8

#: The margin shrinks by so many powers of two whenever the frame is made anew.
_MARGIN_DECAY: Final = 4

#: Words of 64 bits in a line of the processor's cache.
_LINE_WORDS: Final = 8

_HASH: Final = 0x1E3779B97F4A7C15


@jit
def _place_bits(pages: int) -> int:
    """Return the number of bits of a hash table's entry that hold an event's index in ``pages`` pages."""
    bits = 10
    while (1 << (bits - 10)) < pages:
        bits += 1
    return bits


@jit
def _hash(value: int | np.int64) -> int:
    """Return 32 bits that depend on all of ``value``."""
    return int(((value ^ (value >> 32)) * _HASH >> 24) & _MARK)


@jit
def _entry_hash(hashed: int, place_bits: int) -> int:
    """Return the part of a hash in a table's entry; never 0, which stands for a free entry."""
    return (hashed & (_MARK >> place_bits)) | 1


@jit
def _add_to_tables(hdr: Ints, sealed: Sealed, chunk: int) -> None:
    """Add a chunk's transaction ids and its live events' merchants to the user's tables."""
    page = hdr[H_PAGE]
    size = hdr[H_PAGES] * TABLE
    bits = _place_bits(hdr[H_PAGES])
    start = page * SEGMENT
    first = hdr[H_FIRST_CHUNK] - hdr[H_BASE]
    id_table = sealed.id_table[page * TABLE : page * TABLE + size]
    merchant_table = sealed.merchant_table[page * TABLE : page * TABLE + size]
    live = np.int64(sealed.live[chunk])
    for event in range(CHUNK):
        index = (chunk - start) * CHUNK + event
        hashed = _hash(np.int64(sealed.id_fingerprints[chunk, event]))
        at = (hashed * size) >> 32
        while id_table[at] != 0:
            at = at + 1 if at + 1 < size else 0
        id_table[at] = np.uint32((_entry_hash(hashed, bits) << bits) | index)
        if not (live >> event) & 1:
            continue
        hashed = _hash(sealed.merchants[chunk, event])
        part = _entry_hash(hashed, bits)
        at = (hashed * size) >> 32
        while merchant_table[at] != 0:
            entry = np.int64(merchant_table[at])
            if entry >> bits == part:
                # The entry of an event that is no longer live, nearly always of the same merchant.
                other, bit = divmod(entry & ((1 << bits) - 1), CHUNK)
                if start + other < first or not (np.int64(sealed.live[start + other]) >> bit) & 1:
                    break
            at = at + 1 if at + 1 < size else 0
        merchant_table[at] = np.uint32((part << bits) | index)


@jit
def _hold_until(window_cache: Ints, row: int, earliest: int) -> None:
    """Record that the window cache's sums contain events of bucket ``row``, the earliest at ``earliest``."""
    for edge in range(row, _WINDOWS):
        window_cache[_F_UNTIL + edge] = min(window_cache[_F_UNTIL + edge], earliest)


@jit
def _bucket_of_all(window_cache: Ints, earliest: int, latest: int) -> int:
    """Return the shortest window that holds all events between two times, for all edges of the window cache.

    It is -1 if no window holds any of them, and -2 if the edges separate them.
    """
    row = _bucket(window_cache[_F_LOW : _F_LOW + _WINDOWS], latest)
    if row < 0 or row == _bucket(window_cache[_F_HIGH : _F_HIGH + _WINDOWS], earliest):
        return row
    return -2


@jit
def _set_cached_edges(hdr: Ints, window_cache: Ints, t: int) -> None:
    """Set the edges of the window cache: those of the newest event, down to those of one as late as lately.

    A user whose events come in order has no margin: it would cost more chunks that straddle an edge.
    """
    newest = max(hdr[H_NEWEST], t)
    margin = window_cache[F_MARGIN]
    window_cache[F_MARGIN] -= margin >> _MARGIN_DECAY
    window_cache[_F_HIGH] = newest - _W0
    window_cache[_F_HIGH + 1] = newest - _W1
    window_cache[_F_HIGH + 2] = newest - _W2
    window_cache[_F_HIGH + 3] = newest - _W3
    for row in range(_WINDOWS):
        window_cache[_F_LOW + row] = window_cache[_F_HIGH + row] - margin
        window_cache[_F_UNTIL + row] = -NO_TIME


@jit
def _window_cache(hdr: Ints, sealed: Sealed, t: int, low: Ints) -> None:
    """Compute the window cache for the edges of an event at ``t``, unless it is valid for them."""
    window_cache = sealed.window_cache[hdr[H_PAGE]]
    window_cache[F_MARGIN] = max(window_cache[F_MARGIN], hdr[H_NEWEST] - t)
    first = hdr[H_FIRST_CHUNK] - hdr[H_BASE]
    end = hdr[H_NEXT_CHUNK] - hdr[H_BASE]
    holds = window_cache[F_END] >= 0 and end - window_cache[F_END] <= _MAX_BEHIND
    for row in range(_WINDOWS):
        holds = holds and window_cache[_F_LOW + row] <= low[row] < window_cache[_F_UNTIL + row]
    if holds:
        return
    _set_cached_edges(hdr, window_cache, t)
    window_cache[_F_BUCKETS:] = 0
    rings = window_cache[_F_BUCKETS : _F_BUCKETS + _WINDOWS * ACC_SIZE].reshape((_WINDOWS, ACC_SIZE))
    straddling = hdr[H_PAGE] * SEGMENT
    for segment in range(first // SEGMENT, (end + SEGMENT - 1) // SEGMENT):
        begin = segment * SEGMENT
        stop = begin + SEGMENT
        if begin >= first and stop <= end:
            earliest = sealed.segment_sums[segment, 0]
            row = _bucket_of_all(window_cache, earliest, sealed.segment_sums[segment, 1])
            if row == -1:
                continue
            if row >= 0:
                _add_sums(
                    rings,
                    row,
                    SEGMENT * CHUNK,
                    sealed.segment_sums[segment, 2:6],
                    sealed.segment_sums[segment, 6],
                )
                _hold_until(window_cache, row, earliest)
                continue
        for chunk in range(max(first, begin), min(end, stop)):
            earliest = sealed.times[chunk, 0]
            row = _bucket_of_all(window_cache, earliest, sealed.times[chunk, 1])
            if row == -1:
                continue
            if row >= 0:
                _add_sums(rings, row, CHUNK, sealed.sums[chunk], _popcount(int(sealed.live[chunk])))
                _hold_until(window_cache, row, earliest)
            else:
                sealed.straddling[straddling] = chunk
                straddling += 1
    window_cache[F_STRADDLING] = straddling - hdr[H_PAGE] * SEGMENT
    window_cache[F_END] = end


@jit
def prefetch_window_cache(hdr: Ints, sealed: Sealed, id_hash: int, merchant: int) -> None:
    """Prefetch the memory that an event of this user needs first: its window cache and table entries."""
    page = hdr[H_PAGE]
    size = hdr[H_PAGES] * TABLE
    for item in range(0, WINDOW_CACHE_SIZE, _LINE_WORDS):
        prefetch(sealed.window_cache, page * WINDOW_CACHE_SIZE + item)
    prefetch(sealed.straddling, page * SEGMENT)
    prefetch(sealed.id_table, page * TABLE + ((_hash(id_hash & _MARK) * size) >> 32))
    prefetch(sealed.merchant_table, page * TABLE + ((_hash(merchant) * size) >> 32))


@jit
def prefetch_table_slots(hdr: Ints, sealed: Sealed, merchant: int) -> None:
    """Prefetch the chunks that straddle an edge and the live event of the merchant."""
    page = hdr[H_PAGE]
    start = page * SEGMENT
    for index in range(start, start + sealed.window_cache[page, F_STRADDLING]):
        chunk = np.int64(sealed.straddling[index])
        prefetch(sealed.slot, chunk)
        prefetch(sealed.live, chunk)
    size = hdr[H_PAGES] * TABLE
    entry = np.int64(sealed.merchant_table[page * TABLE + ((_hash(merchant) * size) >> 32)])
    position = entry & ((1 << _place_bits(hdr[H_PAGES])) - 1)
    chunk = start + position // CHUNK
    prefetch(sealed.merchants, start * CHUNK + position)
    prefetch(sealed.live, chunk)
    prefetch(sealed.slot, chunk)
    prefetch(sealed.times, 2 * chunk)
    prefetch(sealed.sums, 4 * chunk)


@jit
def prefetch_chunks(hdr: Ints, sealed: Sealed) -> None:
    """Prefetch the events of the straddling chunks: their times and amounts."""
    page = hdr[H_PAGE]
    start = page * SEGMENT
    for index in range(start, start + sealed.window_cache[page, F_STRADDLING]):
        slot = np.int64(sealed.slot[np.int64(sealed.straddling[index])])
        if slot >= 0:
            for item in range(0, 2 * CHUNK, _LINE_WORDS):
                prefetch(sealed.store, 4 * CHUNK * slot + item)


@jit
def plan(
    hdr: Ints,
    sealed: Sealed,
    t: int,
    id_hash: int,
    horizon_ms: int,
    low: Ints,
    wanted: Ints,
) -> int:
    """List the chunks (by index) that an event at ``t`` needs and that are not loaded.

    Returns the number of entries of ``wanted`` that are set, each chunk once.
    """
    count = 0
    base = hdr[H_BASE]
    first = hdr[H_FIRST_CHUNK] - base
    end = hdr[H_NEXT_CHUNK] - base
    if first >= end:
        return count
    slot = sealed.slot
    late = t < hdr[H_NEWEST]
    if late and not is_recent(hdr, sealed, t):
        for chunk in range(first, end):
            if slot[chunk] < 0:
                wanted[count] = chunk
                count += 1
        return count
    set_edges(hdr, t, horizon_ms, low)
    _window_cache(hdr, sealed, t, low)
    page = hdr[H_PAGE]
    window_cache = sealed.window_cache[page]
    start = page * SEGMENT
    for index in range(start, start + window_cache[F_STRADDLING]):
        straddling = np.int64(sealed.straddling[index])
        if straddling >= first and slot[straddling] < 0:
            wanted[count] = straddling
            count += 1
    for chunk in range(max(first, window_cache[F_END]), end):
        if slot[chunk] < 0 and _bucket(low, sealed.times[chunk, 0]) != _bucket(low, sealed.times[chunk, 1]):
            wanted[count] = chunk
            count += 1
    if late:
        count = _plan_later(hdr, sealed, t, wanted, count)
    gone = hdr[H_NEWEST] - horizon_ms
    size = hdr[H_PAGES] * TABLE
    bits = _place_bits(hdr[H_PAGES])
    mark = np.uint32(id_hash & _MARK)
    hashed = _hash(np.int64(mark))
    part = _entry_hash(hashed, bits)
    at = (hashed * size) >> 32
    while sealed.id_table[page * TABLE + at] != 0:
        entry = np.int64(sealed.id_table[page * TABLE + at])
        if entry >> bits == part:
            other, event = divmod(entry & ((1 << bits) - 1), CHUNK)
            held = start + other
            need = held >= first and slot[held] < 0 and sealed.id_fingerprints[held, event] == mark
            if need and sealed.times[held, 1] > gone:
                for index in range(count):
                    need = need and wanted[index] != held
                if need:
                    wanted[count] = held
                    count += 1
        at = at + 1 if at + 1 < size else 0
    return count


@jit
def _plan_later(hdr: Ints, sealed: Sealed, t: int, wanted: Ints, count: int) -> int:
    """Add the chunks with events later than ``t`` to those that :func:`plan` lists."""
    first = hdr[H_FIRST_CHUNK] - hdr[H_BASE]
    end = hdr[H_NEXT_CHUNK] - hdr[H_BASE]
    for segment in range(first // SEGMENT, (end + SEGMENT - 1) // SEGMENT):
        if sealed.segment_sums[segment, 1] <= t:
            continue
        for chunk in range(max(first, segment * SEGMENT), min(end, (segment + 1) * SEGMENT)):
            need = sealed.slot[chunk] < 0 and sealed.times[chunk, 1] > t
            for index in range(count):
                need = need and wanted[index] != chunk
            if need:
                wanted[count] = chunk
                count += 1
    return count


@jit
def _clear_live_bit(hdr: Ints, sealed: Sealed, chunk: int, bit: int) -> None:
    """Clear the live bit of a sealed event."""
    sealed.live[chunk] = np.uint32(np.int64(sealed.live[chunk]) & ~(1 << bit))
    sealed.segment_sums[chunk // SEGMENT, 6] -= 1
    window_cache = sealed.window_cache[hdr[H_PAGE]]
    if chunk < window_cache[F_END]:
        row = _bucket_of_all(window_cache, sealed.times[chunk, 0], sealed.times[chunk, 1])
        if row >= 0:
            window_cache[_F_BUCKETS + ACC_SIZE * row + _DISTINCT] -= 1


@jit_alloc
def _index_chunk(hdr: Ints, sealed: Sealed, chunk: int) -> None:
    """Add a sealed chunk to its segment's sums and, unless it is gone, to the user's tables."""
    segment = chunk // SEGMENT
    segment_sums = sealed.segment_sums[segment]
    acc = np.zeros((1, ACC_SIZE), np.int64)
    if chunk % SEGMENT == 0:
        segment_sums[:] = 0
        segment_sums[0] = sealed.times[chunk, 0]
        segment_sums[1] = sealed.times[chunk, 1]
    else:
        segment_sums[0] = min(segment_sums[0], sealed.times[chunk, 0])
        segment_sums[1] = max(segment_sums[1], sealed.times[chunk, 1])
        _add_sums(acc, 0, 0, segment_sums[2:6], 0)
    _add_sums(acc, 0, 0, sealed.sums[chunk], 0)
    _write_sums(acc, 0, segment_sums[2:6])
    segment_sums[6] += _popcount(int(sealed.live[chunk]))
    if chunk >= hdr[H_FIRST_CHUNK] - hdr[H_BASE]:
        _add_to_tables(hdr, sealed, chunk)


@jit
def index_stored(
    skipped: Flags, hdrs: Ints, pendings: Ints, chosen: Ints, base: Ints, sealed: Sealed
) -> None:
    """Clear the live bits lost since the last seal, and build the segments' sums and the tables."""
    for user in range(len(chosen)):
        if skipped[user]:
            continue
        hdr = hdrs[chosen[user]]
        shift = hdr[H_BASE]
        for index in range(hdr[H_PENDING]):
            chunk, bit = divmod(pendings[chosen[user], index], CHUNK)
            if hdr[H_FIRST_CHUNK] <= chunk < hdr[H_NEXT_CHUNK]:
                sealed.live[chunk - shift] = np.uint32(np.int64(sealed.live[chunk - shift]) & ~(1 << bit))
        for chunk in range(base[user], hdr[H_NEXT_CHUNK]):
            _index_chunk(hdr, sealed, chunk - shift)


@jit
def _drop_oldest(hdr: Ints, sealed: Sealed) -> None:
    """Drop the oldest chunk although windows reach it; H_NEWEST_EXPIRED then lies within the horizon."""
    latest = sealed.times[hdr[H_FIRST_CHUNK] - hdr[H_BASE], 1]
    hdr[H_NEWEST_EXPIRED] = max(hdr[H_NEWEST_EXPIRED], latest)
    hdr[H_FIRST_CHUNK] += 1
    window_cache = sealed.window_cache[hdr[H_PAGE]]
    window_cache[F_END] = -1
    if window_cache[F_RECENT] >= 0 and latest > window_cache[F_SINCE]:
        window_cache[F_RECENT] = -1


@jit_alloc
def seal(hdr: Ints, head: Ints, sealed: Sealed, spare: Slots, used: int, max_chunks: int) -> int:
    """Make sealed chunks of a full head, their events in ``store[spare[used:]]``; empties the head.

    Returns how many slots are used then. A history keeps its newest ``max_chunks`` chunks.
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
            sealed.id_fingerprints[chunk, event] = np.uint32(head[ID, index] & _MARK)
            for row in range(4):
                sealed.store[target, row, event] = head[row, index]
        sealed.times[chunk, 0] = earliest
        sealed.times[chunk, 1] = latest
        _write_sums(acc, 0, sealed.sums[chunk])
        sealed.live[chunk] = np.uint32((hdr[H_LIVE] >> begin) & _MARK)
        sealed.slot[chunk] = target
        sealed.window_cache[hdr[H_PAGE], F_LOADED] += 1
        _index_chunk(hdr, sealed, chunk)
        hdr[H_NEXT_CHUNK] += 1
        while hdr[H_NEXT_CHUNK] - hdr[H_FIRST_CHUNK] > max_chunks:
            _drop_oldest(hdr, sealed)
    hdr[H_HEAD] = 0
    hdr[H_LIVE] = 0
    hdr[H_PENDING] = 0
    return used
