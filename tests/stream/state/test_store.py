"""Every reader of state gives the same answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.local_store import LocalStore, PartitionReader
from stream.runtime.uncommitted import UncommittedReader, UncommittedState
from stream.settings import RocksDBSettings
from stream.state.store import MemoryStore, PartitionedReader, StateReader
from support.checks import check_state_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    Records = Mapping[bytes, bytes]


@pytest.fixture
def rocksdb(tmp_path: Path) -> Iterator[Callable[[Records], PartitionReader]]:
    """Write records into a partition of a real database."""
    stores: list[LocalStore] = []

    def make(records: Records) -> PartitionReader:
        stores.append(LocalStore(tmp_path / str(len(stores)), RocksDBSettings()))
        stores[-1].write(1, list(records.items()), 7)
        stores[-1].write(0, [(key, b"of another partition") for key in records], 7)
        return PartitionReader(stores[-1], 1)

    yield make
    for store in stores:
        store.close()


class Spread:
    """Records of one user each, dealt out to three partitions and read by way of them."""

    def __init__(self, records: Records) -> None:
        self._parts = [MemoryStore(), MemoryStore(), MemoryStore()]
        for key, value in records.items():
            self._parts[self._part(key)][key] = value
        self._reader = PartitionedReader(self._parts, [10, 20, 30])

    @staticmethod
    def _part(key: bytes) -> int:
        return len(key) % 3

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        owners = np.array([10 * self._part(key) + 9 * (len(key) % 2) for key in keys], np.int64)
        return self._reader.read(keys, owners)


class Partitions:
    """Memory as a store of partitions, as the worker's is."""

    def __init__(self, reader: StateReader) -> None:
        self._reader = reader

    def read(self, partition: int, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        assert partition == 1
        return self._reader.read(keys)

    def write(self, partition: int, writes: object, offset: int) -> None:
        raise NotImplementedError


def uncommitted(records: Records, stored: StateReader) -> UncommittedReader:
    """A third of the records stored, a third written by one batch, and the rest by a later one."""
    state = UncommittedState()
    keys = list(records)
    state.add(
        1, 1, [(key, b"of an earlier batch") for key in keys[2::3]] + [(b"u\0H\0\0\0\1", b"deleted later")]
    )
    state.add(2, 1, [(key, records[key]) for key in keys[1::3]] + [(b"v\0H\0\0\0\0", None)])
    state.add(3, 1, [(key, records[key]) for key in keys[2::3]] + [(b"u\0H\0\0\0\1", None)])
    state.add(3, 0, [(key, b"of another partition") for key in keys])
    return UncommittedReader(Partitions(stored), 1, state)


def test_memory() -> None:
    check_state_reader(MemoryStore)


def test_rocksdb(rocksdb: Callable[[Records], PartitionReader]) -> None:
    check_state_reader(rocksdb)


def test_partitions_one_by_one_and_together() -> None:
    check_state_reader(Spread)


@pytest.mark.parametrize("kind", ["memory", "rocksdb"])
def test_what_is_decided_and_not_stored_yet(kind: str, rocksdb: Callable[[Records], PartitionReader]) -> None:
    def make(records: Records) -> StateReader:
        stale = {key: records[key] if at % 3 == 0 else b"stale" for at, key in enumerate(records)}
        stale[b"v\0H\0\0\0\0"] = b"deleted by a batch"
        return uncommitted(records, MemoryStore(stale) if kind == "memory" else rocksdb(stale))

    check_state_reader(make)
