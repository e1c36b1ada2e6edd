"""Users' histories over a store of records: a batch of events in, features and writes out.

Users whose history fits the head (fewer than 64 events within the horizon) go through one compiled
loop for the whole batch. Those with sealed chunks are :mod:`stream.features.sealed`'s.

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
from stream.features.residents import Residents
from stream.features.sealed import SealedUsers
from stream.features.spec import WINDOW_MS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = [
    "HistoryConfig",
    "HistoryEvents",
    "HistoryResult",
    "MemoryRecords",
    "Partitioned",
    "RecordReader",
    "advance",
]


class RecordReader(Protocol):
    """Where records are read from; all keys of one call belong to the same partition."""

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the value of each key, None where there is none."""
        ...


class MemoryRecords(dict[bytes, bytes]):
    """Records in a dictionary, where there is no database."""

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None where there is none."""
        return [self.get(key) for key in keys]

    def write(self, writes: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Store what a batch writes; None deletes."""
        for key, value in writes:
            if value is None:
                self.pop(key, None)
            else:
                self[key] = value


class Partitioned:
    """The records of several partitions, each with its own reader.

    Parameters
    ----------
    ends
        For each partition, the place behind its last user: a batch's users come partition by partition.
    """

    def __init__(self, readers: Sequence[RecordReader], ends: Sequence[int]) -> None:
        self._readers = readers
        self._ends = np.array(ends, np.int64)

    def part_of(self, owners: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the partition of each user, as the place of its reader."""
        return np.searchsorted(self._ends, owners, side="right")

    def read(self, keys: Sequence[bytes], owners: npt.NDArray[np.int64]) -> Sequence[bytes | None]:
        """Return the value of each key; ``owners`` says whose it is, by the users' places."""
        if len(self._readers) == 1:
            return self._readers[0].read(keys)
        parts = self.part_of(owners)
        found: list[bytes | None] = [None] * len(keys)
        for part in np.unique(parts).tolist():
            places = np.flatnonzero(parts == part).tolist()
            values = self._readers[part].read([keys[place] for place in places])
            for place, value in zip(places, values, strict=True):
                found[place] = value
        return found


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
    """A batch's events: n events, u users; of each source partition in arrival order.

    Whoever has events in two partitions is two users, one of each.

    Attributes
    ----------
    users:
        The u distinct user ids, UTF-8.
    user:
        int64[n], each event's place in ``users``.
    time_ms, amount_minor, merchant, ident, minor_units, offset:
        int64[n]; ``merchant`` is 0 where unknown.
    source:
        int64[u], names the incarnation of each user's source partition; offsets of another one are not
        comparable.
    """

    users: Sequence[bytes]
    user: npt.NDArray[np.int64]
    time_ms: npt.NDArray[np.int64]
    amount_minor: npt.NDArray[np.int64]
    merchant: npt.NDArray[np.int64]
    ident: npt.NDArray[np.int64]
    minor_units: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HistoryResult:
    """What a batch did.

    Attributes
    ----------
    outcome:
        uint8[n]: SCORED, LATE, DUPLICATE, REPLAYED, or FAILED for events of the users in ``errors``.
    writes, owners:
        Records to store, None to delete, and whose each is by the user's place; empty where the batch was not
        to be learnt.
    errors:
        By user's place, why its state cannot be used.
    other_source:
        bool[u]: whether a user's stored offset belonged to another incarnation of the source.
    """

    outcome: npt.NDArray[np.uint8]
    writes: list[tuple[bytes, bytes | None]]
    owners: list[int]
    errors: dict[int, StateError]
    other_source: npt.NDArray[np.bool_]


FAILED: Final = 6


def advance(
    events: HistoryEvents,
    config: HistoryConfig,
    reader: RecordReader | Partitioned,
    features: npt.NDArray[np.float64],
    *,
    learn: bool = True,
    residents: Residents | None = None,
) -> HistoryResult:
    """Take a batch of events: write their features, and say what must be stored.

    Parameters
    ----------
    features : float64[n, OUT_SIZE]
        Filled for events that are SCORED or LATE.
    learn
        Whether the events become part of the histories; False leaves no trace of them.
    residents
        Keeps long histories unpacked between batches; the caller must store what this returns, or end.
    """
    count, users = len(events.user), len(events.users)
    if not isinstance(reader, Partitioned):
        reader = Partitioned([reader], [users])
    hdrs = np.empty((users, k.HDR_SIZE), np.int64)
    hdrs[:] = k.new_header()
    heads = np.empty((users, 4, k.HEAD), np.int64)
    pendings = np.empty((users, k.CHUNK + 1), np.int64)
    busy = np.zeros(users, np.bool_)
    status = np.zeros(users, np.uint8)
    errors: dict[int, StateError] = {}
    keys = [layout.head_key(user) for user in events.users]
    words, starts, sizes = layout.join(_usable(keys, reader.read(keys, np.arange(users)), errors))
    checksums = np.zeros(users, np.int64)
    checksums[sizes > 1] = words[starts[sizes > 1] + 1]
    layout.unpack_heads(words, starts, sizes, hdrs, heads, pendings, busy, status)
    errors |= {place: _corrupt(keys[place]) for place in status.nonzero()[0].tolist()}
    failed = np.zeros(users, np.bool_)
    if errors:
        failed[list(errors)] = True
        busy |= failed
    known = sizes > 0
    other_source = known & (hdrs[:, k.H_SOURCE] != events.source) & ~failed

    outcome = np.empty(count, np.uint8)
    outcome.fill(k.DEFERRED)
    if not busy.all():
        k.run_heads(
            hdrs, heads, busy, events.user, events.offset, events.source, events.time_ms,
            events.amount_minor, events.merchant, events.ident, events.minor_units, config.horizon_ms,
            config.lateness_ms, learn, outcome, features,
        )  # fmt: skip
    writes: list[tuple[bytes, bytes | None]] = []
    owners: list[int] = []
    sealed: SealedUsers | None = None
    chosen = (busy & ~failed).nonzero()[0]
    if len(chosen):
        deferred = ((outcome == k.DEFERRED) & ~failed[events.user]).nonzero()[0]
        sealed = SealedUsers(
            events, chosen, (hdrs, heads, pendings), deferred, checksums, residents or Residents(1 << 20)
        )
        sealed.take(config, reader, learn=learn, outcome=outcome, features=features)
        if sealed.errors:
            errors |= sealed.errors
            failed[list(errors)] = True
        if learn:
            writes, owners = sealed.writes()
    if errors:
        outcome[failed[events.user]] = FAILED
    if learn:
        touched = np.zeros(users, np.bool_)
        touched[events.user[outcome <= k.LATE]] = True
        stored = (touched & ~failed).nonzero()[0]
        checksums[stored] = _pack_heads((hdrs, heads, pendings), stored, keys, writes)
        owners += stored.tolist()
    if sealed is not None:
        sealed.settle(checksums)
    return HistoryResult(outcome, writes, owners, errors, other_source)


def _corrupt(key: bytes) -> StateError:
    return StateError(f"{layout.describe_record(key)} is corrupt: it does not match its checksum")


def _pack_heads(
    states: tuple[layout.Words, layout.Words, layout.Words],
    chosen: npt.NDArray[np.int64],
    keys: list[bytes],
    writes: list[tuple[bytes, bytes | None]],
) -> layout.Words:
    """Add the chosen users' head records to ``writes``; returns each one's checksum."""
    packed = np.empty(len(chosen) * layout.MAX_HEAD_WORDS, np.int64)
    lengths = np.empty(len(chosen), np.int64)
    total = layout.pack_heads(*states, chosen, packed, lengths)
    blob = packed[:total].tobytes()
    ends = lengths.cumsum()
    begin = 0
    for place, end in zip(chosen.tolist(), (8 * ends).tolist(), strict=True):
        writes.append((keys[place], blob[begin:end]))
        begin = end
    checksums: layout.Words = packed[ends - lengths + 1]
    return checksums


def _usable(keys: list[bytes], stored: Sequence[bytes | None], errors: dict[int, StateError]) -> list[bytes]:
    """Return the records, empty where there is none; older versions migrated, unusable ones in ``errors``."""
    current = layout.HEAD_START
    records = []
    for place, record in enumerate(stored):
        usable = record or b""
        if record is not None and (record[:8] != current or len(record) % 8):
            try:
                usable = layout.migrate(record, keys[place])
            except StateError as error:
                errors[place] = error
                usable = b""
        records.append(usable)
    return records
