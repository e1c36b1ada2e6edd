"""The cache of entity logs: the last used ones stay in memory, the others are read from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stream.errors import StateError
from stream.features.profiles.log import (
    _DAMAGED_CHUNKS,
    _HEADER,
    _MAX_NUMBER,
    _MIGRATIONS,
    _WAITING_SIZE,
    CHUNK,
    EVENTS_KIND,
    HEAD_KIND,
    LABELS_KIND,
    MAX_WAITING,
    EntityLog,
    Waiting,
    _Rows,
)
from stream.features.profiles.online import E_SIZE, L_IDENT, L_OFFSET, L_SIZE, L_UNTIL, L_WHEN, NEVER
from stream.state.format import describe_record, read_words, record_key, user_of_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stream.jit import Ints
    from stream.state.store import StateReader

__all__ = ["EntityLogs", "stored_log"]


class EntityLogs:
    """Logs in memory, the last used ones up to a number of bytes.

    Parameters
    ----------
    width
        Words of a transaction: ``E_SIZE``, or more if a log stores more of each.
    """

    def __init__(self, max_bytes: int, width: int = E_SIZE) -> None:
        self._max_bytes = max_bytes
        self._width = width
        self._logs: dict[tuple[int, bytes], EntityLog] = {}
        self._bytes = 0

    def forget(self) -> None:
        """Forget everything; it is read anew when it is needed."""
        self._logs.clear()
        self._bytes = 0

    def drop(self, partition: int, prefix: bytes) -> None:
        """Forget a log, if it is in memory."""
        log = self._logs.pop((partition, prefix), None)
        if log is not None:
            self._bytes -= log.nbytes

    def of(self, partition: int, prefixes: Iterable[bytes], reader: StateReader) -> dict[bytes, EntityLog]:
        """Return a partition's logs; logs that are not in memory are read.

        A log that cannot be used has an ``error`` and is not kept.
        """
        found: dict[bytes, EntityLog] = {}
        missing: list[bytes] = []
        for prefix in prefixes:
            log = self._logs.pop((partition, prefix), None)
            if log is None:
                missing.append(prefix)
            else:
                self._bytes -= log.nbytes
                found[prefix] = log
        if missing:
            self._read(missing, reader, found)
        return found

    @property
    def nbytes(self) -> int:
        """Memory of the logs that are kept."""
        return self._bytes

    def keep(self, partition: int, logs: Iterable[EntityLog]) -> None:
        """Take logs back that :meth:`of` has given out."""
        for log in logs:
            if log.error is None:
                self._logs[partition, log.prefix] = log
                self._bytes += log.nbytes
        while self._bytes > self._max_bytes and self._logs:
            key = next(iter(self._logs))
            self._bytes -= self._logs.pop(key).nbytes

    def _read(self, prefixes: list[bytes], reader: StateReader, found: dict[bytes, EntityLog]) -> None:
        keys = [record_key(prefix, HEAD_KIND) for prefix in prefixes]
        chunks: list[bytes] = []
        heads: list[tuple[EntityLog, Ints]] = []
        for prefix, key, record in zip(prefixes, keys, reader.read(keys), strict=True):
            log = found[prefix] = EntityLog(prefix, self._width)
            if record is None:
                continue
            try:
                words = _head_words(record, key, self._width)
            except StateError as error:
                log.error = error
                continue
            heads.append((log, words))
            for kind, first, end in ((EVENTS_KIND, 2, 3), (LABELS_KIND, 4, 5)):
                chunks += [
                    record_key(prefix, kind, number) for number in range(int(words[first]), int(words[end]))
                ]
        stored = dict(zip(chunks, reader.read(chunks), strict=True)) if chunks else {}
        for log, words in heads:
            try:
                self._load(log, words, stored)
            except StateError as error:
                log.error = error

    def _load(self, log: EntityLog, words: Ints, stored: dict[bytes, bytes | None]) -> None:
        log.newest, log.total = int(words[0]), int(words[1])
        tail, tail_labels, waiting = (int(count) for count in words[6:9])
        index = _HEADER
        for kind, rows, at, count in (
            (EVENTS_KIND, log.events, 2, tail),
            (LABELS_KIND, log.labels, 4, tail_labels),
        ):
            first, end = int(words[at]), int(words[at + 1])
            parts = [
                _chunk(stored, record_key(log.prefix, kind, number), kind, rows.width)
                for number in range(first, end)
            ]
            size = rows.width * count
            parts.append(words[index : index + size].reshape(rows.width, count))
            index += size
            rows.fill(parts, first, end)
        log.waiting = [
            Waiting(*row)
            for row in words[index : index + waiting * _WAITING_SIZE].reshape(-1, _WAITING_SIZE).tolist()
        ]
        _link(log.labels)


def stored_log(record: bytes, key: bytes) -> tuple[int, list[bytes]]:
    """Return the time of a log's newest content, in ms, and the keys of its records but the head's.

    Raises
    ------
    StateError
        The head is damaged or too old.
    NewerFormatError
        A newer version of this program has written it.
    """
    words = read_words(record, HEAD_KIND, key, _MIGRATIONS)
    if not _is_possible(words):
        raise StateError(f"{describe_record(key)} is corrupt: its numbers do not go together")
    waiting = int(words[8]) * _WAITING_SIZE
    whens = words[len(words) - waiting :].reshape(-1, _WAITING_SIZE)[:, 2]
    newest = max([int(words[0]), *whens.tolist()])
    prefix = user_of_key(key)[0]
    chunks = ((EVENTS_KIND, words[2:4].tolist()), (LABELS_KIND, words[4:6].tolist()))
    return newest, [record_key(prefix, kind, number) for kind, ends in chunks for number in range(*ends)]


def _is_possible(words: Ints) -> bool:
    """Return whether the numbers in a head's fixed words go together."""
    if len(words) < _HEADER:
        return False
    counts = words[6:9].tolist()
    return all(
        0 <= first <= end < _MAX_NUMBER and end - first <= _DAMAGED_CHUNKS
        for first, end in (words[2:4].tolist(), words[4:6].tolist())
    ) and (
        all(0 <= count <= MAX_WAITING for count in counts)
        and len(words) >= _HEADER + counts[1] * L_SIZE + counts[2] * _WAITING_SIZE
    )


def _head_words(record: bytes, key: bytes, width: int) -> Ints:
    words = read_words(record, HEAD_KIND, key, _MIGRATIONS)
    events, labels, waiting = words[6:9].tolist() if _is_possible(words) else (0, 0, 0)
    size = _HEADER + events * width + labels * L_SIZE + waiting * _WAITING_SIZE
    if not _is_possible(words) or len(words) != size:
        raise StateError(f"{describe_record(key)} is corrupt, or belongs to a model with other columns")
    return words


def _chunk(stored: dict[bytes, bytes | None], key: bytes, kind: int, width: int) -> Ints:
    record = stored[key]
    if record is None:
        raise StateError(f"{describe_record(key)} is missing")
    words = read_words(record, kind, key, _MIGRATIONS)
    if len(words) != width * CHUNK:
        raise StateError(f"{describe_record(key)} is corrupt, or belongs to a model with other columns")
    return words.reshape(width, CHUNK)


def _link(rows: _Rows) -> None:
    """Find for each label when a later label of its transaction became known."""
    labels = rows.array[:, rows.first : rows.end]
    labels[L_UNTIL] = NEVER
    order = np.lexsort((labels[L_OFFSET], labels[L_WHEN], labels[L_IDENT]))
    follows = labels[L_IDENT, order[1:]] == labels[L_IDENT, order[:-1]]
    labels[L_UNTIL, order[:-1][follows]] = labels[L_WHEN, order[1:][follows]]
