"""The worker's RocksDB store with its options, without a Faust app."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import rocksdict

from stream.runtime.faust_adapter.hooks import WorkerHooks
from stream.runtime.faust_adapter.store import RocksDBStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stream.settings import RocksDBSettings

__all__ = ["LocalStore", "PartitionReader", "link_folder"]


class LocalStore(RocksDBStore):
    """A database per partition in ``folder``, as ``<partition>.db`` unless told otherwise."""

    def __init__(self, folder: Path, settings: RocksDBSettings, name: str = "{}.db") -> None:
        self.app = SimpleNamespace(hooks=WorkerHooks())  # all that the store asks of it
        self._folder = folder
        self._name = name
        self._cache = rocksdict.Cache(settings.block_cache_mib << 20)
        self._buffers = rocksdict.WriteBufferManager(settings.write_buffer_mib << 20, False)  # noqa: FBT003
        self._dbs: dict[int, Any] = {}

    def partition_path(self, partition: int) -> Path:
        """Return the folder of a partition's database."""
        return self._folder / self._name.format(partition)

    def _db_for_partition(self, partition: int) -> Any:
        if partition not in self._dbs:
            self._dbs[partition] = self._open_for_partition(partition)
        return self._dbs[partition]

    def close(self) -> None:
        """Close every database."""
        while self._dbs:
            self._dbs.popitem()[1].close()


@dataclass(frozen=True, slots=True)
class PartitionReader:
    """Reads the records of one partition."""

    store: LocalStore
    partition: int

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the value of each key, None where there is none."""
        return self.store.read(self.partition, keys) if keys else []


def link_folder(source: Path, target: Path) -> None:
    """Copy a closed database: RocksDB never changes an SST file, so those are linked."""

    def copy(item: str, other: str) -> None:
        if item.endswith(".sst"):
            os.link(item, other)
        else:
            shutil.copy2(item, other)

    shutil.copytree(source, target, copy_function=copy)
