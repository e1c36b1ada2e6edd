"""The table of histories and its RocksDB store: a database per partition, written by whole batches."""

from __future__ import annotations

import contextlib
import logging
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import faust
import rocksdict
from faust.stores import rocksdb

from stream.errors import StateError
from stream.runtime.cpu_affinity import unpinned

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["HistoryTable", "RocksDBStore"]


logger = logging.getLogger(__name__)

#: Marker file in a damaged database's folder: the database must not be used.
_DAMAGED: Final = "DAMAGED"

#: In a database, the id of the changelog topic that it was restored from.
CHANGELOG_ID_KEY: Final = b"__riskstream\0changelog-id__"

#: RocksDB's messages that do not mean damaged data.
_LOCKED: Final = ("lock hold by", "While lock file")

_NOT_DAMAGE: Final = (
    *_LOCKED,
    "No space left",
    "Permission denied",
    "Read-only file system",
    "Too many open",
)


#: Memory of a worker's store without settings: RocksDB's block cache and its memtables.
DEFAULT_BLOCK_CACHE_BYTES: Final = 256 << 20
DEFAULT_WRITE_BUFFER_BYTES: Final = 128 << 20


class RocksDBStore(rocksdb.Store):  # type: ignore[misc]
    """The RocksDB store of the history table: a database per partition, written by whole batches."""

    def __init__(
        self,
        *args: Any,
        block_cache_bytes: int = DEFAULT_BLOCK_CACHE_BYTES,
        write_buffer_bytes: int = DEFAULT_WRITE_BUFFER_BYTES,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # One of each for all partitions of a worker.
        self._cache = rocksdict.Cache(block_cache_bytes)
        self._buffers = rocksdict.WriteBufferManager(write_buffer_bytes, False)  # noqa: FBT003 - never stall

    def _open_for_partition(self, partition: int) -> Any:
        """Open a database; a damaged one is set aside, and its content comes from the changelog.

        Raises
        ------
        StateError
            The database cannot be opened for another reason, or belongs to a changelog that no longer exists.
        """
        path = Path(self.partition_path(partition))
        if (path / _DAMAGED).exists():
            self._put_aside(path, "an earlier run found it damaged")
        try:
            database = self._open(path)
            known, _ = database.get(CHANGELOG_ID_KEY), database.get(self.offset_key)
        except Exception as error:
            if any(text in str(error) for text in _NOT_DAMAGE):
                if any(text in str(error) for text in _LOCKED):
                    raise  # upstream waits for the former holder
                raise StateError(f"the state in {path} cannot be opened: {error}") from error
            self._put_aside(path, str(error))
            database = self._open(path)
            known = None
        current = self.app.hooks.changelog_id.encode()
        if known is not None and current and known != current:
            database.close()
            raise StateError(
                f"the state in {path} belongs to a changelog topic that was deleted and recreated, "
                "and the new topic does not contain it: restore the old topic, or remove the folder"
            )
        if known is None and current:
            database.put(CHANGELOG_ID_KEY, current)
        return database

    @staticmethod
    def _put_aside(path: Path, reason: str) -> None:
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        logger.error(
            "the state in %s is damaged (%s): moved to %s; the worker restores it from the changelog",
            path,
            reason.splitlines()[0] if reason else "no reason given",
            aside.name,
        )
        path.rename(aside)

    def _spoilt(self, partition: int, error: Exception) -> StateError:
        """Return the error to end with; damage is marked, so that the next start restores the partition."""
        path = Path(self.partition_path(partition))
        if any(text in str(error) for text in _NOT_DAMAGE):
            return StateError(f"the state in {path} cannot be used: {error}")
        with contextlib.suppress(OSError):
            (path / _DAMAGED).touch()
        return StateError(f"the state in {path} is damaged; the next start restores it: {error}")

    def _open(self, path: Path) -> Any:
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)  # noqa: FBT003
        options.set_max_open_files(512)
        options.set_keep_log_file_num(2)
        options.set_write_buffer_size(32 << 20)
        # Ids and merchants are hashes: compression takes time and gives little room.
        options.set_compression_type(rocksdict.DBCompressionType.none())
        options.set_write_buffer_manager(self._buffers)
        table = rocksdict.BlockBasedOptions()
        table.set_block_cache(self._cache)
        table.set_cache_index_and_filter_blocks(True)
        table.set_bloom_filter(10, False)  # noqa: FBT003 - full filters
        options.set_block_based_table_factory(table)
        with unpinned():  # the first database starts RocksDB's threads
            return rocksdict.Rdict(str(path), options=options)

    def databases(self) -> list[Any]:
        """Return the databases that are open."""
        return list(self._dbs.values())

    def database(self, partition: int) -> Any:
        """Return the partition's database, opened if need be."""
        return self._db_for_partition(partition)

    def persisted_offset(self, tp: Any) -> int | None:
        """Return the changelog offset that the local state reaches to.

        Raises
        ------
        StateError
            RocksDB cannot read.
        """
        [offset] = self.read(tp.partition, [self.offset_key])
        return None if offset is None else int(offset)

    def reached(self, partition: int) -> int | None:
        """Return the changelog offset that the local state reaches to; None without state or access.

        Another process may still hold the database; upstream waits for it when it opens the partition.
        """
        try:
            offset = self._db_for_partition(partition).get(self.offset_key)
        except StateError:
            raise
        except Exception:  # noqa: BLE001 - rocksdict's errors have no class of their own
            return None
        return None if offset is None else int(offset)

    def read(self, partition: int, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the value of each key, None for a missing key.

        Raises
        ------
        StateError
            RocksDB cannot read.
        """
        try:
            values: Sequence[bytes | None] = self._db_for_partition(partition).get(list(keys))
        except Exception as error:
            raise self._spoilt(partition, error) from error
        return values

    def scan(self, partition: int, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """Return stored records in the order of their keys: at most ``count``, from key ``start`` on.

        Raises
        ------
        StateError
            RocksDB cannot read.
        """
        try:
            records = self._db_for_partition(partition).items(from_key=start or None)
            return list(islice(records, count))
        except Exception as error:
            raise self._spoilt(partition, error) from error

    def write(
        self, partition: int, writes: Iterable[tuple[bytes, bytes | None]], changelog_offset: int
    ) -> None:
        """Write records and the changelog offset that they reach, in one atomic batch.

        Raises
        ------
        StateError
            RocksDB cannot write.
        """
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in writes:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        if changelog_offset >= 0:
            batch.put(self.offset_key, str(changelog_offset).encode())
        try:
            self._db_for_partition(partition).write(batch)
        except Exception as error:
            raise self._spoilt(partition, error) from error

    def apply_changelog_batch(self, batch: Iterable[Any], to_key: Any, to_value: Any) -> None:  # noqa: ARG002
        """Restore fetched batches of changelog records, each in one write."""
        for event in batch:
            records = event.message.value
            writes = [(record.key, record.value) for record in records]
            self.write(event.message.partition, writes, records[-1].offset)
            self.table.app.hooks.on_recovered(len(writes))

    def revoke_partitions(self, table: Any, tps: set[Any]) -> None:
        """Close the databases of revoked partitions: another worker may open them at once."""
        for tp in tps:
            if tp.topic in table.changelog_topic.topics:
                database = self._dbs.pop(tp.partition, None)
                if database is not None:
                    self._close(database)

    async def stop(self) -> None:
        """Close every database."""
        while self._dbs:
            _, database = self._dbs.popitem()
            self._close(database)

    @staticmethod
    def _close(database: Any) -> None:
        """Close a database; if that fails, the changelog has everything that was not stored."""
        try:
            database.close()
        except Exception as error:  # noqa: BLE001 - rocksdict's errors have no class of their own
            logger.warning("a database could not be closed cleanly: %s", str(error).splitlines()[0])


class HistoryTable(faust.Table):  # type: ignore[misc]
    """The table of users' histories."""

    def _new_store_by_url(self, url: Any) -> RocksDBStore:
        return RocksDBStore(
            url,
            self.app,
            self,
            table_name=self.name,
            key_type=self.key_type,
            key_serializer=self.key_serializer,
            value_serializer=self.value_serializer,
            value_type=self.value_type,
            loop=self.loop,
            **(self.options or {}),
        )
