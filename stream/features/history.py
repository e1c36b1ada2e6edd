"""Users' histories over a store of records: a batch of events in, features and writes out.

Users whose history fits the head (fewer than 32 events within the horizon) go through one compiled
loop for the whole batch. The others are taken one by one and read, beside their head, the live bitmaps,
the segments, and the few chunks that straddle a window's edge.

Nothing here does I/O: records come from the reader that is passed in, and the changed ones go back as
a list for the caller to deliver in the order that its guarantees need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from stream.errors import StateError
from stream.features import kernel as k
from stream.features import layout
from stream.features.spec import WINDOW_MS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["HistoryConfig", "HistoryEvents", "HistoryResult", "RecordReader", "UserHistory", "advance"]

_SLOTS: Final = 8


class RecordReader(Protocol):
    """Where records are read from; all keys of one call belong to the same partition."""

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the value of each key, None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class HistoryConfig:
    """What is kept.

    Attributes
    ----------
    lateness_ms:
        An event up to this far behind its user's newest is scored exactly; 30 days plus this are kept.

    """

    lateness_ms: int = 3 * 86_400_000

    @property
    def horizon_ms(self) -> int:
        """How far behind a user's newest event the log reaches."""
        return WINDOW_MS[-1] + self.lateness_ms


@dataclass(frozen=True, slots=True)
class HistoryEvents:
    """A batch's events in arrival order: one source partition, n events, u users.

    Attributes
    ----------
    users:
        The u distinct user ids, UTF-8.
    user:
        int64[n], each event's place in ``users``.
    time_ms, amount_minor, merchant, ident, minor_units, offset:
        int64[n]; ``merchant`` is 0 where unknown.
    source:
        Names the source partition's incarnation; offsets of another one are not comparable.

    """

    users: Sequence[bytes]
    user: npt.NDArray[np.int64]
    time_ms: npt.NDArray[np.int64]
    amount_minor: npt.NDArray[np.int64]
    merchant: npt.NDArray[np.int64]
    ident: npt.NDArray[np.int64]
    minor_units: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    source: int


@dataclass(frozen=True, slots=True)
class HistoryResult:
    """What a batch did.

    Attributes
    ----------
    outcome:
        uint8[n]: SCORED, LATE, DUPLICATE, REPLAYED, or FAILED for events of the users in ``errors``.
    writes:
        Records to store, None to delete; empty where the batch was not to be learnt.
    errors:
        By user's place, why its state cannot be used.
    other_source:
        Users whose stored offset belonged to another incarnation of the source.

    """

    outcome: npt.NDArray[np.uint8]
    writes: list[tuple[bytes, bytes | None]]
    errors: dict[int, StateError]
    other_source: int


FAILED: Final = 6


class UserHistory:
    """One user's history with sealed chunks, loaded as far as events have needed it."""

    def __init__(self, user: bytes, hdr: layout.Words, head: layout.Words, pending: layout.Words) -> None:
        self.user = user
        self.hdr = hdr
        self.head = head
        self.pending = pending
        self._stored_first = int(hdr[k.H_FIRST_CHUNK])
        self._stored_next = int(hdr[k.H_NEXT_CHUNK])
        self._low = np.empty(len(WINDOW_MS), np.int64)
        self._acc = np.empty((len(WINDOW_MS), k.ACC_SIZE), np.int64)
        self._store = np.empty((_SLOTS, 4, k.CHUNK), np.int64)
        self._used = 0
        self._live_changed = False
        self._allocate(self._stored_next - int(hdr[k.H_BASE]) + 8)

    def _allocate(self, chunks: int) -> None:
        segments = chunks // k.SEGMENT + 1
        self._summary = np.zeros((chunks, 6), np.int64)
        self._live = np.zeros(chunks, np.uint32)
        self._marks = np.zeros((2, chunks * k.CHUNK), np.uint32)
        self._seg = np.zeros((segments, 7), np.int64)
        self._bloom = np.zeros((2, segments, k.BLOOM_WORDS), np.uint32)
        self._slot = np.full(chunks, -1, np.int32)
        self._wanted = np.empty(chunks, np.int64)

    def load(self, reader: RecordReader) -> None:
        """Read the live bitmaps and the segments of all kept chunks.

        Raises
        ------
        StateError
            A record is missing or cannot be used.

        """
        base = int(self.hdr[k.H_BASE])
        if self._stored_next == self._stored_first:
            return
        numbers = range(base // k.SEGMENT, (self._stored_next - 1) // k.SEGMENT + 1)
        keys = [layout.live_key(self.user), *(layout.segment_key(self.user, number) for number in numbers)]
        records = reader.read(keys)
        for key, record in zip(keys, records, strict=True):
            if record is None:
                raise StateError(f"{self._what(key)} is missing")
        first, live = layout.unpack_live(records[0] or b"", self._what(keys[0]))
        end = self._stored_next - base
        kept = slice(self._stored_first - first, self._stored_next - first)
        if first > self._stored_first or len(live) < kept.stop:
            raise StateError(f"{self._what(keys[0])} does not cover the chunks that the head names")
        self._live[self._stored_first - base : end] = live[kept]
        for index in range(int(self.hdr[k.H_PENDING])):
            chunk, bit = divmod(int(self.pending[index]) - base * k.CHUNK, k.CHUNK)
            if self._stored_first - base <= chunk < end:
                self._live[chunk] &= np.uint32(~(1 << bit) & 0xFFFFFFFF)
        for number, key, record in zip(numbers, keys[1:], records[1:], strict=True):
            summary, marks = layout.unpack_segment(record or b"", self._what(key))
            start = number * k.SEGMENT - base
            count = min(k.SEGMENT, end - start)
            if len(summary) < count:
                raise StateError(f"{self._what(key)} does not cover the chunks that the head names")
            self._summary[start : start + count] = summary[:count]
            self._marks[:, start * k.CHUNK : (start + count) * k.CHUNK] = marks[:, : count * k.CHUNK]
        k.index_chunks(end, self._summary, self._live, self._marks, self._seg, self._bloom)

    def take(
        self, events: HistoryEvents, index: int, config: HistoryConfig, reader: RecordReader, *, learn: bool,
        out: npt.NDArray[np.float64],
    ) -> int:  # fmt: skip
        """Take one event; returns its outcome and writes its features to ``out``."""
        t, merchant, ident = events.time_ms[index], events.merchant[index], events.ident[index]
        missing = k.plan(
            self.hdr, self.head, self._summary, self._live, self._marks, self._seg, self._bloom, self._slot,
            t, merchant, ident, config.horizon_ms, self._low, self._wanted,
        )  # fmt: skip
        if missing:
            self._load_chunks(self._wanted[:missing].tolist(), reader)
        outcome: int = k.step(
            self.hdr, self.head, self._summary, self._live, self._marks, self._seg, self._bloom, self._slot,
            self._store, self.pending, events.offset[index], events.source, t, events.amount_minor[index],
            merchant, ident, events.minor_units[index], config.horizon_ms, config.lateness_ms, learn,
            self._low, self._acc, out,
        )  # fmt: skip
        if self.hdr[k.H_PENDING] == k.CHUNK:
            self.hdr[k.H_PENDING] = 0
            self._live_changed = True
        if self.hdr[k.H_HEAD] == k.CHUNK:
            self.seal()
        return outcome

    def seal(self) -> None:
        """Seal the full head."""
        index = int(self.hdr[k.H_NEXT_CHUNK] - self.hdr[k.H_BASE])
        if index >= len(self._live):
            self._grow(index + 8)
        target = self._free_slot()  # may replace the store
        k.seal(
            self.hdr, self.head, self._summary, self._live, self._marks, self._seg, self._bloom, self._slot,
            self._store, target,
        )  # fmt: skip

    def writes(self) -> list[tuple[bytes, bytes | None]]:
        """Return the records that sealing and forgetting chunks have changed, the head's apart."""
        base = int(self.hdr[k.H_BASE])
        first, end = int(self.hdr[k.H_FIRST_CHUNK]), int(self.hdr[k.H_NEXT_CHUNK])
        changed: list[tuple[bytes, bytes | None]] = []
        sealed = range(max(self._stored_next, first), end)
        for number in sealed:
            events = self._store[self._slot[number - base]]
            changed.append((layout.chunk_key(self.user, number), layout.pack_chunk(events)))
        for segment in sorted({number // k.SEGMENT for number in sealed}):
            begin = segment * k.SEGMENT - base
            stop = min(begin + k.SEGMENT, end - base)
            record = layout.pack_segment(
                self._summary[begin:stop],
                np.ascontiguousarray(self._marks[:, begin * k.CHUNK : stop * k.CHUNK]),
            )
            changed.append((layout.segment_key(self.user, segment), record))
        if (end > self._stored_next or self._live_changed) and first < end:
            changed.append(
                (layout.live_key(self.user), layout.pack_live(first, self._live[first - base : end - base]))
            )
        forgotten = range(self._stored_first, min(first, self._stored_next))
        changed += [(layout.chunk_key(self.user, number), None) for number in forgotten]
        # By the segment, not by its last chunk: one that was not full may be outlived within a batch.
        for segment in sorted({number // k.SEGMENT for number in forgotten}):
            if segment < first // k.SEGMENT or first == end:
                changed.append((layout.segment_key(self.user, segment), None))
        if first == end and self._stored_first < self._stored_next:
            changed.append((layout.live_key(self.user), None))
            # The next chunk begins a new segment, so that no record with a gap is ever needed.
            aligned = -(-end // k.SEGMENT) * k.SEGMENT
            self.hdr[k.H_FIRST_CHUNK] = self.hdr[k.H_NEXT_CHUNK] = self.hdr[k.H_BASE] = aligned
            self.hdr[k.H_PENDING] = 0
        return changed

    def _load_chunks(self, wanted: list[int], reader: RecordReader) -> None:
        base = int(self.hdr[k.H_BASE])
        keys = [layout.chunk_key(self.user, base + index) for index in wanted]
        for index, key, record in zip(wanted, keys, reader.read(keys), strict=True):
            if record is None:
                raise StateError(f"{self._what(key)} is missing")
            target = self._free_slot()
            self._store[target] = layout.unpack_chunk(record, self._what(key))
            self._slot[index] = target

    def _free_slot(self) -> int:
        if self._used == len(self._store):
            self._store = np.concatenate([self._store, np.empty_like(self._store)])
        self._used += 1
        return self._used - 1

    def _grow(self, chunks: int) -> None:
        old = (self._summary, self._live, self._marks, self._seg, self._bloom, self._slot)
        self._allocate(max(chunks, 2 * len(old[1])))
        self._summary[: len(old[0])] = old[0]
        self._live[: len(old[1])] = old[1]
        self._marks[:, : old[2].shape[1]] = old[2]
        self._seg[: len(old[3])] = old[3]
        self._bloom[:, : old[4].shape[1]] = old[4]
        self._slot[: len(old[5])] = old[5]

    def _what(self, key: bytes) -> str:
        return describe_record(key)


def describe_record(key: bytes) -> str:
    """Return how an error names a record."""
    user, kind, number = layout.user_of_key(key)
    kinds = {"H": "head", "L": "live bitmap", "S": f"segment {number}", "C": f"chunk {number}"}
    return f"state of user {user.decode(errors='replace')!r} ({kinds.get(kind, kind)})"


def advance(
    events: HistoryEvents,
    config: HistoryConfig,
    reader: RecordReader,
    features: npt.NDArray[np.float64],
    *,
    learn: bool = True,
) -> HistoryResult:
    """Take a batch of events: write their features, and say what must be stored.

    Parameters
    ----------
    features : float64[n, OUT_SIZE]
        Filled for events that are SCORED or LATE.
    learn
        Whether the events become part of the histories; False leaves no trace of them.

    """
    count, users = len(events.user), len(events.users)
    hdrs = np.empty((users, k.HDR_SIZE), np.int64)
    hdrs[:] = k.new_header()
    heads = np.empty((users, 4, k.CHUNK), np.int64)
    pendings = np.empty((users, k.CHUNK + 1), np.int64)
    busy = np.zeros(users, np.bool_)
    status = np.zeros(users, np.uint8)
    errors: dict[int, StateError] = {}
    keys = [layout.head_key(user) for user in events.users]
    records = _usable(keys, reader.read(keys), errors)
    sizes = np.fromiter((len(record) // 8 for record in records), np.int64, users)
    starts = np.cumsum(sizes) - sizes
    words = np.frombuffer(b"".join(records), np.int64)
    layout.unpack_heads(words, starts, sizes, hdrs, heads, pendings, busy, status)
    for place in np.nonzero(status)[0].tolist():
        errors[place] = StateError(
            f"{describe_record(keys[place])} is corrupt: it does not match its checksum"
        )
    failed = np.zeros(users, np.bool_)
    failed[list(errors)] = True
    busy |= failed
    known = sizes > 0
    other_source = int(np.count_nonzero(known & (hdrs[:, k.H_SOURCE] != events.source) & ~failed))

    # A user that begins the batch without chunks and seals one is found by its stored chunk numbers.
    outcome = np.empty(count, np.uint8)
    k.run_heads(
        hdrs, heads, busy, events.user, events.offset, events.source, events.time_ms, events.amount_minor,
        events.merchant, events.ident, events.minor_units, config.horizon_ms, config.lateness_ms, learn,
        outcome, features,
    )  # fmt: skip
    writes: list[tuple[bytes, bytes | None]] = []
    if busy.any():
        histories = _take_one_by_one(
            events,
            config,
            reader,
            features,
            outcome,
            (hdrs, heads, pendings),
            busy,
            failed,
            errors,
            learn=learn,
        )
        if learn:
            for place, history in histories.items():
                if not failed[place]:
                    writes += history.writes()
    if errors:
        outcome[failed[events.user]] = FAILED
    if learn:
        touched = np.zeros(users, np.bool_)
        touched[events.user[outcome <= k.LATE]] = True
        chosen = np.nonzero(touched & ~failed)[0]
        packed = np.empty(len(chosen) * layout.MAX_HEAD_WORDS, np.int64)
        lengths = np.empty(len(chosen), np.int64)
        layout.pack_heads(hdrs, heads, pendings, chosen, packed, lengths)
        blob = packed.tobytes() if len(chosen) else b""
        end = 0
        for place, length in zip(chosen.tolist(), lengths.tolist(), strict=True):
            begin, end = end, end + 8 * length
            writes.append((keys[place], blob[begin:end]))
    return HistoryResult(outcome, writes, errors, other_source)


def _usable(keys: list[bytes], stored: Sequence[bytes | None], errors: dict[int, StateError]) -> list[bytes]:
    """Return the records, empty where there is none; older versions migrated, unusable ones in ``errors``."""
    current = layout.HEAD_START
    records = []
    for place, record in enumerate(stored):
        usable = record or b""
        if record is not None and (record[:4] != current or len(record) % 8):
            try:
                usable = layout.migrate_head(record, describe_record(keys[place]))
            except StateError as error:
                errors[place] = error
                usable = b""
        records.append(usable)
    return records


def _take_one_by_one(
    events: HistoryEvents,
    config: HistoryConfig,
    reader: RecordReader,
    features: npt.NDArray[np.float64],
    outcome: npt.NDArray[np.uint8],
    states: tuple[layout.Words, layout.Words, layout.Words],
    busy: npt.NDArray[np.bool_],
    failed: npt.NDArray[np.bool_],
    errors: dict[int, StateError],
    *,
    learn: bool,
) -> dict[int, UserHistory]:
    """Take the events that the batch's loop left, each user's in order."""
    hdrs = states[0]
    histories: dict[int, UserHistory] = {}
    if learn:  # users that filled their head with their last event of the batch have none left
        for place in np.nonzero(busy & ~failed)[0].tolist():
            if hdrs[place, k.H_HEAD] == k.CHUNK:
                histories[place] = _open(events.users[place], states, place)
                histories[place].seal()
    for index in np.nonzero(outcome == k.DEFERRED)[0].tolist():
        place = int(events.user[index])
        if failed[place]:
            continue
        try:
            history = histories.get(place)
            if history is None:
                history = histories[place] = _open(events.users[place], states, place)
                history.load(reader)
            outcome[index] = history.take(events, index, config, reader, learn=learn, out=features[index])
        except StateError as error:
            errors[place] = error
            failed[place] = True
    return histories


def _open(user: bytes, states: tuple[layout.Words, layout.Words, layout.Words], place: int) -> UserHistory:
    hdrs, heads, pendings = states
    return UserHistory(user, hdrs[place], heads[place], pendings[place])
