"""The layout of a history in memory: header, head and sealed chunks, and a batch's arrays."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from stream.features.spec import HISTORY_FEATURES, WINDOW_MS
from stream.jit import Fingerprints, Ints, Slots, jit

__all__ = [
    "AMOUNT",
    "CHUNK",
    "DEFERRED",
    "DUPLICATE",
    "F_END",
    "F_LOADED",
    "F_MARGIN",
    "F_RECENT",
    "F_RECENT_FIRST",
    "F_SINCE",
    "F_STRADDLING",
    "HDR_SIZE",
    "HEAD",
    "H_BASE",
    "H_COUNT",
    "H_FIRST",
    "H_FIRST_CHUNK",
    "H_HEAD",
    "H_LIVE",
    "H_MAX",
    "H_NEWEST",
    "H_NEWEST_EXPIRED",
    "H_NEXT_CHUNK",
    "H_OFFSET",
    "H_PAGE",
    "H_PAGES",
    "H_PENDING",
    "H_SOURCE",
    "H_SQUARES",
    "H_SUM",
    "ID",
    "LATE",
    "MERCHANT",
    "NEAR_MS",
    "NO_TIME",
    "OUT_SIZE",
    "RECENT",
    "REPLAYED",
    "R_AMOUNT",
    "R_MERCHANT",
    "R_PREVIOUS",
    "R_SEALED",
    "R_SIZE",
    "R_TIME",
    "SCORED",
    "SEGMENT",
    "TABLE",
    "TIME",
    "WINDOW_CACHE_SIZE",
    "Sealed",
    "clear_header",
    "clear_sealed",
    "is_full",
    "is_recent",
    "new_header",
    "new_sealed",
    "set_edges",
]

CHUNK: Final = 32
HEAD: Final = 2 * CHUNK  # so that a user of an ordinary month has nothing sealed
SEGMENT: Final = 32
TABLE: Final = 1280  # entries that a hash table has for the 1,024 events of a segment
TIME: Final = 0
AMOUNT: Final = 1
MERCHANT: Final = 2
ID: Final = 3

#: Stands for "no such time"; earlier than every real time.
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
H_NEWEST_EXPIRED: Final = 14  # latest event time among the events no longer kept
H_HEAD: Final = 15  # events in the head
H_LIVE: Final = 16  # bitmap of the head's live events
H_PENDING: Final = 17  # sealed events that lost their live bit since the last seal
H_BASE: Final = 18  # number that a chunk at index 0 of the chunk arrays would have; memory only
H_PAGE: Final = 19  # the user's first row of the segment arrays; memory only
H_PAGES: Final = 20  # and how many rows are the user's; memory only
HDR_SIZE: Final = 21
_WINDOWS: Final = len(WINDOW_MS)
_LONGEST: Final = _WINDOWS - 1
_MARK: Final = 0xFFFFFFFF
_W0, _W1, _W2, _W3 = WINDOW_MS

#: Results of :func:`step`; the first three are the codes of ``Outcome``'s values.
SCORED: Final = 0

LATE: Final = 1
DUPLICATE: Final = 2
REPLAYED: Final = 4
DEFERRED: Final = 5

#: Features that the kernel writes.
OUT_SIZE: Final = len(HISTORY_FEATURES)

# Columns of a window cache: the sums of whole chunks, valid while the edges stay between the same chunks.
F_END: Final = 0  # index behind the last chunk that the frame accounts for; -1 where there is no frame

F_LOADED: Final = 1  # how many of the user's chunks are loaded; not part of the frame
F_STRADDLING: Final = 2  # how many chunks straddle an edge: not in the sums, but in ``straddling``
_F_LOW: Final = 3  # the lowest and highest edges it was made for, and those from which on it does not hold
_F_HIGH: Final = _F_LOW + _WINDOWS
_F_UNTIL: Final = _F_HIGH + _WINDOWS
F_RECENT: Final = _F_UNTIL + _WINDOWS  # how many recent events there are, -1 for none; not of the frame
F_RECENT_FIRST: Final = F_RECENT + 1  # which row of the user's ``recent`` has the earliest one
F_SINCE: Final = F_RECENT + 2  # they contain all events later than this
F_MARGIN: Final = F_RECENT + 3  # how late the user's events have been lately, in ms
_F_BUCKETS: Final = F_RECENT + 4
WINDOW_CACHE_SIZE: Final = 56

#: Recent events per segment of a history.
RECENT: Final = 32

# Columns of a recent event.
R_TIME: Final = 0

R_AMOUNT: Final = 1
R_MERCHANT: Final = 2
R_PREVIOUS: Final = 3  # time of the same merchant's previous event, unless that is sealed
R_SEALED: Final = 4  # number of the previous event among all ever sealed, -1 if it is not sealed
R_SIZE: Final = 5

#: Events up to this late are cheap.
NEAR_MS: Final = 5 * 60_000


class Sealed(NamedTuple):
    """Sealed chunks: of one user offline, of all cached users in the worker.

    A user has a range of whole segments; chunk ``n`` is at index ``n - hdr[H_BASE]``, its segment at that
    index divided by SEGMENT.

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
    id_fingerprints : uint32[chunks, CHUNK]
        Fingerprints of their transaction ids.
    segment_sums : int64[segments, 7]
        Per segment of 32 chunks: earliest and latest time, sums like a chunk's, number of live events.
    id_table, merchant_table : uint32[segments * TABLE]
        Hash tables of the transaction ids and of the live events' merchants. An entry is a part of the hash
        and the event's index in the user's range; 0 is free. A user's segments make up one table.
    window_cache : int64[segments, WINDOW_CACHE_SIZE]
        The window cache, in the user's first row.
    straddling : int32[chunks]
        Chunks that straddle an edge of the window cache, from the user's first index on.
    slot : int32[chunks]
        Index in ``store`` of a chunk's events, below 0 if they are not loaded.
    store : int64[slots, 4, CHUNK]
        Loaded chunks.
    recent : int64[segments * RECENT, R_SIZE]
        Recent events, in a ring from the user's first row on; see :mod:`stream.features.windows.late`.
    """

    times: Ints
    sums: Ints
    live: Fingerprints
    merchants: Ints
    id_fingerprints: Fingerprints
    segment_sums: Ints
    id_table: Fingerprints
    merchant_table: Fingerprints
    window_cache: Ints
    straddling: Slots
    slot: Slots
    store: Ints
    recent: Ints


def new_sealed(chunks: int, slots: int) -> Sealed:
    """Return room for so many chunks, whole segments, of which so many can be loaded."""
    segments = chunks // SEGMENT
    return Sealed(
        times=np.zeros((chunks, 2), np.int64),
        sums=np.zeros((chunks, 4), np.int64),
        live=np.zeros(chunks, np.uint32),
        merchants=np.zeros((chunks, CHUNK), np.int64),
        id_fingerprints=np.zeros((chunks, CHUNK), np.uint32),
        segment_sums=np.zeros((segments, 7), np.int64),
        id_table=np.zeros(segments * TABLE, np.uint32),
        merchant_table=np.zeros(segments * TABLE, np.uint32),
        window_cache=np.zeros((segments, WINDOW_CACHE_SIZE), np.int64),
        straddling=np.zeros(chunks, np.int32),
        slot=np.zeros(chunks, np.int32),
        store=np.zeros((slots, 4, CHUNK), np.int64),
        recent=np.zeros((segments * RECENT, R_SIZE), np.int64),
    )


@jit
def clear_sealed(sealed: Sealed, page: int, pages: int) -> None:
    """Make a range that of a user without chunks."""
    sealed.live[page * SEGMENT : (page + pages) * SEGMENT] = 0
    sealed.slot[page * SEGMENT : (page + pages) * SEGMENT] = -1
    sealed.id_table[page * TABLE : (page + pages) * TABLE] = 0
    sealed.merchant_table[page * TABLE : (page + pages) * TABLE] = 0
    sealed.window_cache[page, F_END] = -1
    sealed.window_cache[page, F_LOADED] = 0
    sealed.window_cache[page, F_RECENT] = -1
    sealed.window_cache[page, F_MARGIN] = 0


def new_header() -> np.ndarray:
    """Return the header of a user without history."""
    header = np.zeros(HDR_SIZE, np.int64)
    clear_header(header)
    return header


@jit
def clear_header(hdr: Ints) -> None:
    """Make ``hdr`` that of a user without history."""
    hdr[:] = 0
    hdr[H_OFFSET] = -1
    hdr[H_NEWEST] = NO_TIME
    hdr[H_FIRST] = NO_TIME
    hdr[H_NEWEST_EXPIRED] = NO_TIME


@jit
def _bit(index: int | np.int64) -> np.int64:
    """Return a word with one bit set; bit 63 is the sign."""
    return np.int64(1) << np.int64(index)


@jit
def _bucket(low: Ints, t: int) -> int:
    """Return the shortest window that holds time ``t``, or -1 where none does."""
    if t <= low[_LONGEST]:
        return -1
    row = _LONGEST
    while row > 0 and t > low[row - 1]:
        row -= 1
    return row


@jit
def set_edges(hdr: Ints, t: int, horizon_ms: int, low: Ints) -> int:
    """Set each window's lower edge (exclusive), and return the edge before which events are gone."""
    newest = hdr[H_NEWEST]
    gone = (max(newest, t)) - horizon_ms
    low[0] = max(t - _W0, gone)
    low[1] = max(t - _W1, gone)
    low[2] = max(t - _W2, gone)
    low[3] = max(t - _W3, gone)
    return int(gone)


@jit
def is_recent(hdr: Ints, sealed: Sealed, t: int) -> bool:
    """Return whether the recent events contain all events of a user with sealed chunks later than ``t``."""
    window_cache = sealed.window_cache[hdr[H_PAGE]]
    recent: bool = window_cache[F_RECENT] >= 0 and t >= max(window_cache[F_SINCE], hdr[H_NEWEST] - NEAR_MS)
    return recent


@jit
def is_full(hdr: Ints) -> bool:
    """Return whether the head must be sealed before another event.

    A user with few events has nothing sealed for as long as possible, so the first chunks are sealed when the
    head is full. Users with sealed chunks use a shorter head (one chunk) so that each update writes fewer
    bytes.
    """
    count = hdr[H_HEAD]
    full: bool = count == HEAD or (count == CHUNK and hdr[H_NEXT_CHUNK] > hdr[H_FIRST_CHUNK])
    return full
