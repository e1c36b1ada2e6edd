"""JSON lines of transactions: the very records of the topic, decoded by the same code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from offline.data.labels import read_labels
from offline.data.table import TransactionTable
from stream.errors import DataError, InvalidRecordError
from stream.events.decode import decode_transaction
from stream.events.fields import parse_event_time
from stream.features.spec import MISSING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from stream.events.models import Transaction

__all__ = ["read_json_lines"]


_OPTIONAL_TEXTS: Final = ("merchant_id", "card_id", "device_id", "ip", "country")


def read_json_lines(path: Path) -> TransactionTable:
    """Return the transactions of a file with one a line, in the file's order; empty lines are skipped.

    Labels in its lines arrived before those of the file beside it, see :meth:`.TransactionTable.with_labels`.

    Raises
    ------
    DataError
        A label is invalid, or the file cannot be read.
    """
    transactions: list[Transaction | None] = []
    invalid: dict[int, InvalidRecordError] = {}
    labels: dict[int, tuple[int, int | None]] = {}
    ids: dict[int, str] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            raw = line.strip()
            if not raw:
                continue
            row = len(transactions)
            try:
                transaction, _ = decode_transaction(raw)
            except InvalidRecordError as error:
                transactions.append(None)
                invalid[row] = InvalidRecordError(error.field, f"{error.reason} (line {number})")
                ids[row] = _id_of(raw)
                continue
            transactions.append(transaction)
            if b'"is_fraud"' in raw:
                labels[row] = _inline_label(path, number, orjson.loads(raw))
    beside = path.with_name(f"{path.name.removesuffix(path.suffix)}.labels{path.suffix}")
    table = _from_transactions(transactions, invalid, labels)
    for row, name in ids.items():
        table.transaction_id[row] = name
    return table.with_labels(read_labels(beside, table)[0]) if beside.is_file() else table


def _id_of(raw: bytes) -> str:
    """Return an invalid line's transaction id, so that a report can name it; empty where it has none."""
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""
    name = record.get("transaction_id") if isinstance(record, dict) else None
    return name if isinstance(name, str) else ""


def _inline_label(path: Path, number: int, record: dict[str, Any]) -> tuple[int, int | None]:
    value = record.get("is_fraud")
    if value is None:
        return -1, None
    if value not in (0, 1):  # True and False are 1 and 0
        raise DataError(f"{path}: line {number}, is_fraud: must be true, false or null, not {value!r}")
    time = record.get("label_time")
    try:
        return int(value), None if time is None else parse_event_time(time)
    except ValueError as error:
        raise DataError(f"{path}: line {number}, label_time: {error}") from error


def _from_transactions(
    transactions: Sequence[Transaction | None],
    invalid: dict[int, InvalidRecordError],
    labels: dict[int, tuple[int, int | None]],
) -> TransactionTable:
    rows = len(transactions)

    def texts(name: str, missing: str | None) -> npt.NDArray[np.object_]:
        column = np.empty(rows, dtype=np.object_)
        column[:] = [missing if item is None else getattr(item, name) for item in transactions]
        return column

    def integers(name: str, missing: int) -> npt.NDArray[np.int64]:
        values = (missing if item is None else getattr(item, name) for item in transactions)
        return np.fromiter((missing if value is None else value for value in values), np.int64, rows)

    optional = {name: texts(name, None) for name in _OPTIONAL_TEXTS}
    known: dict[str, Any] = {
        name: column if any(value is not None for value in column) else None
        for name, column in optional.items()
    }
    times = integers("event_time_ms", 0)
    is_fraud = label_times = None
    if labels:
        is_fraud = np.full(rows, -1, dtype=np.int8)
        if any(time is not None for _, time in labels.values()):
            label_times = times.copy()
        for row, (value, time) in labels.items():
            is_fraud[row] = value
            if label_times is not None and time is not None:
                label_times[row] = time
    return TransactionTable(
        transaction_id=texts("transaction_id", ""),
        user_id=texts("user_id", ""),
        channel=texts("channel", ""),
        transaction_type=texts("transaction_type", ""),
        currency=texts("currency", ""),
        event_time_ms=times,
        amount_minor=integers("amount_minor", 0),
        minor_units=integers("minor_units", 1),
        pre_balance_minor=integers("pre_balance_minor", MISSING),
        post_balance_minor=integers("post_balance_minor", MISSING),
        **known,
        attributes=_attribute_columns(transactions),
        is_fraud=is_fraud,
        label_time_ms=label_times,
        invalid=invalid,
    )


def _attribute_columns(transactions: Sequence[Transaction | None]) -> dict[str, npt.NDArray[Any]]:
    """Return a column for each member of ``attributes``; a member that is ever a text is a text column."""
    members = [None if item is None else item.attributes for item in transactions]
    textual: dict[str, bool] = {}
    for each in members:
        for name, value in (each or {}).items():
            textual[name] = textual.get(name, False) or isinstance(value, str)
    columns: dict[str, npt.NDArray[Any]] = {}
    for name, text in textual.items():
        values = [None if each is None else each.get(name) for each in members]
        if text:
            column = np.empty(len(values), dtype=np.object_)
            column[:] = [value if isinstance(value, str) else None for value in values]
        else:
            column = np.array(
                [np.nan if value is None else float(value) for value in values], dtype=np.float64
            )
        columns[name] = column
    return columns
