"""The users' histories of a file, in memory, in the very records that a worker keeps in RocksDB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stream.features.refunds import history_key, history_name, is_refund
from stream.features.windows.arrays import OUT_SIZE
from stream.features.windows.events import HistoryConfig, HistoryEvents
from stream.features.windows.history import advance
from stream.state.hashing import hash_ids
from stream.state.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from offline.data.table import TransactionTable

__all__ = ["load_histories"]


_BATCH: Final = 5_000


def load_histories(
    table: TransactionTable,
    *,
    lateness_ms: int,
    user_ttl_ms: int = 0,
    refund_types: tuple[str, ...] = (),
    outcome: npt.NDArray[np.uint8] | None = None,
    progress: Callable[[int], None] | None = None,
) -> MemoryStore:
    """Return the histories after all valid rows of a table, in their order.

    Parameters
    ----------
    outcome : uint8[n] or None
        Is written to: the outcome of each valid row, as in :class:`offline.features.build.FeatureTable`.
    """
    store = MemoryStore()
    config = HistoryConfig(lateness_ms, user_ttl_ms)
    rows = np.flatnonzero(table.valid)
    for begin in range(0, len(rows), _BATCH):
        part = rows[begin : begin + _BATCH]
        names = [
            history_name(name, refund=is_refund(amount, kind, refund_types))
            for name, amount, kind in zip(
                table.user_id[part].tolist(),
                table.amount_minor[part].tolist(),
                table.transaction_type[part].tolist(),
                strict=True,
            )
        ]
        users = list(dict.fromkeys(names))
        indexes = {name: index for index, name in enumerate(users)}
        events = HistoryEvents(
            users=list(map(history_key, users)),
            user=np.array([indexes[name] for name in names], np.int64),
            time_ms=table.event_time_ms[part],
            amount_minor=np.abs(table.amount_minor[part]),
            merchant=hash_ids(
                [None] * len(part) if table.merchant_id is None else table.merchant_id[part].tolist()
            ),
            id_hash=hash_ids(table.transaction_id[part].tolist()),
            minor_units=table.minor_units[part],
            offset=part.astype(np.int64),
            source=np.zeros(len(users), np.int64),
        )
        result = advance(events, config, store, np.empty((len(part), OUT_SIZE)))
        store.write(result.writes)
        if outcome is not None:
            outcome[part] = result.outcome
        if progress is not None:
            progress(len(part))
    return store
