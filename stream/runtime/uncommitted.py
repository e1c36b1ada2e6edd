"""State that is decided and not stored yet: the next micro-batch must see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Store", "UncommittedReader", "UncommittedState"]


class Store(Protocol):
    """The table's store: key-value records of each partition."""

    def read(self, partition: int, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the value of each key, None for a missing key."""

    def scan(self, partition: int, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """Return stored records in the order of their keys: at most ``count``, from key ``start`` on."""

    def write(
        self, partition: int, writes: Iterable[tuple[bytes, bytes | None]], changelog_offset: int
    ) -> None:
        """Write values, None to delete, and the changelog offset that they reach, in one atomic batch."""


class UncommittedState:
    """The writes of the micro-batches in progress, by partition and number."""

    def __init__(self) -> None:
        self._writes: dict[int, dict[int, dict[bytes, bytes | None]]] = {}

    def add(self, number: int, partition: int, writes: list[tuple[bytes, bytes | None]]) -> None:
        """Keep a micro-batch's writes until they are stored."""
        self._writes.setdefault(partition, {})[number] = dict(writes)

    def drop(self, number: int, partition: int) -> None:
        """Drop a micro-batch's writes: they are stored."""
        del self._writes[partition][number]

    def of(self, partition: int) -> list[dict[bytes, bytes | None]]:
        """Return the writes of each micro-batch in progress, the newest first."""
        return list(self._writes.get(partition, {}).values())[::-1]


class UncommittedReader:
    """Reads the records of one partition: from the uncommitted writes first, then from the store.

    A write that is stored meanwhile stays visible here: both have the same value.
    """

    def __init__(self, store: Store, partition: int, state: UncommittedState) -> None:
        self._store = store
        self._partition = partition
        self._uncommitted = state.of(partition)

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the value of each key, None for a missing key."""
        if not keys:
            return []
        if not self._uncommitted:
            return self._store.read(self._partition, keys)
        values: list[bytes | None] = [None] * len(keys)
        missing = list(range(len(keys)))
        for writes in self._uncommitted:
            for index in missing:
                values[index] = writes.get(keys[index])
            missing = [index for index in missing if values[index] is None and keys[index] not in writes]
        if missing:
            stored = self._store.read(self._partition, [keys[index] for index in missing])
            for index, value in zip(missing, stored, strict=True):
                values[index] = value
        return values
