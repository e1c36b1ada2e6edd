"""Histories with sealed chunks that stay in memory between batches.

Unpacking a long history costs more than taking an event, so what was unpacked is kept: one workspace of
fixed size, in which each resident user has a contiguous range of *pages* (a page holds the summaries,
bitmaps and fingerprints of one segment's chunks) and the chunks' events lie in slots of a common store.

A resident is believed only if the head record in the store still has the checksum that it had when the
resident was last brought up to date. The head changes with every event, so after a rebalance, or under
another worker's writes, a resident that is out of date is simply unpacked again.

When the workspace is full it is emptied as a whole: users that are still active come back with their next
event, and nothing needs a list of who was used last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from stream.features import kernel as k
from stream.features.compiled import Flags, Ints, Marks, Slots, compiled

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Resident", "Residents"]

_CHUNK_BYTES: Final = 4 * 8 * k.CHUNK
_PAGE_BYTES: Final = k.SEGMENT * (6 * 8 + 4 + 2 * 4 * k.CHUNK + 4) + 7 * 8 + 2 * 4 * k.BLOOM_WORDS
#: A user with more loaded chunks than this gives them back: windows' edges move on, chunks behind do not.
_MOST_LOADED: Final = 24


@dataclass(slots=True)
class Resident:
    """Where a user's unpacked history lies.

    Attributes
    ----------
    page, pages:
        Its range of pages.
    base:
        Number of the chunk at the range's first place.
    checksum:
        Of the head record that the unpacked history belongs to.
    """

    page: int
    pages: int
    base: int
    checksum: int


class Residents:
    """The workspace.

    Parameters
    ----------
    max_bytes
        About how much memory it may take; a batch that needs more than all of it makes it grow.
    """

    def __init__(self, max_bytes: int = 16 << 20) -> None:
        self._most_slots = max(64, max_bytes // 4 // _CHUNK_BYTES)
        self._make(max(16, max_bytes * 3 // 4 // _PAGE_BYTES))
        self.store: Ints = np.empty((64, 4, k.CHUNK), np.int64)
        self._users: dict[tuple[int, bytes], Resident] = {}
        self._free_pages: dict[int, list[int]] = {}
        self._free_slots: list[int] = []
        self._next_page = 0
        self._next_slot = 0

    def _make(self, pages: int) -> None:
        """Make the arrays; the system gives their memory only as it is used."""
        self._pages = pages
        chunks = pages * k.SEGMENT
        self.summary: Ints = np.zeros((chunks, 6), np.int64)
        self.live: Marks = np.zeros(chunks, np.uint32)
        self.marks: Marks = np.zeros((chunks, 2, k.CHUNK), np.uint32)
        self.slot: Slots = np.zeros(chunks, np.int32)
        self.seg: Ints = np.zeros((pages, 7), np.int64)
        self.bloom: Marks = np.zeros((pages, 2, k.BLOOM_WORDS), np.uint32)

    def admit(
        self, source: int, users: Sequence[bytes], checksums: Ints, bases: Ints, ends: Ints
    ) -> tuple[list[Resident], Flags]:
        """Give every user of a batch a range, and say which of them are unpacked already.

        Parameters
        ----------
        checksums
            Of the users' head records as they are stored.
        bases, ends
            Where each user's chunks begin and, with those that the batch may seal, end.
        """
        if self._next_slot - len(self._free_slots) > self._most_slots:
            self._empty()
        admitted = self._admit(source, users, checksums, bases, ends)
        if admitted is None:
            self._empty()
            admitted = self._admit(source, users, checksums, bases, ends)
        if admitted is None:
            self._make(2 * sum(_size_class(int(n)) for n in ends - bases))
            self._empty()
            admitted = self._admit(source, users, checksums, bases, ends)
        if admitted is None:  # pragma: no cover - the workspace was made for this batch
            raise RuntimeError("the workspace is too small for the batch that it was made for")
        return admitted

    def _admit(
        self, source: int, users: Sequence[bytes], checksums: Ints, bases: Ints, ends: Ints
    ) -> tuple[list[Resident], Flags] | None:
        found: list[Resident] = []
        known = np.zeros(len(users), np.bool_)
        for index, (user, checksum, base, end) in enumerate(
            zip(users, checksums.tolist(), bases.tolist(), ends.tolist(), strict=True)
        ):
            resident = self._users.get((source, user))
            if resident is not None:
                if resident.checksum == checksum and resident.base + resident.pages * k.SEGMENT >= end:
                    known[index] = True
                    found.append(resident)
                    self._trim(resident)
                    continue
                self.drop(source, user)
            pages = _size_class(end - base)
            page = self._take_pages(pages)
            if page is None:
                return None
            _clear(page, pages, self.live, self.slot, self.seg, self.bloom)
            resident = self._users[source, user] = Resident(page, pages, base, checksum)
            found.append(resident)
        return found, known

    def drop(self, source: int, user: bytes) -> None:
        """Forget a user, if resident."""
        resident = self._users.pop((source, user), None)
        if resident is not None:
            self._give_slots(resident)
            self._free_pages.setdefault(resident.pages, []).append(resident.page)

    def take_slots(self, count: int) -> Slots:
        """Return free slots of the store, which grows if it must: int32[count]."""
        fresh = count - len(self._free_slots)
        taken = [self._free_slots.pop() for _ in range(min(count, len(self._free_slots)))]
        if fresh > 0:
            taken += range(self._next_slot, self._next_slot + fresh)
            self._next_slot += fresh
            if self._next_slot > len(self.store):
                more = max(self._next_slot, 2 * len(self.store)) - len(self.store)
                self.store = np.concatenate([self.store, np.empty((more, 4, k.CHUNK), np.int64)])
        return np.array(taken, np.int32)

    def give_back(self, slots: Slots) -> None:
        """Return slots that were not needed."""
        self._free_slots += slots.tolist()

    def _trim(self, resident: Resident) -> None:
        part = slice(resident.page * k.SEGMENT, (resident.page + resident.pages) * k.SEGMENT)
        if int(np.count_nonzero(self.slot[part] >= 0)) > _MOST_LOADED:
            self._give_slots(resident)
            self.slot[part] = -1

    def _give_slots(self, resident: Resident) -> None:
        part = self.slot[resident.page * k.SEGMENT : (resident.page + resident.pages) * k.SEGMENT]
        self._free_slots += part[part >= 0].tolist()

    def _take_pages(self, pages: int) -> int | None:
        free = self._free_pages.get(pages)
        if free:
            return free.pop()
        if self._next_page + pages > self._pages:
            return None
        self._next_page += pages
        return self._next_page - pages

    def _empty(self) -> None:
        self._users.clear()
        self._free_pages.clear()
        self._free_slots.clear()
        self._next_page = 0
        self._next_slot = 0
        if len(self.store) > self._most_slots:
            self.store = np.empty((self._most_slots, 4, k.CHUNK), np.int64)


def _size_class(chunks: int) -> int:
    """Return the pages for so many chunks, as a power of two, so that freed ranges fit again."""
    pages = 1
    while pages * k.SEGMENT < chunks:
        pages *= 2
    return pages


@compiled
def _clear(page: int, pages: int, live: Marks, slot: Slots, seg: Ints, bloom: Marks) -> None:
    """Make a range that of a user without chunks."""
    live[page * k.SEGMENT : (page + pages) * k.SEGMENT] = 0
    slot[page * k.SEGMENT : (page + pages) * k.SEGMENT] = -1
    seg[page : page + pages] = 0
    bloom[page : page + pages] = 0
