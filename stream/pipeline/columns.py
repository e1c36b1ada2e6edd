"""From rows to columns: the events of histories, and the columns of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stream.features.refunds import history_key, history_name
from stream.features.spec import MISSING
from stream.features.vector import Columns
from stream.features.windows.events import HistoryEvents
from stream.state.hashing import hash_ids

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy.typing as npt

    from stream.events.decode import TransactionRow
    from stream.features.spec import FeatureSpec
    from stream.pipeline.effects import DecodedRecord, PartitionBatch

__all__ = ["columns_of", "events_of"]


def events_of(
    parts: list[PartitionBatch], everything: list[DecodedRecord], refund_types: Collection[str]
) -> tuple[HistoryEvents, list[int]]:
    """Return the events of all partitions, and the index behind the last history of each.

    The users are histories: a user with payments and refunds has two.
    """
    users: list[bytes] = []
    user: list[int] = []
    sources: list[int] = []
    ends: list[int] = []
    for part in parts:
        indexes: dict[str, int] = {}
        first = len(users)
        user += [
            first
            + indexes.setdefault(
                row.user_id
                if row.amount_minor >= 0 and row.transaction_type not in refund_types
                else history_name(row.user_id, refund=True),
                len(indexes),
            )
            for _, row in part.decoded
        ]
        users += map(history_key, indexes)
        sources += [part.batch.source] * len(indexes)
        ends.append(len(users))
    numbers = np.array(
        [(row.event_time, row.amount_minor, row.minor_units, record.offset) for record, row in everything],
        np.int64,
    )
    time_ms, amount_minor, minor_units, offset = np.ascontiguousarray(numbers.T)
    events = HistoryEvents(
        users=users,
        user=np.array(user, np.int64),
        time_ms=time_ms,
        amount_minor=np.abs(amount_minor),
        merchant=hash_ids([row.merchant_id for _, row in everything]),
        id_hash=hash_ids([row.transaction_id for _, row in everything]),
        minor_units=minor_units,
        offset=offset,
        source=np.array(sources, np.int64),
    )
    return events, ends


def columns_of(rows: Sequence[TransactionRow], events: HistoryEvents, spec: FeatureSpec) -> Columns:
    """Return the columns that come from the transactions themselves; ``events`` are their events."""

    def balances(values: list[int | None]) -> npt.NDArray[np.int64]:
        return np.array([MISSING if value is None else value for value in values], np.int64)

    def attributes(name: str) -> list[float | str | None]:
        return [None if row.attributes is None else row.attributes.get(name) for row in rows]

    return Columns(
        time_ms=events.time_ms,
        amount_minor=np.array([row.amount_minor for row in rows], np.int64),
        minor_units=events.minor_units,
        pre_balance_minor=balances([row.pre_balance_minor for row in rows]),
        post_balance_minor=balances([row.post_balance_minor for row in rows]),
        categories={
            "channel": [row.channel for row in rows],
            "transaction_type": [row.transaction_type for row in rows],
        },
        numeric_attributes={
            name: np.array(
                [value if isinstance(value, float) else np.nan for value in attributes(name)], np.float64
            )
            for name in spec.numeric_attributes
        },
        categorical_attributes={
            name: [value if isinstance(value, str) else None for value in attributes(name)]
            for name in spec.categorical_attributes
        },
    )
