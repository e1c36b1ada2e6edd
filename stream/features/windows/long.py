"""Long histories: the users of a batch whose histories have sealed chunks.

The kernel (:mod:`stream.features.windows.kernel`) needs a user's live bitmaps, segments and a few chunks in
memory. The users of a batch have ranges of one workspace (:mod:`stream.features.windows.cache`), so that a
batch costs two reads and a handful of compiled calls, however many users it has:

1. for users that are not cached, read live bitmaps and segments, check and unpack them (:func:`._unpack`),
   and build the segments' sums and the hash tables;
2. process the events in order, and seal heads as they fill (:func:`_take`); an event that needs a chunk that
   is not loaded waits, with its user's later events, until all such chunks are read in one go;
3. collect the records that sealing and expiry have changed (:meth:`LongHistories.writes`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stream.errors import StateError
from stream.features.windows import kernel as k
from stream.features.windows import records as layout
from stream.features.windows.arrays import (
    CHUNK,
    H_BASE,
    H_FIRST_CHUNK,
    H_NEWEST,
    H_NEWEST_EXPIRED,
    H_NEXT_CHUNK,
    H_PAGE,
    H_PAGES,
    H_PENDING,
    SEGMENT,
    Sealed,
    is_full,
)
from stream.features.windows.cache import BASE, CHECKSUM, PAGE, PAGES
from stream.features.windows.chunks import (
    index_stored,
    plan,
    prefetch_chunks,
    prefetch_table_slots,
    prefetch_window_cache,
    seal,
)
from stream.features.windows.records import _LIVE, _unpack, _unpack_chunks, migrate
from stream.features.windows.sums import ACC_SIZE
from stream.jit import Codes, Flags, Floats, Ints, Slots, jit, jit_alloc
from stream.state.format import complaint, describe_record, join

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from stream.features.windows.cache import HistoryCache
    from stream.features.windows.events import HistoryConfig, HistoryEvents
    from stream.state.store import PartitionedReader

__all__ = ["LongHistories"]


_PLANNED: Final = -2  # a slot that is about to be filled

# Counters of _take.
_LATER: Final = 0

_WANTED: Final = 1
_USED: Final = 2


class LongHistories:
    """The users of a batch whose histories have sealed chunks, or are about to get their first ones.

    Attributes
    ----------
    errors:
        By the user's index in the batch, why its state cannot be used.
    truncated:
        bool[n]: which of the batch's events lack events that their history had no room for.
    """

    def __init__(
        self,
        events: HistoryEvents,
        chosen: npt.NDArray[np.int64],
        states: tuple[Ints, Ints, Ints],
        taken: npt.NDArray[np.int64],
        checksums: npt.NDArray[np.int64],
        cache: HistoryCache,
    ) -> None:
        """Give each user its range of the workspace.

        Parameters
        ----------
        chosen : int64[m]
            Indexes of these users in the batch.
        states
            Headers, heads and pending lists of all the batch's users.
        taken : int64[e]
            The events to process, in order.
        checksums : int64[u]
            Checksums of all the batch's stored head records.
        """
        self.errors: dict[int, StateError] = {}
        self._events = events
        self._chosen = chosen
        self._hdrs, self._heads, self._pendings = states
        self._taken = taken
        self._cache = cache
        # Of each user: the first stored chunk and the chunk behind the last one, the begin of its range, and
        # its possible end when all events are processed; the position of the range follows once it is
        # admitted.
        self._first, self._next, self._base, self._shift, ends = np.empty((5, len(chosen)), np.int64)
        self._local = np.empty(len(events.users), np.int64)
        self._new_slots, self._chunks = _measure(
            chosen, self._hdrs, events.user, taken, self._local, self._first, self._next, self._base, ends
        )
        self._users = [events.users[index] for index in chosen.tolist()]
        self._sources = events.source[chosen].tolist()
        self._rows, self._known = cache.admit(self._sources, self._users, checksums[chosen], self._base, ends)
        _settle_in(chosen, self._rows, cache.table, self._hdrs, self._base, self._shift)
        self._live_changed = np.zeros(len(chosen), np.bool_)
        self.truncated = np.zeros(len(events.user), np.bool_)

    @property
    def _failed(self) -> Flags:
        failed = np.zeros(len(self._chosen), np.bool_)
        for index in self.errors:
            failed[self._local[index]] = True
        return failed

    def take(
        self,
        config: HistoryConfig,
        reader: PartitionedReader,
        *,
        learn: bool,
        outcome: Codes,
        features: Floats,
    ) -> None:
        """Take the events; their outcomes and features go to the batch's arrays."""
        self._load(reader)
        events, rooms = self._events, self._cache
        user = self._local[events.user]
        wanted = np.empty((self._chunks + 1, 2), np.int64)
        spare = rooms.take_slots(self._new_slots)
        counts = np.zeros(3, np.int64)
        # A user's events in a row: the data that one event brings into the processor's cache serves the next
        # one.
        left = self._taken[user[self._taken].argsort(kind="stable")]
        while len(left):
            later = np.empty_like(left)
            _take(
                left, user, self._failed, self._chosen, self._hdrs, self._heads, self._pendings, rooms.sealed,
                spare, self._live_changed, events.offset, events.source, events.time_ms, events.amount_minor,
                events.merchant, events.id_hash, events.minor_units, config.horizon_ms, config.lateness_ms,
                config.ttl_ms, config.max_chunks, learn, outcome, features, self.truncated, later, wanted,
                counts,
            )  # fmt: skip
            left = later[: counts[_LATER]]
            self._load_chunks(wanted[: counts[_WANTED]], reader)
        if learn and _some_filled(self._chosen, self._hdrs):
            _seal_filled(
                self._failed, self._chosen, self._hdrs, self._heads, rooms.sealed, spare, config.max_chunks,
                counts,
            )  # fmt: skip
        rooms.give_back(spare[counts[_USED] :])

    def store_checksums(self, checksums: npt.NDArray[np.int64]) -> None:
        """Store the checksums of the head records that the cached users now belong to."""
        self._cache.table[self._rows, CHECKSUM] = checksums[self._chosen]
        unfit = self._failed | (self._hdrs[self._chosen, H_BASE] != self._shift)
        for index in unfit.nonzero()[0].tolist():
            self._cache.drop(self._sources[index], self._users[index])

    def writes(self) -> tuple[list[tuple[bytes, bytes | None]], list[int]]:
        """Return the records, without heads, that sealing and expiry have changed, and their users."""
        changed = np.empty(len(self._chosen), np.bool_)
        if not _changed(
            self._chosen, self._hdrs, self._first, self._next, self._live_changed, self._failed, changed
        ):
            return [], []
        hdrs = self._hdrs[self._chosen]
        bounds = (self._first, self._next, hdrs[:, H_FIRST_CHUNK], hdrs[:, H_NEXT_CHUNK], self._shift)
        changing = changed.nonzero()[0].tolist()
        writes: list[tuple[bytes, bytes | None]] = []
        owners: list[int] = []
        packed_owners: list[int] = []
        names: list[bytes] = []
        parts: list[tuple[int, int, int, int]] = []
        for index, bound in zip(changing, np.stack(bounds, axis=1)[changing].tolist(), strict=True):
            self._write(index, bound, names, parts, writes)
            position = int(self._chosen[index])
            owners += [position] * (len(writes) - len(owners))
            packed_owners += [position] * (len(names) - len(packed_owners))
        if parts:
            sizes = np.empty(len(parts), np.int64)
            packed = layout.pack_parts(self._cache.sealed, np.array(parts, np.int64), sizes).tobytes()
            ends = (8 * np.cumsum(sizes)).tolist()
            writes += [
                (name, packed[begin:end]) for name, begin, end in zip(names, [0, *ends], ends, strict=False)
            ]
        return writes, owners + packed_owners

    def _load(self, reader: PartitionedReader) -> None:
        """Read and unpack the live bitmaps and segments of all users that have chunks."""
        keys: list[bytes] = []
        owners: list[tuple[int, int]] = []
        for index in ((self._next > self._first) & ~self._known).nonzero()[0].tolist():
            user = self._users[index]
            keys.append(layout.live_key(user))
            owners.append((index, _LIVE))
            for number in range(self._base[index] // SEGMENT, (self._next[index] - 1) // SEGMENT + 1):
                keys.append(layout.segment_key(user, number))
                owners.append((index, number))
        if not keys:
            return
        rooms = self._cache
        owner = np.array(owners, np.int64)
        starts = np.array(
            [layout.LIVE_START if number == _LIVE else layout.SEGMENT_START for _, number in owners]
        )
        stored = reader.read(keys, self._chosen[owner[:, 0]])
        records = self._usable(stored, keys, owner[:, 0], starts.tolist())
        words, begins, sizes = join(records)
        good = _unpack(words, begins, sizes, owner, self._first, self._next, self._shift, rooms.sealed)
        for index in np.flatnonzero(~good & (sizes > 0)).tolist():
            self._fail(int(owner[index, 0]), StateError(complaint(keys[index], records[index])))
        index_stored(
            self._failed | self._known, self._hdrs, self._pendings, self._chosen, self._base, rooms.sealed
        )

    def _load_chunks(self, wanted: Ints, reader: PartitionedReader) -> None:
        """Read and unpack chunks; ``wanted`` is a list of user and chunk index."""
        if not len(wanted):
            return
        keys = [
            layout.chunk_key(self._users[index], int(self._shift[index]) + chunk)
            for index, chunk in wanted.tolist()
        ]
        stored = reader.read(keys, self._chosen[wanted[:, 0]])
        records = self._usable(stored, keys, wanted[:, 0], [layout.CHUNK_START] * len(keys))
        words, begins, sizes = join(records)
        rooms = self._cache
        slots = rooms.take_slots(len(wanted))
        pages = self._hdrs[self._chosen[wanted[:, 0]], H_PAGE]
        good = _unpack_chunks(words, begins, sizes, wanted[:, 1], pages, slots, rooms.sealed)
        for index in np.flatnonzero(~good & (sizes > 0)).tolist():
            self._fail(int(wanted[index, 0]), StateError(complaint(keys[index], records[index])))

    def _usable(
        self, stored: Sequence[bytes | None], keys: list[bytes], owner: Ints, starts: list[bytes]
    ) -> list[bytes]:
        """Return the records, migrated; a user with a missing or unusable record gets an error."""
        records = []
        for record, key, index, start in zip(stored, keys, owner.tolist(), starts, strict=True):
            usable = record or b""
            try:
                if record is None:
                    raise StateError(f"{describe_record(key)} is missing")
                if record[:8] != start or len(record) % 8:
                    usable = migrate(record, key)
            except StateError as error:
                self._fail(index, error)
                usable = b""
            records.append(usable)
        return records

    def _fail(self, index: int, error: StateError) -> None:
        self.errors.setdefault(int(self._chosen[index]), error)

    def _write(
        self,
        index: int,
        bound: list[int],
        names: list[bytes],
        parts: list[tuple[int, int, int, int]],
        writes: list[tuple[bytes, bytes | None]],
    ) -> None:
        """Add a user's changed records: the keys of those to pack and their content; deletions.

        ``bound`` has the stored chunks (first, next), the current ones, and the shift.
        """
        user = self._users[index]
        stored_first, stored_next, first, end, shift = bound
        at = -shift
        sealed = range(max(stored_next, first), end)
        for number in sealed:
            names.append(layout.chunk_key(user, number))
            parts.append((layout.CHUNK_KIND, at + number, 1, 0))
        for segment in _segments(sealed):
            begin = segment * SEGMENT
            names.append(layout.segment_key(user, segment))
            parts.append((layout.SEGMENT_KIND, at + begin, min(begin + SEGMENT, end) - begin, 0))
        if (end > stored_next or self._live_changed[index]) and first < end:
            names.append(layout.live_key(user))
            parts.append((layout.LIVE_KIND, at + first, end - first, first))
        forgotten = range(stored_first, min(first, stored_next))
        writes += [(layout.chunk_key(user, number), None) for number in forgotten]
        # By the segment, not by its last chunk: within a batch, a segment that was not full may expire.
        for segment in _segments(forgotten):
            if segment < first // SEGMENT or first == end:
                writes.append((layout.segment_key(user, segment), None))
        if first == end and stored_first < stored_next:
            writes.append((layout.live_key(user), None))
            # The next chunk begins a new segment, so that no record with a gap is ever needed.
            aligned = -(-end // SEGMENT) * SEGMENT
            hdr = self._hdrs[self._chosen[index]]
            hdr[H_FIRST_CHUNK] = hdr[H_NEXT_CHUNK] = hdr[H_BASE] = aligned
            hdr[H_PENDING] = 0


def _segments(chunks: range) -> range:
    """Return the numbers of the segments that these chunks lie in."""
    return range(chunks.start // SEGMENT, -(-chunks.stop // SEGMENT)) if chunks else chunks


@jit
def _measure(
    chosen: Ints,
    hdrs: Ints,
    users: Ints,
    taken: Ints,
    local: Ints,
    first: Ints,
    following: Ints,
    base: Ints,
    ends: Ints,
) -> tuple[int, int]:
    """Return the slots that the users' existing and possible chunks may need, and the chunks."""
    for position in range(len(local)):
        local[position] = -1
    for index in range(len(chosen)):
        local[chosen[index]] = index
        ends[index] = 0
    for number in range(len(taken)):
        ends[local[users[taken[number]]]] += 1
    slots = chunks = 0
    for index in range(len(chosen)):
        hdr = hdrs[chosen[index]]
        first[index] = hdr[H_FIRST_CHUNK]
        following[index] = hdr[H_NEXT_CHUNK]
        base[index] = hdr[H_BASE]
        seals = ends[index] // CHUNK + 2
        ends[index] = following[index] + seals
        slots += seals
        chunks += following[index] - first[index]
    return slots, chunks


@jit
def _settle_in(chosen: Ints, rows: Ints, table: Ints, hdrs: Ints, base: Ints, shift: Ints) -> None:
    """Set the positions of the users' chunks in the workspace in their headers."""
    for index in range(len(chosen)):
        row, hdr = rows[index], hdrs[chosen[index]]
        base[index] = table[row, BASE]
        shift[index] = table[row, BASE] - table[row, PAGE] * SEGMENT
        hdr[H_BASE] = shift[index]
        hdr[H_PAGE] = table[row, PAGE]
        hdr[H_PAGES] = table[row, PAGES]


@jit
def _changed(
    chosen: Ints, hdrs: Ints, first: Ints, following: Ints, live_changed: Flags, failed: Flags, changed: Flags
) -> bool:
    """Return whether records other than heads have changed, and of which users."""
    found = False
    for user in range(len(chosen)):
        hdr = hdrs[chosen[user]]
        changed[user] = not failed[user] and (
            hdr[H_NEXT_CHUNK] != following[user] or hdr[H_FIRST_CHUNK] != first[user] or live_changed[user]
        )
        found = found or changed[user]
    return found


@jit
def _some_filled(chosen: Ints, hdrs: Ints) -> bool:
    """Return whether some head is full."""
    for user in range(len(chosen)):
        if is_full(hdrs[chosen[user]]):
            return True
    return False


@jit
def _seal_filled(
    failed: Flags, chosen: Ints, hdrs: Ints, heads: Ints, sealed: Sealed, spare: Slots, max_chunks: int,
    counts: Ints,
) -> None:  # fmt: skip
    """Seal every full head."""
    for user in range(len(chosen)):
        index = chosen[user]
        if not failed[user] and is_full(hdrs[index]):
            counts[_USED] = seal(hdrs[index], heads[index], sealed, spare, counts[_USED], max_chunks)


@jit_alloc
def _take(
    taken: Ints,
    local: Ints,
    failed: Flags,
    chosen: Ints,
    hdrs: Ints,
    heads: Ints,
    pendings: Ints,
    sealed: Sealed,
    spare: Slots,
    live_changed: Flags,
    offset: Ints,
    source: Ints,
    time_ms: Ints,
    amount: Ints,
    merchant: Ints,
    id_hash: Ints,
    minor_units: Ints,
    horizon_ms: int,
    lateness_ms: int,
    ttl_ms: int,
    max_chunks: int,
    learn: bool,
    outcome: Codes,
    features: Floats,
    truncated: Flags,
    later: Ints,
    wanted: Ints,
    counts: Ints,
) -> None:
    """Process the events whose chunks are loaded, in order; heads are sealed as they fill.

    An event that misses a chunk goes to ``later`` with all later events of its user, and the missing chunks
    go to ``wanted``, each once. ``counts`` has the lengths of both, and the number of used spare slots.
    """
    low = np.empty(4, np.int64)
    acc = np.empty((4, ACC_SIZE), np.int64)
    waiting = np.zeros(len(chosen), np.bool_)
    newest = np.empty(len(chosen), np.int64)
    longest = 1
    for user in range(len(chosen)):
        longest = max(longest, hdrs[chosen[user], H_PAGES] * SEGMENT)
    missing = np.empty(longest, np.int64)
    counts[_LATER] = 0
    counts[_WANTED] = 0
    for number in range(len(taken)):
        # Three users ahead, two, and one: each step prefetches the memory of the next.
        if number + 6 < len(taken):
            event = taken[number + 6]
            hdr = hdrs[chosen[local[event]]]
            prefetch_window_cache(hdr, sealed, id_hash[event], merchant[event])
        if number + 4 < len(taken):
            event = taken[number + 4]
            prefetch_table_slots(hdrs[chosen[local[event]]], sealed, merchant[event])
        if number + 2 < len(taken):
            prefetch_chunks(hdrs[chosen[local[taken[number + 2]]]], sealed)
        event = taken[number]
        user = local[event]
        if failed[user]:
            continue
        position = chosen[user]
        hdr, head, pending = hdrs[position], heads[position], pendings[position]
        if learn and is_full(hdr):
            counts[_USED] = seal(hdr, head, sealed, spare, counts[_USED], max_chunks)
        # As of the events before it: an event older than a waiting one will be late, too.
        before = hdr[H_NEWEST]
        if waiting[user]:
            hdr[H_NEWEST] = newest[user]
        found = plan(hdr, sealed, time_ms[event], id_hash[event], horizon_ms, low, missing)
        hdr[H_NEWEST] = before
        if found > 0 or waiting[user]:
            newest[user] = max(newest[user] if waiting[user] else before, time_ms[event])
            waiting[user] = True
            for index in range(found):
                if sealed.slot[missing[index]] != _PLANNED:
                    sealed.slot[missing[index]] = _PLANNED
                    wanted[counts[_WANTED], 0] = user
                    wanted[counts[_WANTED], 1] = missing[index]
                    counts[_WANTED] += 1
            later[counts[_LATER]] = event
            counts[_LATER] += 1
            continue
        gone = max(before, time_ms[event]) - horizon_ms
        truncated[event] = hdr[H_NEWEST_EXPIRED] > gone
        outcome[event] = k.step(
            hdr, head, sealed, pending, offset[event], source[position], time_ms[event], amount[event],
            merchant[event],
            id_hash[event], minor_units[event], horizon_ms, lateness_ms, ttl_ms, learn, low, acc,
            features[event],
        )  # fmt: skip
        if hdr[H_PENDING] == CHUNK:
            hdr[H_PENDING] = 0
            live_changed[user] = True
