"""The cache of long histories: histories with sealed chunks stay unpacked in memory between batches.

Unpacking a long history costs far more than applying an event. So the cache keeps unpacked histories in a
workspace of fixed size (a :class:`stream.features.windows.arrays.Sealed`): each cached user has a contiguous
range of *pages*, one per segment, and the chunks' events lie in slots of a common store.

A cached history is valid only if the head record in the store still has the checksum that it had when the
history was last updated. The head changes with every event, so after a rebalance, or after another worker's
writes, an outdated history is unpacked again.

When the workspace is full, the users that have been cached longest are evicted: an active user returns with
its next event, so no list of last uses is needed. If eviction frees no range of the required size, or the
chunks take too much room, the workspace is emptied as a whole.
"""

from __future__ import annotations

from itertools import islice, repeat
from typing import TYPE_CHECKING, Final

import numpy as np

from stream.features.windows.arrays import (
    CHUNK,
    F_END,
    F_LOADED,
    F_STRADDLING,
    SEGMENT,
    TABLE,
    WINDOW_CACHE_SIZE,
    Sealed,
    clear_sealed,
    new_sealed,
)
from stream.jit import Flags, Ints, Slots, jit, jit_alloc

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BASE", "CHECKSUM", "PAGE", "PAGES", "HistoryCache"]


_CHUNK_BYTES: Final = 4 * 8 * CHUNK
_PAGE_BYTES: Final = SEGMENT * (6 * 8 + 12 * CHUNK + 12) + 8 * (7 + WINDOW_CACHE_SIZE + TABLE)

#: A user with more loaded chunks than this unloads those without an edge in them: edges move on. The newest
#: chunks stay, since an edge will soon reach them.
_MAX_LOADED: Final = 40

_NEWEST_LOADED: Final = 16

#: Eviction if there is no room: the share of the cached users, and the least number.
_FORGOTTEN_SHARE: Final = 32

_FEWEST_FORGOTTEN: Final = 16

# Columns of a cached user.
PAGE: Final = 0  # its range of pages

PAGES: Final = 1
BASE: Final = 2  # number of the chunk at the range's first place
CHECKSUM: Final = 3  # of the head record that the unpacked history belongs to


class HistoryCache:
    """The workspace.

    Parameters
    ----------
    max_bytes
        Approximate size of its memory; a batch that needs more than all of it makes it grow.

    Attributes
    ----------
    table : int64[users, 4]
        PAGE, PAGES, BASE and CHECKSUM of each cached user.
    """

    def __init__(self, max_bytes: int = 16 << 20) -> None:
        self._most_slots = max(64, max_bytes // 8 // _CHUNK_BYTES)
        self._pages = max(16, max_bytes // 8 * 7 // _PAGE_BYTES)
        # The system gives the arrays' memory only as it is used.
        self.sealed = new_sealed(self._pages * SEGMENT, self._most_slots)
        self.table: Ints = np.empty((64, 4), np.int64)
        self._users: dict[tuple[int, bytes], int] = {}
        self._free_rows: list[int] = []
        self._free_pages: dict[int, list[int]] = {}
        self._free_slots: list[int] = []
        self._next_row = 0
        self._next_page = 0
        self._next_slot = 0

    def admit(
        self, sources: Sequence[int], users: Sequence[bytes], checksums: Ints, bases: Ints, ends: Ints
    ) -> tuple[Ints, Flags]:
        """Give every user of a batch a range, and return which of them are unpacked already.

        Parameters
        ----------
        sources
            The incarnation of each user's source partition.
        checksums
            Checksums of the users' stored head records.
        bases, ends
            Where each user's chunks begin and, including those that the batch may seal, end.

        Returns
        -------
        The users' rows of ``table``, and which of them are unpacked.
        """
        if self._next_slot - len(self._free_slots) > self._most_slots:
            self.forget()
        admitted = self._admit(sources, users, checksums, bases, ends)
        if admitted is None:
            self.forget()
            admitted = self._admit(sources, users, checksums, bases, ends)
        if admitted is None:
            self._pages = 2 * sum(_size_class(int(n)) for n in ends - bases)
            self.sealed = new_sealed(self._pages * SEGMENT, self._most_slots)
            self.forget()
            admitted = self._admit(sources, users, checksums, bases, ends)
        if admitted is None:  # pragma: no cover - the workspace was made for this batch
            raise RuntimeError("the workspace is too small for its batch")
        return admitted

    def _admit(
        self, sources: Sequence[int], users: Sequence[bytes], checksums: Ints, bases: Ints, ends: Ints
    ) -> tuple[Ints, Flags] | None:
        names = list(zip(sources, users, strict=True))
        rows = np.fromiter(map(self._users.get, names, repeat(-1)), np.int64, len(names))
        known = np.empty(len(names), np.bool_)
        if _recognise(rows, checksums, ends, self.table, self.sealed, known) > _MAX_LOADED:
            self._free_slots += _trim(self.sealed, self.table[rows[known]]).tolist()
        for index in (~known).nonzero()[0].tolist():
            if rows[index] >= 0:
                self.drop(*names[index])
            pages = _size_class(int(ends[index] - bases[index]))
            page = self._take_pages(pages)
            if page is None:
                self._forget_oldest(set(names))
                page = self._take_pages(pages)
            if page is None:
                return None
            clear_sealed(self.sealed, page, pages)
            rows[index] = self._take_row()
            self.table[rows[index]] = page, pages, bases[index], checksums[index]
            self._users[names[index]] = int(rows[index])
        return rows, known

    def _forget_oldest(self, kept: set[tuple[int, bytes]]) -> None:
        """Evict a part of the users that have been cached longest, but none of ``kept``."""
        count = max(_FEWEST_FORGOTTEN, len(self._users) // _FORGOTTEN_SHARE)
        oldest = (name for name in self._users if name not in kept)
        for name in list(islice(oldest, count)):
            self.drop(*name)

    def drop(self, source: int, user: bytes) -> None:
        """Evict a user, if cached."""
        row = self._users.pop((source, user), None)
        if row is not None:
            page, pages = self.table[row, :BASE].tolist()
            part = self.sealed.slot[page * SEGMENT : (page + pages) * SEGMENT]
            self._free_slots += part[part >= 0].tolist()
            self._free_pages.setdefault(pages, []).append(page)
            self._free_rows.append(row)

    def take_slots(self, count: int) -> Slots:
        """Return free slots of the store, which grows if it must: int32[count]."""
        kept = max(0, len(self._free_slots) - count)
        taken = self._free_slots[kept:]
        del self._free_slots[kept:]
        fresh = count - len(taken)
        if fresh > 0:
            taken += range(self._next_slot, self._next_slot + fresh)
            self._next_slot += fresh
            store = self.sealed.store
            if self._next_slot > len(store):
                more = max(self._next_slot, 2 * len(store)) - len(store)
                store = np.concatenate([store, np.empty((more, 4, CHUNK), np.int64)])
                self.sealed = self.sealed._replace(store=store)
        return np.array(taken, np.int32)

    def give_back(self, slots: Slots) -> None:
        """Return slots that were not needed."""
        self._free_slots += slots.tolist()

    def _take_row(self) -> int:
        if self._free_rows:
            return self._free_rows.pop()
        if self._next_row == len(self.table):
            self.table = np.concatenate([self.table, np.empty_like(self.table)])
        self._next_row += 1
        return self._next_row - 1

    def _take_pages(self, pages: int) -> int | None:
        free = self._free_pages.get(pages)
        if free:
            return free.pop()
        if self._next_page + pages > self._pages:
            return None
        self._next_page += pages
        return self._next_page - pages

    def forget(self) -> None:
        """Evict every user: the next batch reads and unpacks its users again."""
        self._users.clear()
        self._free_rows.clear()
        self._free_pages.clear()
        self._free_slots.clear()
        self._next_row = 0
        self._next_page = 0
        self._next_slot = 0
        if len(self.sealed.store) > self._most_slots:
            store = np.empty((self._most_slots, 4, CHUNK), np.int64)
            self.sealed = self.sealed._replace(store=store)


def _size_class(chunks: int) -> int:
    """Return the pages for so many chunks: 1, 2, 3, 4, 6, 8, 12 and so on, so that freed ranges fit again."""
    pages = 1
    while pages * SEGMENT < chunks:
        pages = max(pages + 1, pages * 3 // 2 if pages & (pages - 1) == 0 else pages * 4 // 3)
    return pages


@jit
def _recognise(
    rows: Ints, checksums: Ints, ends: Ints, table: Ints, sealed: Sealed, known: Flags
) -> int | np.int64:
    """Return which users are unpacked already, in a large enough range, and the most chunks loaded."""
    most = 0
    for index in range(len(rows)):
        row = rows[index]
        known[index] = (
            row >= 0
            and table[row, CHECKSUM] == checksums[index]
            and table[row, BASE] + table[row, PAGES] * SEGMENT >= ends[index]
        )
        if known[index]:
            most = max(most, sealed.window_cache[table[row, PAGE], F_LOADED])
    return most


@jit_alloc
def _trim(sealed: Sealed, cache: Ints) -> Slots:
    """Unload chunks of users with too many of them; returns the slots that become free."""
    freed = np.empty(len(sealed.store), np.int32)
    count = 0
    for row in range(len(cache)):
        page = cache[row, PAGE]
        if sealed.window_cache[page, F_LOADED] <= _MAX_LOADED:
            continue
        start = page * SEGMENT
        stop = (page + cache[row, PAGES]) * SEGMENT
        end = sealed.window_cache[page, F_END]
        straddling = sealed.straddling[start : start + sealed.window_cache[page, F_STRADDLING]]
        for chunk in range(start, stop):
            if sealed.slot[chunk] < 0:
                continue
            used = chunk >= end - _NEWEST_LOADED
            for index in range(min(len(straddling), _NEWEST_LOADED)):
                used = used or straddling[index] == chunk
            if not used:
                freed[count] = sealed.slot[chunk]
                count += 1
                sealed.slot[chunk] = -1
                sealed.window_cache[page, F_LOADED] -= 1
    return freed[:count]
