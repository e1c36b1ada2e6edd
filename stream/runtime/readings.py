"""What a worker is asked for when Prometheus asks: the store's size and memory, and how recovery goes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from stream.monitoring.metrics import Readings

if TYPE_CHECKING:
    from stream.monitoring.drift import Drift
    from stream.runtime.app import Runtime
    from stream.runtime.faust_seams import HistoryStore
    from stream.scoring.bundle import Bundle
    from stream.settings import Settings

__all__ = ["drift_of", "read"]

logger = logging.getLogger(__name__)

#: RocksDB's properties, each kept by itself: asking costs microseconds.
_RECORDS: Final = "rocksdb.estimate-num-keys"
_LIVE: Final = "rocksdb.estimate-live-data-size"
_FILES: Final = "rocksdb.total-sst-files-size"
_CACHE: Final = "rocksdb.block-cache-usage"
_MEMTABLES: Final = "rocksdb.cur-size-all-mem-tables"
_INDEXES: Final = "rocksdb.estimate-table-readers-mem"


def read(runtime: Runtime, store: HistoryStore) -> Readings:
    """Return the readings of now."""
    databases = store.databases()

    def values(name: str) -> list[int]:
        return [_property(database, name) for database in databases]

    return Readings(
        state_records=sum(values(_RECORDS)),
        state_live_bytes=sum(values(_LIVE)),
        state_disk_bytes=sum(values(_FILES)),
        # One cache for all of them, which each tells the whole of.
        block_cache_bytes=max(values(_CACHE), default=0),
        memtable_bytes=sum(values(_MEMTABLES)),
        index_bytes=sum(values(_INDEXES)),
        recovery_remaining=_remaining(runtime),
        stalled_seconds=runtime.watchdog.stalled_seconds,
        rebalances=int(runtime.app.rebalancing_count),
    )


def _property(database: Any, name: str) -> int:
    try:
        return int(database.property_int_value(name) or 0)
    except Exception:  # noqa: BLE001 - rocksdict's errors have no class; closed by a rebalance
        return 0


def _remaining(runtime: Runtime) -> int:
    """Return how many changelog records are to be restored; 0 outside of recovery."""
    recovery = runtime.app.tables.recovery
    return max(0, int(recovery.active_remaining_total())) if recovery.in_recovery else 0


def drift_of(settings: Settings, bundle: Bundle) -> Drift | None:
    """Return what compares the stream with the bundle's training; None where it is off or has nothing."""
    if not settings.drift.enabled:
        return None
    # Not before it is wanted: river takes a second to import.
    from stream.monitoring.drift import Drift, choose_watched  # noqa: PLC0415

    try:
        watched = choose_watched(bundle.reference, bundle.training.get("gains", ()))
        return Drift(bundle.reference, bundle.spec.names, watched, settings.drift.window_transactions)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("drift is not measured: the bundle's reference statistics cannot be used: %r", error)
        return None
