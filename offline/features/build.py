"""Features of a whole file: the stream's own kernel and vectors, run over history."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from stream.errors import DataError
from stream.features.profiles.offline import fill_profile
from stream.features.profiles.spec import ENTITIES
from stream.features.refunds import REFUND_TYPES, history_name
from stream.features.spec import CATEGORY_COLUMNS, FeatureSpec
from stream.features.vector import Columns, VectorBuilder
from stream.features.windows.arrays import CHUNK, DUPLICATE, LATE, SCORED, SEGMENT, new_sealed
from stream.features.windows.drivers import run_users
from stream.features.windows.events import HistoryConfig
from stream.state.hashing import hash_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt

    from offline.data.table import TransactionTable
    from stream.features.profiles.spec import EntityProfile

__all__ = [
    "LATE",
    "REJECTED",
    "SCORED",
    "FeatureTable",
    "build_features",
    "by_entity",
    "fill_entity",
    "fit_spec",
    "numbered",
    "refund_rows",
]


#: The outcome of a row that makes no valid transaction, beside the histories' SCORED, LATE and DUPLICATE.
REJECTED: Final = 3

#: Events between two reports of progress.
_BLOCK: Final = 100_000


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Features of n rows, in the file's order.

    Attributes
    ----------
    outcome:
        uint8[n]: SCORED, LATE, DUPLICATE or REJECTED.
    matrix:
        float64[n, features] in the spec's order; rows of DUPLICATE and REJECTED events are NaN.
    """

    outcome: npt.NDArray[np.uint8]
    matrix: npt.NDArray[np.float64]


def refund_rows(table: TransactionTable, spec: FeatureSpec) -> npt.NDArray[np.bool_]:
    """Return which rows of a table are refunds, see :mod:`stream.features.refunds`: bool[n]."""
    types = set(spec.refund_types)
    found = table.amount_minor < 0
    if types:
        found |= np.fromiter(
            (name in types for name in table.transaction_type.tolist()), np.bool_, len(table)
        )
    return found


def fit_spec(
    table: TransactionTable,
    rows: npt.NDArray[np.bool_],
    entities: tuple[EntityProfile, ...] = (),
    refund_types: tuple[str, ...] = REFUND_TYPES,
) -> FeatureSpec:
    """Return the spec for a table, with the categories of the given rows only.

    Raises
    ------
    DataError
        Additional columns would make two features of one name.

    Parameters
    ----------
    rows : bool[n]
        The training rows. A value that occurs only in other rows gets the code of unseen values.
    entities
        Entity profiles whose features the spec has too.
    refund_types
        Transaction types that are refunds.
    """
    chosen = np.flatnonzero(rows & table.valid)
    numeric = tuple(sorted(name for name, column in table.attributes.items() if column.dtype != np.object_))
    categorical = tuple(sorted(set(table.attributes) - set(numeric)))
    columns = {column: getattr(table, column) for column in CATEGORY_COLUMNS}
    columns |= {name: table.attributes[name] for name in categorical}
    categories = {name: _by_frequency(column[chosen]) for name, column in columns.items()}
    try:
        return FeatureSpec(categories, numeric, categorical, entities, refund_types)
    except ValueError as error:
        raise DataError(f"the columns cannot be combined into features: {error}") from error


def build_features(
    table: TransactionTable,
    spec: FeatureSpec,
    *,
    allowed_lateness_ms: int,
    user_ttl_ms: int = 0,
    progress: Callable[[int], None] | None = None,
) -> FeatureTable:
    """Return every row's features, as a worker would have computed them on arrival.

    Parameters
    ----------
    table
        Rows in the order in which they arrived.
    allowed_lateness_ms
        As the worker's ``history.allowed_lateness_days``; of profiles too.
    user_ttl_ms
        As the worker's ``history.user_ttl_days``; 0 for no limit.
    progress
        Called with the number of events done since its last call.
    """
    count = len(table)
    builder = VectorBuilder(spec)
    matrix = builder.empty(count)
    outcome = np.full(count, REJECTED, np.uint8)
    rows = np.flatnonzero(table.valid)
    refunds = refund_rows(table, spec)
    names = table.user_id
    if refunds.any():
        names = names.copy()
        names[refunds] = [history_name(name, refund=True) for name in names[refunds].tolist()]
    starts, order = by_entity(names, rows)
    merchant = np.zeros(count, np.int64)
    if table.merchant_id is not None:
        merchants = table.merchant_id.tolist()
        distinct = list(dict.fromkeys(merchants))
        known = dict(zip(distinct, hash_ids(distinct).tolist(), strict=True))
        merchant = np.fromiter(map(known.__getitem__, merchants), np.int64, count)
    id_hash = hash_ids(table.transaction_id.tolist())
    amounts = np.abs(table.amount_minor)
    config = HistoryConfig(allowed_lateness_ms, user_ttl_ms)
    history = builder.history(matrix)
    for begin, end in _blocks(starts):
        part = starts[begin : end + 1]
        segments = int(np.diff(part).max()) // (CHUNK * SEGMENT) + 1
        run_users(
            part, order, table.event_time_ms, amounts, merchant, id_hash, table.minor_units,
            config.horizon_ms, config.lateness_ms, config.ttl_ms, config.max_chunks, outcome, history,
            new_sealed(segments * SEGMENT, segments * SEGMENT),
        )  # fmt: skip
        if progress is not None:
            progress(int(part[-1] - part[0]))
    builder.fill(_columns(table, spec), matrix)
    to_usual: npt.NDArray[np.float64] | None = None
    for index, profile in enumerate(spec.entities):
        filled = builder.entities(matrix, index)
        fill_entity(table, profile, (outcome == SCORED) & ~refunds, allowed_lateness_ms, filled, to_usual)
        if profile.entity == "user" and profile.usual_days is not None:
            to_usual = filled[:, -1].copy()
    matrix[outcome >= DUPLICATE] = np.nan
    return FeatureTable(outcome, matrix)


def fill_entity(
    table: TransactionTable,
    profile: EntityProfile,
    scored: npt.NDArray[np.bool_],
    allowed_lateness_ms: int,
    out: npt.NDArray[np.float64],
    to_usual: npt.NDArray[np.float64] | None,
) -> None:
    """Write a profile's features of the rows that a worker would have scored.

    Parameters
    ----------
    scored : bool[n], out : float64[n, len(profile.names)], to_usual : float64[n] or None
        See :func:`stream.features.profiles.offline.fill_profile`.
    """
    names = getattr(table, ENTITIES[profile.entity])
    if names is None:
        return
    starts, order = by_entity(names, np.flatnonzero(scored))
    labels = table.labels()
    fill_profile(
        profile,
        starts=starts,
        order=order,
        time_ms=table.event_time_ms,
        amount_minor=table.amount_minor,
        minor_units=np.maximum(table.minor_units, 1),
        user=numbered(table.user_id.tolist()),
        labels=(labels.row, labels.is_fraud.astype(np.int64), labels.time_ms),
        allowed_lateness_ms=allowed_lateness_ms,
        out=out,
        to_usual=to_usual,
    )


def _columns(table: TransactionTable, spec: FeatureSpec) -> Columns:
    return Columns(
        time_ms=table.event_time_ms,
        amount_minor=table.amount_minor,
        minor_units=np.maximum(table.minor_units, 1),  # rejected rows hold zeros
        pre_balance_minor=table.pre_balance_minor,
        post_balance_minor=table.post_balance_minor,
        categories={column: getattr(table, column).tolist() for column in CATEGORY_COLUMNS},
        numeric_attributes={name: table.attributes[name] for name in spec.numeric_attributes},
        categorical_attributes={
            name: table.attributes[name].tolist() for name in spec.categorical_attributes
        },
    )


def _by_frequency(values: npt.NDArray[np.object_]) -> tuple[str, ...]:
    counts = Counter(value for value in values.tolist() if value is not None)
    return tuple(sorted(counts, key=lambda value: (-counts[value], value)))


def by_entity(
    names: npt.NDArray[np.object_], rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return rows that name an entity, entity by entity and in their order.

    int64[entities + 1] and int64[m]: the rows of entity e are ``order[starts[e]:starts[e + 1]]``.
    """
    known = rows[np.array([name is not None for name in names[rows].tolist()], np.bool_)]
    entity_of = numbered(names[known].tolist())
    starts = np.concatenate([[0], np.cumsum(np.bincount(entity_of))]).astype(np.int64)
    return starts, known[np.argsort(entity_of, kind="stable")]


def numbered(values: list[str]) -> npt.NDArray[np.int64]:
    """Return for each value the index of its first occurrence among the distinct values: int64[n]."""
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), np.int64, len(values))


def _blocks(starts: npt.NDArray[np.int64]) -> Iterable[tuple[int, int]]:
    """Yield ranges of users that hold about ``_BLOCK`` events together."""
    begin = 0
    users = len(starts) - 1
    while begin < users:
        end = max(begin + 1, int(np.searchsorted(starts, starts[begin] + _BLOCK)))
        yield begin, min(end, users)
        begin = min(end, users)
