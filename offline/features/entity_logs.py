"""The logs of a file's entities, in memory, in the very records that a worker keeps in RocksDB."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from offline.features.build import by_entity, fill_entity, numbered, refund_rows
from stream.features.profiles.log import EntityLog
from stream.features.profiles.online import E_AMOUNT, E_IDENT, E_TIME, E_TO_USUAL, NEVER
from stream.features.profiles.spec import ENTITIES, EntityProfile
from stream.pipeline.entity_join.messages import CODES
from stream.pipeline.entity_join.plan import USER_WIDTH, JoinPlan
from stream.state.format import entity_prefix
from stream.state.hashing import hash_id, hash_ids
from stream.state.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from offline.data.table import TransactionTable
    from stream.features.profiles.log import Horizon
    from stream.features.spec import FeatureSpec

__all__ = ["load_logs"]


def load_logs(
    table: TransactionTable, spec: FeatureSpec, scored: npt.NDArray[np.bool_], *, lateness_ms: int
) -> MemoryStore:
    """Return the entity logs after all of a table's rows and labels.

    The next transaction reads from them the features that :func:`offline.features.build.build_features` would
    compute for it as the last row. Use them for reading only: users' logs lack the routes of labels.

    Parameters
    ----------
    scored : bool[n]
        The rows that their users' histories have applied.
    """
    stages = JoinPlan(spec, lateness_ms)
    scored = scored & ~refund_rows(table, spec)
    rows = np.flatnonzero(scored)
    # A row number stands for its transaction and for the pending transaction that requested.
    number = np.arange(1, len(table) + 1)
    names = table.user_id[rows].tolist()
    distinct = list(dict.fromkeys(names))
    user = np.zeros(len(table), np.int64)
    user[rows] = hash_ids(distinct)[numbered(names)]
    usual = _to_usual(table, spec, scored, lateness_ms).view(np.int64)
    events = np.stack([table.event_time_ms, table.amount_minor, user, number, usual, number], axis=1)
    logs = _Logs(table, rows, lateness_ms)
    if stages.local:
        of_users = np.zeros((len(table), USER_WIDTH), np.int64)
        of_users[:, : E_IDENT + 1] = events[:, : E_IDENT + 1]
        logs.add("user_id", str.encode, of_users, stages.user_horizon)
    for entity, field in ENTITIES.items():
        code = CODES[entity]
        if code in stages.requested:

            def prefix(name: str, code: int = code) -> bytes:
                return entity_prefix(code, hash_id(name))

            logs.add(field, prefix, events, stages.horizons[code], stages.label_horizon_ms.get(code))
    return logs.store


def _to_usual(
    table: TransactionTable, spec: FeatureSpec, scored: npt.NDArray[np.bool_], lateness_ms: int
) -> npt.NDArray[np.float64]:
    """Return each row's amount relative to its user's usual amount, NaN if no profile needs it."""
    found = np.full((len(table), 1), np.nan)
    if any("fraud_to_usual_min" in item.label_aggregates for item in spec.entities):
        *_, days = (item.usual_days for item in spec.entities if item.entity == "user" and item.usual_days)
        fill_entity(table, EntityProfile("user", usual_days=days), scored, lateness_ms, found, None)
    return found[:, 0]


class _Logs:
    """Writes logs of a table's chosen rows to ``store``."""

    def __init__(self, table: TransactionTable, rows: npt.NDArray[np.int64], lateness_ms: int) -> None:
        self.store = MemoryStore()
        self._table = table
        self._rows = rows
        self._lateness = lateness_ms
        labels = table.labels()
        self._labels = labels
        self._by_row = np.argsort(labels.row, kind="stable")
        self._starts = np.searchsorted(labels.row[self._by_row], np.arange(len(table) + 1))

    def add(
        self,
        field: str,
        prefix: Callable[[str], bytes],
        events: npt.NDArray[np.int64],
        horizon: Horizon,
        label_horizon_ms: int | None = None,
    ) -> None:
        """Write the logs of every entity that a column names.

        Parameters
        ----------
        prefix
            Returns the prefix of the keys of an entity's records.
        events : int64[n, words]
            The log's words of each row.
        label_horizon_ms
            None if no profile has label features.
        """
        names = getattr(self._table, field)
        if names is None:
            return
        starts, order = by_entity(names, self._rows)
        for first, end in pairwise(starts.tolist()):
            rows = order[first:end]
            log = EntityLog(prefix(names[rows[0]]), events.shape[1])
            for row, event in zip(rows.tolist(), events[rows].tolist(), strict=True):
                if event[E_TIME] < log.newest - self._lateness:
                    continue
                log.add(event)
                if label_horizon_ms is not None:
                    self._label(log, row, event, label_horizon_ms)
            self.store.write(log.writes(horizon))

    def _label(self, log: EntityLog, row: int, event: list[int], horizon_ms: int) -> None:
        """Add the labels of the log's last transaction; readers find which label corrects which."""
        about = (event[E_TIME], event[E_AMOUNT], event[E_TO_USUAL], event[E_IDENT], log.total - 1, NEVER)
        labels = self._labels
        for at in self._by_row[self._starts[row] : self._starts[row + 1]].tolist():
            when = int(labels.time_ms[at])
            if when <= event[E_TIME] + horizon_ms:
                log.labels.add((when, int(labels.is_fraud[at]), at, *about))
