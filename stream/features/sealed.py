"""Histories with sealed chunks, a batch's worth at a time.

What :mod:`stream.features.kernel` does for one user needs that user's live bitmaps, segments and a few
chunks in memory. Here the users of a batch share one workspace, each with a range of it, so that a batch
costs two reads and a handful of compiled calls however many users it has:

1. read live bitmaps and segments, check and unpack them (:func:`_unpack`), build the segment filters;
2. ask the kernel which chunks each event needs (:func:`_plan`), read those, check and unpack them;
3. take the events in their order, sealing heads as they fill (:func:`_take`);
4. collect the records that sealing and forgetting have changed (:meth:`SealedUsers.writes`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stream.errors import StateError
from stream.features import kernel as k
from stream.features import layout
from stream.features.compiled import Codes, Flags, Floats, Ints, Marks, Slots, compiled

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from stream.features.history import HistoryConfig, HistoryEvents, RecordReader

__all__ = ["SealedUsers"]

_LIVE: Final = -1  # stands for "the live bitmaps" where a segment's number is expected
_PLANNED: Final = -2  # a slot that is about to be filled


class SealedUsers:
    """The users of a batch whose histories have sealed chunks, or are about to get their first.

    Attributes
    ----------
    errors:
        By the user's place in the batch, why its state cannot be used.
    """

    def __init__(
        self,
        events: HistoryEvents,
        chosen: npt.NDArray[np.int64],
        states: tuple[Ints, Ints, Ints],
        taken: npt.NDArray[np.int64],
    ) -> None:
        """Lay out the workspace.

        Parameters
        ----------
        chosen : int64[m]
            Places of these users in the batch.
        states
            Headers, heads and pending lists of all the batch's users.
        taken : int64[e]
            The events to take, in their order.
        """
        self.errors: dict[int, StateError] = {}
        self._events = events
        self._chosen = chosen
        self._hdrs, self._heads, self._pendings = states
        self._taken = taken
        hdrs = self._hdrs[chosen]
        self._first = hdrs[:, k.H_FIRST_CHUNK].copy()
        self._next = hdrs[:, k.H_NEXT_CHUNK].copy()
        self._base = hdrs[:, k.H_BASE].copy()
        self._local = np.full(len(events.users), -1, np.int64)
        self._local[chosen] = np.arange(len(chosen))
        seals = np.bincount(self._local[events.user[taken]], minlength=len(chosen)) // k.CHUNK + 2
        capacity = self._next - self._base + seals
        segments = capacity // k.SEGMENT + 1
        self._chunk_at = np.concatenate([[0], np.cumsum(capacity)])
        self._segment_at = np.concatenate([[0], np.cumsum(segments)])
        chunks = int(self._chunk_at[-1])
        self._summary = np.zeros((chunks, 6), np.int64)
        self._live = np.zeros(chunks, np.uint32)
        self._marks = np.zeros((chunks, 2, k.CHUNK), np.uint32)
        self._slot = np.full(chunks, -1, np.int32)
        self._seg = np.zeros((int(self._segment_at[-1]), 7), np.int64)
        self._bloom = np.zeros((int(self._segment_at[-1]), 2, k.BLOOM_WORDS), np.uint32)
        self._new_slots = int(seals.sum())
        self._store = np.empty((0, 4, k.CHUNK), np.int64)
        self._live_changed = np.zeros(len(chosen), np.bool_)

    @property
    def _failed(self) -> Flags:
        failed = np.zeros(len(self._chosen), np.bool_)
        for place in self.errors:
            failed[self._local[place]] = True
        return failed

    def take(
        self, config: HistoryConfig, reader: RecordReader, *, learn: bool, outcome: Codes, features: Floats
    ) -> None:
        """Take the events; their outcomes and features go to the batch's arrays."""
        self._load(reader)
        events, failed = self._events, self._failed
        user = self._local[events.user]
        wanted = np.empty((max(1, int((self._next - self._first).sum())), 2), np.int64)
        count = _plan(
            self._taken, user, failed, self._chosen, self._hdrs, self._heads, self._chunk_at,
            self._segment_at, self._summary, self._live, self._marks, self._seg, self._bloom, self._slot,
            events.time_ms, events.merchant, events.ident, config.horizon_ms, wanted,
        )  # fmt: skip
        self._load_chunks(wanted[:count], reader)
        _take(
            self._taken, user, self._failed, self._chosen, self._hdrs, self._heads, self._pendings,
            self._chunk_at, self._segment_at, self._summary, self._live, self._marks, self._seg, self._bloom,
            self._slot, self._store, count, self._live_changed, events.offset, events.source, events.time_ms,
            events.amount_minor, events.merchant, events.ident, events.minor_units, config.horizon_ms,
            config.lateness_ms, learn, outcome, features,
        )  # fmt: skip

    def writes(self) -> list[tuple[bytes, bytes | None]]:
        """Return the records that sealing and forgetting chunks have changed, the heads apart."""
        hdrs = self._hdrs[self._chosen]
        changed = (
            (hdrs[:, k.H_NEXT_CHUNK] != self._next)
            | (hdrs[:, k.H_FIRST_CHUNK] != self._first)
            | self._live_changed
        ) & ~self._failed
        writes: list[tuple[bytes, bytes | None]] = []
        for index in np.flatnonzero(changed).tolist():
            self._write(index, writes)
        return writes

    def _load(self, reader: RecordReader) -> None:
        """Read and unpack the live bitmaps and segments of all users that have chunks."""
        keys: list[bytes] = []
        owners: list[tuple[int, int]] = []
        for index in np.flatnonzero(self._next > self._first).tolist():
            user = self._events.users[self._chosen[index]]
            keys.append(layout.live_key(user))
            owners.append((index, _LIVE))
            for number in range(self._base[index] // k.SEGMENT, (self._next[index] - 1) // k.SEGMENT + 1):
                keys.append(layout.segment_key(user, number))
                owners.append((index, number))
        if not keys:
            return
        owner = np.array(owners, np.int64)
        starts = np.array(
            [layout.LIVE_START if number == _LIVE else layout.SEGMENT_START for _, number in owners]
        )
        records = self._usable(reader.read(keys), keys, owner[:, 0], starts.tolist())
        words, begins, sizes = layout.join(records)
        good = _unpack(
            words, begins, sizes, owner, self._first, self._next, self._base, self._chunk_at,
            self._summary, self._live, self._marks,
        )  # fmt: skip
        for index in np.flatnonzero(~good & (sizes > 0)).tolist():
            self._fail(int(owner[index, 0]), StateError(layout.complaint(keys[index], records[index])))
        _index(
            self._failed, self._hdrs, self._pendings, self._chosen, self._first, self._next, self._base,
            self._chunk_at, self._segment_at, self._summary, self._live, self._marks, self._seg, self._bloom,
        )  # fmt: skip

    def _load_chunks(self, wanted: Ints, reader: RecordReader) -> None:
        """Read and unpack chunks, ``wanted`` a list of user and chunk index."""
        self._store = np.empty((len(wanted) + self._new_slots, 4, k.CHUNK), np.int64)
        if not len(wanted):
            return
        keys = [
            layout.chunk_key(self._events.users[self._chosen[index]], int(self._base[index]) + chunk)
            for index, chunk in wanted.tolist()
        ]
        records = self._usable(reader.read(keys), keys, wanted[:, 0], [layout.CHUNK_START] * len(keys))
        words, begins, sizes = layout.join(records)
        good = _unpack_chunks(words, begins, sizes, wanted, self._chunk_at, self._slot, self._store)
        for index in np.flatnonzero(~good & (sizes > 0)).tolist():
            self._fail(int(wanted[index, 0]), StateError(layout.complaint(keys[index], records[index])))

    def _usable(
        self, stored: Sequence[bytes | None], keys: list[bytes], owner: Ints, starts: list[bytes]
    ) -> list[bytes]:
        """Return the records, migrated; users with a missing or unusable one get an error."""
        records = []
        for record, key, index, start in zip(stored, keys, owner.tolist(), starts, strict=True):
            usable = record or b""
            try:
                if record is None:
                    raise StateError(f"{layout.describe_record(key)} is missing")
                if record[:8] != start or len(record) % 8:
                    usable = layout.migrate(record, key)
            except StateError as error:
                self._fail(index, error)
                usable = b""
            records.append(usable)
        return records

    def _fail(self, index: int, error: StateError) -> None:
        self.errors.setdefault(int(self._chosen[index]), error)

    def _write(self, index: int, writes: list[tuple[bytes, bytes | None]]) -> None:
        """Add one user's changed records."""
        place = int(self._chosen[index])
        user, hdr = self._events.users[place], self._hdrs[place]
        base, stored_first, stored_next = (
            int(self._base[index]),
            int(self._first[index]),
            int(self._next[index]),
        )
        first, end = int(hdr[k.H_FIRST_CHUNK]), int(hdr[k.H_NEXT_CHUNK])
        at = int(self._chunk_at[index]) - base
        sealed = range(max(stored_next, first), end)
        writes += [
            (layout.chunk_key(user, number), layout.pack_chunk(self._store[self._slot[at + number]]))
            for number in sealed
        ]
        for segment in sorted({number // k.SEGMENT for number in sealed}):
            part = slice(at + segment * k.SEGMENT, at + min((segment + 1) * k.SEGMENT, end))
            writes.append(
                (
                    layout.segment_key(user, segment),
                    layout.pack_segment(self._summary[part], self._marks[part]),
                )
            )
        if (end > stored_next or self._live_changed[index]) and first < end:
            writes.append((layout.live_key(user), layout.pack_live(first, self._live[at + first : at + end])))
        forgotten = range(stored_first, min(first, stored_next))
        writes += [(layout.chunk_key(user, number), None) for number in forgotten]
        # By the segment, not by its last chunk: one that was not full may be outlived within a batch.
        for segment in sorted({number // k.SEGMENT for number in forgotten}):
            if segment < first // k.SEGMENT or first == end:
                writes.append((layout.segment_key(user, segment), None))
        if first == end and stored_first < stored_next:
            writes.append((layout.live_key(user), None))
            # The next chunk begins a new segment, so that no record with a gap is ever needed.
            aligned = -(-end // k.SEGMENT) * k.SEGMENT
            hdr[k.H_FIRST_CHUNK] = hdr[k.H_NEXT_CHUNK] = hdr[k.H_BASE] = aligned
            hdr[k.H_PENDING] = 0


@compiled
def _unpack(
    words: Ints,
    begins: Ints,
    sizes: Ints,
    owner: Ints,
    first: Ints,
    following: Ints,
    base: Ints,
    chunk_at: Ints,
    summary: Ints,
    live: Marks,
    marks: Marks,
) -> Flags:
    """Unpack live bitmaps and segments into the workspace; returns which records were good."""
    good = np.zeros(len(sizes), np.bool_)
    for record in range(len(sizes)):
        begin, size = begins[record], sizes[record]
        if size < 4 or words[begin + 1] != layout.checksum(words, begin + 2, begin + size):
            continue
        user, number = owner[record, 0], owner[record, 1]
        at = chunk_at[user] - base[user]
        body = begin + 2
        if number == _LIVE:
            stored_first, count = words[body], words[body + 1]
            if size != 4 + (count + 1) // 2:
                continue
            if stored_first > first[user] or stored_first + count < following[user]:
                continue
            for chunk in range(first[user], following[user]):
                place = chunk - stored_first
                live[at + chunk] = np.uint32(
                    (words[body + 2 + place // 2] >> (32 * (place & 1))) & 0xFFFFFFFF
                )
        else:
            count = words[body]
            start = number * k.SEGMENT
            needed = min(k.SEGMENT, following[user] - start)
            if count < needed or count > k.SEGMENT or size != 3 + count * (6 + k.CHUNK):
                continue
            for chunk in range(needed):
                for column in range(6):
                    summary[at + start + chunk, column] = words[body + 1 + 6 * chunk + column]
                place = body + 1 + 6 * count + k.CHUNK * chunk
                for index in range(k.CHUNK):
                    pair = words[place + index]
                    row, column = divmod(2 * index, k.CHUNK)
                    marks[at + start + chunk, row, column] = np.uint32(pair & 0xFFFFFFFF)
                    marks[at + start + chunk, row, column + 1] = np.uint32((pair >> 32) & 0xFFFFFFFF)
        good[record] = True
    return good


@compiled
def _index(
    failed: Flags,
    hdrs: Ints,
    pendings: Ints,
    chosen: Ints,
    first: Ints,
    following: Ints,
    base: Ints,
    chunk_at: Ints,
    segment_at: Ints,
    summary: Ints,
    live: Marks,
    marks: Marks,
    seg: Ints,
    bloom: Marks,
) -> None:
    """Clear the live bits lost since the last seal, and build the segments' summaries and filters."""
    for user in range(len(chosen)):
        if failed[user]:
            continue
        at = chunk_at[user]
        hdr = hdrs[chosen[user]]
        for index in range(hdr[k.H_PENDING]):
            chunk, bit = divmod(pendings[chosen[user], index], k.CHUNK)
            if first[user] <= chunk < following[user]:
                place = at + chunk - base[user]
                live[place] = np.uint32(np.int64(live[place]) & ~(1 << bit))
        stop = at + following[user] - base[user]
        k.index_chunks(
            following[user] - base[user],
            summary[at:stop],
            live[at:stop],
            marks[at:stop],
            seg[segment_at[user] : segment_at[user + 1]],
            bloom[segment_at[user] : segment_at[user + 1]],
        )


@compiled
def _plan(
    taken: Ints,
    local: Ints,
    failed: Flags,
    chosen: Ints,
    hdrs: Ints,
    heads: Ints,
    chunk_at: Ints,
    segment_at: Ints,
    summary: Ints,
    live: Marks,
    marks: Marks,
    seg: Ints,
    bloom: Marks,
    slot: Slots,
    time_ms: Ints,
    merchant: Ints,
    ident: Ints,
    horizon_ms: int,
    wanted: Ints,
) -> int:
    """List the chunks that the events will need; each is listed once."""
    count = 0
    low = np.empty(4, np.int64)
    newest = np.empty(len(chosen), np.int64)
    for user in range(len(chosen)):
        newest[user] = hdrs[chosen[user], k.H_NEWEST]
    missing = np.empty(len(slot) + 1, np.int64)
    for event in taken:
        user = local[event]
        if failed[user]:
            continue
        hdr = hdrs[chosen[user]]
        a, b = chunk_at[user], chunk_at[user + 1]
        c, d = segment_at[user], segment_at[user + 1]
        # As of the events before it in this batch: an event older than one of those is late, too.
        before = hdr[k.H_NEWEST]
        hdr[k.H_NEWEST] = newest[user]
        found = k.plan(
            hdr, heads[chosen[user]], summary[a:b], live[a:b], marks[a:b], seg[c:d], bloom[c:d], slot[a:b],
            time_ms[event], merchant[event], ident[event], horizon_ms, low, missing,
        )  # fmt: skip
        hdr[k.H_NEWEST] = before
        newest[user] = max(newest[user], time_ms[event])
        for index in range(found):
            if slot[a + missing[index]] != _PLANNED:
                slot[a + missing[index]] = _PLANNED
                wanted[count, 0] = user
                wanted[count, 1] = missing[index]
                count += 1
    return count


@compiled
def _unpack_chunks(
    words: Ints, begins: Ints, sizes: Ints, wanted: Ints, chunk_at: Ints, slot: Slots, store: Ints
) -> Flags:
    """Unpack chunks into the store's first slots; returns which records were good."""
    good = np.zeros(len(sizes), np.bool_)
    for record in range(len(sizes)):
        begin, size = begins[record], sizes[record]
        place = chunk_at[wanted[record, 0]] + wanted[record, 1]
        slot[place] = record
        if size != 2 + 4 * k.CHUNK or words[begin + 1] != layout.checksum(words, begin + 2, begin + size):
            continue
        for row in range(4):
            for index in range(k.CHUNK):
                store[record, row, index] = words[begin + 2 + row * k.CHUNK + index]
        good[record] = True
    return good


@compiled
def _take(
    taken: Ints,
    local: Ints,
    failed: Flags,
    chosen: Ints,
    hdrs: Ints,
    heads: Ints,
    pendings: Ints,
    chunk_at: Ints,
    segment_at: Ints,
    summary: Ints,
    live: Marks,
    marks: Marks,
    seg: Ints,
    bloom: Marks,
    slot: Slots,
    store: Ints,
    next_slot: int,
    live_changed: Flags,
    offset: Ints,
    source: int,
    time_ms: Ints,
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
    """Take the events in their order, and seal heads as they fill."""
    low = np.empty(4, np.int64)
    acc = np.empty((4, k.ACC_SIZE), np.int64)
    for user in range(len(chosen)):  # heads that the batch's other loop has filled
        place = chosen[user]
        if hdrs[place, k.H_HEAD] == k.CHUNK and not failed[user]:
            a, b = chunk_at[user], chunk_at[user + 1]
            c, d = segment_at[user], segment_at[user + 1]
            k.seal(
                hdrs[place], heads[place], summary[a:b], live[a:b], marks[a:b], seg[c:d], bloom[c:d],
                slot[a:b], store, next_slot,
            )  # fmt: skip
            next_slot += 1
    for event in taken:
        user = local[event]
        if failed[user]:
            continue
        place = chosen[user]
        hdr, head, pending = hdrs[place], heads[place], pendings[place]
        a, b = chunk_at[user], chunk_at[user + 1]
        c, d = segment_at[user], segment_at[user + 1]
        outcome[event] = k.step(
            hdr, head, summary[a:b], live[a:b], marks[a:b], seg[c:d], bloom[c:d], slot[a:b], store, pending,
            offset[event], source, time_ms[event], amount[event], merchant[event], ident[event],
            minor_units[event], horizon_ms, lateness_ms, learn, low, acc, features[event],
        )  # fmt: skip
        if hdr[k.H_PENDING] == k.CHUNK:
            hdr[k.H_PENDING] = 0
            live_changed[user] = True
        if hdr[k.H_HEAD] == k.CHUNK:
            k.seal(
                hdr,
                head,
                summary[a:b],
                live[a:b],
                marks[a:b],
                seg[c:d],
                bloom[c:d],
                slot[a:b],
                store,
                next_slot,
            )
            next_slot += 1
