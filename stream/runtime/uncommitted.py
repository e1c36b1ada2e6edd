"""uncommitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Store(Protocol):
    """What the processor needs of the table's store."""

    def read(self, partition: int, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the values of keys, None where there is none."""

    def write(
        self, partition: int, writes: Iterable[tuple[bytes, bytes | None]], changelog_offset: int
    ) -> None:
        """Write changes, None to delete, and the changelog's offset, all or nothing."""


class _Unstored:
    """State that rounds under way have decided and RocksDB does not have yet; the next round must see it."""

    def __init__(self) -> None:
        self._rounds: dict[int, dict[int, dict[bytes, bytes | None]]] = {}

    def add(self, round_number: int, partition: int, writes: list[tuple[bytes, bytes | None]]) -> None:
        self._rounds.setdefault(partition, {})[round_number] = dict(writes)

    def drop(self, round_number: int, partition: int) -> None:
        """Forget what a round has stored."""
        del self._rounds[partition][round_number]

    def of(self, partition: int) -> list[dict[bytes, bytes | None]]:
        """Return what each round has decided, the newest first."""
        return list(self._rounds.get(partition, {}).values())[::-1]


class _PartitionReader:
    """Reads the records of one partition: what is not stored yet first, then RocksDB.

    What a round decided stays here when it is stored meanwhile: it is the same.
    """

    def __init__(self, store: Store, partition: int, unstored: _Unstored) -> None:
        self._store = store
        self._partition = partition
        self._unstored = unstored.of(partition)

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        if not keys:
            return []
        if not self._unstored:
            return self._store.read(self._partition, keys)
        found: list[bytes | None] = [None] * len(keys)
        missing = list(range(len(keys)))
        for held in self._unstored:
            for place in missing:
                found[place] = held.get(keys[place])
            missing = [place for place in missing if found[place] is None and keys[place] not in held]
        if missing:
            stored = self._store.read(self._partition, [keys[place] for place in missing])
            for place, value in zip(missing, stored, strict=True):
                found[place] = value
        return found
