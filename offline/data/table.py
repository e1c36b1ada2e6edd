"""A file of transactions in memory: columns in arrival order, exact like the events on the bus."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from stream.features.spec import MISSING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from stream.errors import InvalidRecordError

__all__ = ["Labels", "TransactionTable", "format_minor"]


#: Rows turned into Python objects at a time by :meth:`TransactionTable.to_records`.
_CHUNK_ROWS: Final = 8_192

_REQUIRED_TEXTS: Final = ("transaction_id", "user_id", "channel", "transaction_type", "currency")
_OPTIONAL_TEXTS: Final = ("merchant_id", "card_id", "device_id", "ip", "country")
_INTEGERS: Final = ("event_time_ms", "amount_minor", "minor_units", "pre_balance_minor", "post_balance_minor")


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of a table's rows, ``k`` of them in the order in which they arrived, any number of a row.

    Attributes
    ----------
    row:
        int64[k], the row of the transaction.
    is_fraud:
        int8[k], 1 fraud, 0 legitimate.
    time_ms:
        int64[k], when the label becomes known.
    """

    row: npt.NDArray[np.int64]
    is_fraud: npt.NDArray[np.int8]
    time_ms: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)

    def then(self, later: Labels) -> Labels:
        """Return these labels and those that arrived after them."""
        return Labels(
            np.concatenate([self.row, later.row]),
            np.concatenate([self.is_fraud, later.is_fraud]),
            np.concatenate([self.time_ms, later.time_ms]),
        )

    def only(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Labels:
        """Return the labels that a mask of shape ``(k,)`` or an array of indexes selects, in order."""
        return Labels(self.row[chosen], self.is_fraud[chosen], self.time_ms[chosen])

    def of(self, rows: npt.NDArray[np.int64], count: int) -> Labels:
        """Return the labels of chosen rows among ``count``, by their indexes in the choice."""
        by_row = np.argsort(self.row, kind="stable")
        each = np.bincount(self.row, minlength=count)
        first = np.cumsum(each) - each
        wanted = each[rows]
        within = np.arange(wanted.sum()) - np.repeat(np.cumsum(wanted) - wanted, wanted)
        chosen = by_row[np.repeat(first[rows], wanted) + within]
        return Labels(np.repeat(np.arange(len(rows)), wanted), self.is_fraud[chosen], self.time_ms[chosen])


@dataclass(frozen=True, slots=True)
class TransactionTable:
    """Transactions of a file, ``n`` rows in arrival order; every array has the shape ``(n,)``.

    Attributes
    ----------
    transaction_id, user_id, channel, transaction_type, currency:
        Object arrays of texts.
    event_time_ms:
        int64, milliseconds since the epoch, UTC.
    amount_minor, pre_balance_minor, post_balance_minor:
        int64, in the currency's minor unit; an unknown balance is ``MISSING``.
    minor_units:
        int64, minor units per major unit of the row's currency: 100 for EUR.
    merchant_id, card_id, device_id, ip, country:
        Object arrays of texts with None for an unknown value, or None if no row has one.
    attributes:
        Additional columns by name: float64 with NaN, or object arrays of texts with None, for missing values.
    is_fraud:
        int8, 1 fraud, 0 legitimate, -1 unknown; None if the file has no labels. Of several labels of a row
        the last one, by its time and at the same time by its arrival.
    label_time_ms:
        int64, when that label becomes known; None if the file does not have it.
    label_history:
        Every label, including the last ones, if a row has several; None if no row has.
    invalid:
        By row, why it makes no valid transaction. Such a row is kept, with zeros and empty texts except for
        its id, and every feature computation rejects it; it never disappears silently.
    """

    transaction_id: npt.NDArray[np.object_]
    user_id: npt.NDArray[np.object_]
    channel: npt.NDArray[np.object_]
    transaction_type: npt.NDArray[np.object_]
    currency: npt.NDArray[np.object_]
    event_time_ms: npt.NDArray[np.int64]
    amount_minor: npt.NDArray[np.int64]
    minor_units: npt.NDArray[np.int64]
    pre_balance_minor: npt.NDArray[np.int64]
    post_balance_minor: npt.NDArray[np.int64]
    merchant_id: npt.NDArray[np.object_] | None = None
    card_id: npt.NDArray[np.object_] | None = None
    device_id: npt.NDArray[np.object_] | None = None
    ip: npt.NDArray[np.object_] | None = None
    country: npt.NDArray[np.object_] | None = None
    attributes: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    is_fraud: npt.NDArray[np.int8] | None = None
    label_time_ms: npt.NDArray[np.int64] | None = None
    label_history: Labels | None = None
    invalid: dict[int, InvalidRecordError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = len(self.transaction_id)
        for name, column in self._columns():
            if column.shape != (rows,):
                msg = f"column {name} has the shape {column.shape}, not ({rows},)"
                raise ValueError(msg)

    def __len__(self) -> int:
        return len(self.transaction_id)

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Shape ``(n,)``: which rows make a valid transaction."""
        mask = np.ones(len(self), dtype=np.bool_)
        if self.invalid:
            mask[list(self.invalid)] = False
        return mask

    def labels(self) -> Labels:
        """Return every label; a label without a time is known with its transaction."""
        if self.label_history is not None:
            return self.label_history
        if self.is_fraud is None:
            nothing = np.zeros(0, np.int64)
            return Labels(nothing, nothing.astype(np.int8), nothing)
        rows = np.flatnonzero(self.is_fraud >= 0)
        times = self.event_time_ms if self.label_time_ms is None else self.label_time_ms
        return Labels(rows, self.is_fraud[rows], times[rows])

    def with_labels(self, later: Labels) -> TransactionTable:
        """Return the table with additional labels, which arrived after those that it has.

        If the table does not have the times of its own labels, an additional label of a row replaces the
        row's label: it does not correct an earlier label, since the row has only the final outcome.
        """
        if not len(later):
            return self
        every = self.labels()
        if self.label_time_ms is None:
            every = every.only(~np.isin(every.row, later.row))
        every = every.then(later)
        is_fraud = np.full(len(self), -1, np.int8) if self.is_fraud is None else self.is_fraud.copy()
        times = (self.event_time_ms if self.label_time_ms is None else self.label_time_ms).copy()
        order = np.lexsort((every.time_ms, every.row))
        last = order[np.append(np.diff(every.row[order]) > 0, True)]
        is_fraud[every.row[last]] = every.is_fraud[last]
        times[every.row[last]] = every.time_ms[last]
        return replace(
            self,
            is_fraud=is_fraud,
            label_time_ms=times,
            label_history=every if len(last) < len(every) else None,
        )

    def take(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64] | Sequence[int]) -> TransactionTable:
        """Return the rows that a mask of shape ``(n,)`` selects, or those of the given indices."""
        chosen = np.asarray(rows)
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                msg = f"the mask has the shape {chosen.shape}, not ({len(self)},)"
                raise ValueError(msg)
            chosen = np.flatnonzero(chosen)
        indices = chosen.astype(np.int64)
        columns: dict[str, Any] = {
            name: column[indices] for name, column in self._columns() if not name.startswith("attributes.")
        }
        columns["attributes"] = {name: column[indices] for name, column in self.attributes.items()}
        indices = np.where(indices < 0, indices + len(self), indices)
        columns["invalid"] = (
            {index: self.invalid[row] for index, row in enumerate(indices.tolist()) if row in self.invalid}
            if self.invalid
            else {}
        )
        if self.label_history is not None:
            columns["label_history"] = self.label_history.of(indices, len(self))
        return TransactionTable(**columns)

    def slice(self, start: int, stop: int) -> TransactionTable:
        """Return the rows from ``start`` up to, not including, ``stop``."""
        return self.take(np.arange(*slice(start, stop).indices(len(self)), dtype=np.int64))

    def to_records(
        self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64] | Sequence[int] | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value of each row as a producer would send it; all rows if ``rows`` is None.

        The key is the user id. The value is the transaction as JSON: amounts as exact decimal texts, times as
        RFC 3339 in UTC, unknown fields left out. Invalid rows have no record and are skipped; the sender
        should report the number of ``invalid`` rows. The table does not keep a ``memo``.
        """
        table = self if rows is None else self.take(rows)
        for start in range(0, len(table), _CHUNK_ROWS):
            yield from table._chunk_records(start, min(start + _CHUNK_ROWS, len(table)))  # noqa: SLF001

    def _columns(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for name in (*_REQUIRED_TEXTS, *_INTEGERS, *_OPTIONAL_TEXTS, "is_fraud", "label_time_ms"):
            column = getattr(self, name)
            if column is not None:
                yield name, column
        for name, column in self.attributes.items():
            yield f"attributes.{name}", column

    def _chunk_records(self, start: int, stop: int) -> Iterator[tuple[bytes, bytes]]:
        part = slice(start, stop)
        times = np.datetime_as_string(self.event_time_ms[part].astype("datetime64[ms]")).tolist()
        units = self.minor_units[part].tolist()
        texts = [(name, getattr(self, name)[part].tolist()) for name in _REQUIRED_TEXTS]
        texts += [
            (name, getattr(self, name)[part].tolist())
            for name in _OPTIONAL_TEXTS
            if getattr(self, name) is not None
        ]
        amounts = self.amount_minor[part].tolist()
        balances = [
            (name, column[part].tolist())
            for name, column in (
                ("pre_balance", self.pre_balance_minor),
                ("post_balance", self.post_balance_minor),
            )
            if (column[part] != MISSING).any()
        ]
        attributes = [
            (name, column[part].tolist(), column.dtype != np.object_)
            for name, column in self.attributes.items()
        ]
        for row in range(stop - start):
            if start + row in self.invalid:
                continue
            value: dict[str, object] = {}
            for name, column in texts:
                text = column[row]
                if text is not None:
                    value[name] = text
            value["event_time"] = times[row] + "Z"
            value["amount"] = format_minor(amounts[row], units[row])
            for name, column in balances:
                if column[row] != MISSING:
                    value[name] = format_minor(column[row], units[row])
            if attributes:
                # NaN is the only value that differs from itself.
                members = {
                    name: column[row]
                    for name, column, numeric in attributes
                    if (column[row] == column[row] if numeric else column[row] is not None)
                }
                if members:
                    value["attributes"] = members
            yield str(value["user_id"]).encode(), orjson.dumps(value)


def format_minor(minor: int, minor_units: int) -> str:
    """Return an amount in minor units as an exact decimal text: ``1234`` of 100 is ``12.34``."""
    if minor_units == 1:
        return str(minor)
    whole, rest = divmod(abs(minor), minor_units)
    sign = "-" if minor < 0 else ""
    return f"{sign}{whole}.{rest:0{len(str(minor_units)) - 1}d}"
