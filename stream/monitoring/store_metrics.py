"""Metrics that are read when Prometheus scrapes: the store's size and memory, and recovery."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from stream.monitoring.metrics import StoreMetrics

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["read"]


logger = logging.getLogger(__name__)

#: RocksDB's properties, each kept by itself: asking costs microseconds.
_RECORDS: Final = "rocksdb.estimate-num-keys"

_LIVE: Final = "rocksdb.estimate-live-data-size"
_FILES: Final = "rocksdb.total-sst-files-size"
_CACHE: Final = "rocksdb.block-cache-usage"
_MEMTABLES: Final = "rocksdb.cur-size-all-mem-tables"
_INDEXES: Final = "rocksdb.estimate-table-readers-mem"


def read(
    databases: Collection[Any], *, recovery_remaining: int, stalled_seconds: float, rebalances: int
) -> StoreMetrics:
    """Return the readings of now."""

    def values(name: str) -> list[int]:
        return [_property(database, name) for database in databases]

    return StoreMetrics(
        state_records=sum(values(_RECORDS)),
        state_live_bytes=sum(values(_LIVE)),
        state_disk_bytes=sum(values(_FILES)),
        # One cache for all databases; each reports the whole of it.
        block_cache_bytes=max(values(_CACHE), default=0),
        memtable_bytes=sum(values(_MEMTABLES)),
        index_bytes=sum(values(_INDEXES)),
        recovery_remaining=recovery_remaining,
        stalled_seconds=stalled_seconds,
        rebalances=rebalances,
    )


def _property(database: Any, name: str) -> int:
    try:
        return int(database.property_int_value(name) or 0)
    except Exception:  # noqa: BLE001 - rocksdict's errors have no class; closed by a rebalance
        return 0
