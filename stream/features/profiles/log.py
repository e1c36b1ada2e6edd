"""Logs of entities: transactions and labels in arrival order, in memory and as stored.

==========  ============================================================  =========================
key suffix  record                                                        written
==========  ============================================================  =========================
``P``       header; transactions and labels that are not sealed; labels   with every change
            that wait for their transaction
``E`` n     sealed chunk ``n`` of 16 transactions                         once
``K`` n     sealed chunk ``n`` of 16 labels                               once
==========  ============================================================  =========================

Keys, first words and checksums are those of :mod:`stream.state.format`. A key begins with the user id, or
with :func:`.entity_prefix`. A write drops whole chunks that no later transaction can see. When that happens
depends on the batches, so no reader may look beyond the horizon, not even for the transaction of a late
label.

:class:`.EntityLogs` keeps logs in memory between batches. The caller must store the writes that it returns,
or end: the memory is ahead of the store until then, and no other process writes these records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from stream.features.profiles.online import (
    E_TIME,
    L_IDENT,
    L_OFFSET,
    L_SIZE,
    L_TIME,
    L_UNTIL,
    L_WHEN,
    NEVER,
    find,
)
from stream.jit import jit
from stream.state.format import Migrations, checksum, first_word, make_record, record_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.errors import StateError
    from stream.features.profiles.online import ProfileReader
    from stream.jit import Floats, Ints

__all__ = [
    "CHUNK",
    "EVENTS_KIND",
    "HEAD_KIND",
    "LABELS_KIND",
    "MAX_CHUNKS",
    "MAX_WAITING",
    "EntityLog",
    "Horizon",
    "Waiting",
]


HEAD_KIND: Final = ord("P")
_HEAD_START: Final = first_word(HEAD_KIND)

#: No version of these records needs a migration yet.
_MIGRATIONS: Final[Migrations] = {}

EVENTS_KIND: Final = ord("E")
LABELS_KIND: Final = ord("K")

#: Rows of a sealed chunk. Rows that are not sealed are written with every change, so short chunks keep writes
#: small.
CHUNK: Final = 16

#: Words of the header: newest time, transactions ever, first and next chunk of transactions, of labels, and
#: how many transactions, labels and waiting labels follow.
_HEADER: Final = 9

_NOTHING: Final = -(2**62)

#: The newest chunks that a log keeps of its transactions, and of its labels.
MAX_CHUNKS: Final = 1 << 20

#: A head that names more chunks is damaged: room is made for them before they are read.
_DAMAGED_CHUNKS: Final = 1 << 21

#: Beyond every number of a chunk, which grows with all rows that the log ever had.
_MAX_NUMBER: Final = 1 << 58

#: Most labels of a user that wait for transactions; the oldest ones are dropped.
MAX_WAITING: Final = 256

_WAITING_SIZE: Final = 4
_NONE_WAITING: Final = np.empty((0, _WAITING_SIZE), np.int64)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A label whose transaction is not known yet."""

    id_hash: int
    is_fraud: int
    when_ms: int
    offset: int


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far behind its newest transaction a log reaches, by event time of transactions and of labels."""

    events_ms: int
    labels_ms: int


class _Rows:
    """Rows of int64 in arrival order, each a column; the first may be forgotten, the last are not sealed."""

    __slots__ = ("array", "end", "first", "first_chunk", "next_chunk", "width")

    def __init__(self, width: int, extra: int = 0) -> None:
        self.width = width
        self.array = np.empty((width + extra, CHUNK), np.int64)
        self.first = self.end = 0
        self.first_chunk = self.next_chunk = 0

    @property
    def tail(self) -> int:
        """The first row that is not sealed."""
        return self.first + (self.next_chunk - self.first_chunk) * CHUNK

    def add(self, values: Sequence[int]) -> None:
        if self.end == self.array.shape[1]:
            self._grow()
        self.array[:, self.end] = values
        self.end += 1

    def _grow(self) -> None:
        count = self.end - self.first
        grown = np.empty((len(self.array), max(2 * count, 4 * CHUNK)), np.int64)
        grown[:, :count] = self.array[:, self.first : self.end]
        self.array, self.first, self.end = grown, 0, count

    def forget(self, rows: list[int], until: int) -> list[int]:
        """Drop leading chunks whose values in these rows are at most ``until``; returns their numbers."""
        gone = []
        while (
            self.first_chunk < self.next_chunk
            # For nearly every log, checking its last row is enough.
            and self.array[rows[0], self.first + CHUNK - 1] <= until
            and self.array[rows, self.first : self.first + CHUNK].max() <= until
        ):
            gone.append(self.first_chunk)
            self._drop_chunk()
        return gone

    def drop_excess(self) -> list[int]:
        """Drop leading chunks beyond the newest MAX_CHUNKS; returns their numbers."""
        gone = list(range(self.first_chunk, self.next_chunk - MAX_CHUNKS))
        for _ in gone:
            self._drop_chunk()
        return gone

    def _drop_chunk(self) -> None:
        self.first_chunk += 1
        self.first += CHUNK

    def seal(self) -> list[tuple[int, Ints]]:
        """Return the chunks that are full by now, each with its number."""
        sealed = []
        while self.end - self.tail >= CHUNK:
            sealed.append((self.next_chunk, self.array[: self.width, self.tail : self.tail + CHUNK]))
            self.next_chunk += 1
        return sealed

    def fill(self, parts: Sequence[Ints], first_chunk: int, next_chunk: int) -> None:
        """Take stored rows, those of the chunks and then the others."""
        count = sum(part.shape[1] for part in parts)
        self.array = np.empty((len(self.array), max(2 * count, CHUNK)), np.int64)
        if count:
            np.concatenate(parts, axis=1, out=self.array[: self.width, :count])
        self.first, self.end = 0, count
        self.first_chunk, self.next_chunk = first_chunk, next_chunk


class EntityLog:
    """The log of an entity.

    Attributes
    ----------
    newest:
        The largest event time among its transactions.
    total:
        Number of transactions that it ever had.
    error:
        Why the stored log cannot be used; then nothing is written.
    dropped:
        Chunks that the last :meth:`writes` dropped although a later transaction could have seen them.
    """

    __slots__ = ("dropped", "error", "events", "labels", "newest", "prefix", "total", "waiting")

    def __init__(self, prefix: bytes, width: int) -> None:
        self.prefix = prefix
        self.events = _Rows(width)
        self.labels = _Rows(L_SIZE, 1)
        self.waiting: list[Waiting] = []
        self.newest = _NOTHING
        self.total = 0
        self.error: StateError | None = None
        self.dropped = 0

    @property
    def nbytes(self) -> int:
        """Memory of its rows."""
        return int(self.events.array.nbytes + self.labels.array.nbytes) + 500

    def add(self, event: Sequence[int]) -> None:
        """Append a transaction."""
        self.events.add(event)
        self.newest = max(self.newest, event[E_TIME])
        self.total += 1

    def label(self, label: Sequence[int]) -> bool:
        """Append a label of a transaction in the log; returns False if the log has the label already.

        Labels of a transaction are in the order of their time and offset; each is valid until the next label
        is known.
        """
        rows = self.labels
        order = (label[L_WHEN], label[L_OFFSET])
        until = NEVER
        same = np.flatnonzero(rows.array[L_IDENT, rows.first : rows.end] == label[L_IDENT]) + rows.first
        for at in same.tolist():
            other = (int(rows.array[L_WHEN, at]), int(rows.array[L_OFFSET, at]))
            if other == order:
                return False
            if other > order:
                until = min(until, other[0])
        for at in same.tolist():
            if (int(rows.array[L_WHEN, at]), int(rows.array[L_OFFSET, at])) < order:
                rows.array[L_UNTIL, at] = min(int(rows.array[L_UNTIL, at]), order[0])
        rows.add((*label, until))
        return True

    def find(self, row: int, value: int) -> int:
        """Return the index of the last transaction with a value in a row, -1 for none."""
        return find(self.events.array[row], self.events.first, self.events.end, value)

    def read_profile(
        self, reader: ProfileReader, now: int, amount: int, minor_units: int, user: int, out: Floats
    ) -> None:
        """Write a profile's features of a transaction that is not in the log yet, see :meth:`.fill`."""
        events, labels = self.events, self.labels
        reader.fill(
            events.array, (events.first, events.end), labels.array, (labels.first, labels.end), now, amount,
            minor_units, user, out,
        )  # fmt: skip

    def writes(self, horizon: Horizon) -> list[tuple[bytes, bytes | None]]:
        """Return the records to store after a change, None to delete; the head comes last."""
        prefix, events, labels = self.prefix, self.events, self.labels
        writes: list[tuple[bytes, bytes | None]] = []
        self.dropped = 0
        for kind, rows, times, until in (
            (EVENTS_KIND, events, [E_TIME], self.newest - horizon.events_ms),
            (LABELS_KIND, labels, [L_WHEN, L_TIME], self.newest - horizon.labels_ms),
        ):
            writes += [
                (record_key(prefix, kind, number), make_record(kind, np.ascontiguousarray(chunk)))
                for number, chunk in rows.seal()
            ]
            gone = rows.forget(times, until)
            excess = rows.drop_excess()
            writes += [(record_key(prefix, kind, number), None) for number in gone + excess]
            self.dropped += len(excess)
        waiting = _NONE_WAITING
        if self.waiting:
            words_of = [(item.id_hash, item.is_fraud, item.when_ms, item.offset) for item in self.waiting]
            waiting = np.array(words_of, np.int64)
        sizes = (
            events.width * (events.end - events.tail), L_SIZE * (labels.end - labels.tail), waiting.size,
        )  # fmt: skip
        words = np.empty(2 + _HEADER + sum(sizes), np.int64)
        _pack(
            self.newest, self.total, events.first_chunk, events.next_chunk, labels.first_chunk,
            labels.next_chunk, events.array, events.tail, events.end, events.width, labels.array, labels.tail,
            labels.end, waiting, words,
        )  # fmt: skip
        writes.append((record_key(prefix, HEAD_KIND), words.tobytes()))
        return writes


@jit
def _pack(
    newest: int,
    total: int,
    first_chunk: int,
    next_chunk: int,
    first_labels: int,
    next_labels: int,
    events: Ints,
    begin: int,
    end: int,
    width: int,
    labels: Ints,
    begin_labels: int,
    end_labels: int,
    waiting: Ints,
    words: Ints,
) -> None:
    """Write a head record to ``words``, which is as long."""
    words[0] = _HEAD_START
    words[2], words[3] = newest, total
    words[4], words[5], words[6], words[7] = first_chunk, next_chunk, first_labels, next_labels
    words[8], words[9], words[10] = end - begin, end_labels - begin_labels, len(waiting)
    index = 2 + _HEADER
    for row in range(width):
        for at in range(begin, end):
            words[index] = events[row, at]
            index += 1
    for row in range(L_SIZE):
        for at in range(begin_labels, end_labels):
            words[index] = labels[row, at]
            index += 1
    for at in range(len(waiting)):
        for column in range(_WAITING_SIZE):
            words[index] = waiting[at, column]
            index += 1
    words[1] = checksum(words, 2, index)
