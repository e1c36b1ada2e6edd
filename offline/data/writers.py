"""Tables of transactions written to files: JSON lines, CSV and Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from offline.data.table import TransactionTable, format_minor
from stream.errors import ConfigError, DataError
from stream.features.spec import MISSING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["check_output", "to_arrow", "write_table"]


_TEXTS: Final = (
    "channel",
    "transaction_type",
    "merchant_id",
    "card_id",
    "device_id",
    "ip",
    "country",
)

_JSON_CHUNK_ROWS: Final = 50_000


def check_output(path: Path) -> None:
    """Refuse a path that :func:`write_table` cannot write, before the work is done.

    Raises
    ------
    ConfigError
        Its ending is none of ``.jsonl``, ``.csv`` and ``.parquet``.
    """
    if path.suffix.lower() not in (".jsonl", ".csv", ".parquet"):
        raise ConfigError(f"output {path}: name a .jsonl, .csv or .parquet file")


def write_table(
    table: TransactionTable, path: Path, *, progress: Callable[[int], None] | None = None
) -> None:
    """Write a table as ``.jsonl``, ``.csv`` or ``.parquet``, by the path's ending; invalid rows are left out.

    Columns are the fields of a Transaction, then ``is_fraud`` and ``label_time``, of several labels the last
    one's. Amounts are exact decimals and times are exact to the millisecond in all three formats.
    ``progress`` is called with the number of rows written since its last call.

    Raises
    ------
    ConfigError
        The ending is unknown.
    DataError
        The file cannot be written.
    """
    check_output(path)
    suffix = path.suffix.lower()
    if table.invalid:
        table = table.take(table.valid)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".jsonl":
            _write_json_lines(table, path, progress or (lambda _: None))
            return
        if suffix == ".csv":
            pa_csv.write_csv(to_arrow(table, as_text=True), path)
        else:
            pa_parquet.write_table(to_arrow(table), path, compression="zstd")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error
    if progress is not None:
        progress(len(table))


def to_arrow(table: TransactionTable, *, as_text: bool = False) -> pa.Table:
    """Return a table's columns for Arrow: amounts as decimals and times as timestamps in UTC, or texts."""

    def money(minor: npt.NDArray[np.int64]) -> pa.Array:
        values = zip(minor.tolist(), table.minor_units.tolist(), strict=True)
        texts = pa.array(
            [None if value == MISSING else format_minor(value, units) for value, units in values], pa.string()
        )
        # A column has one type: that of the currency with the most decimals.
        decimals = len(str(int(table.minor_units.max(initial=1)))) - 1
        return texts if as_text else texts.cast(pa.decimal128(20, decimals))

    def times(milliseconds: npt.NDArray[np.int64]) -> pa.Array:
        moments = milliseconds.astype("datetime64[ms]")
        if as_text:
            return pa.array(np.char.add(np.datetime_as_string(moments), "Z"))
        return pa.array(moments).cast(pa.timestamp("ms", tz="UTC"))

    columns: dict[str, pa.Array] = {
        "transaction_id": pa.array(table.transaction_id, pa.string()),
        "user_id": pa.array(table.user_id, pa.string()),
        "event_time": times(table.event_time_ms),
        "amount": money(table.amount_minor),
        "currency": pa.array(table.currency, pa.string()),
        "pre_balance": money(table.pre_balance_minor),
        "post_balance": money(table.post_balance_minor),
    }
    for name in _TEXTS:
        column = getattr(table, name)
        if column is not None:
            columns[name] = pa.array(column, pa.string())
    for name, column in table.attributes.items():
        kind = pa.string() if column.dtype == np.object_ else pa.float64()
        columns[f"attributes.{name}"] = pa.array(column, kind, from_pandas=True)
    if table.is_fraud is not None:
        columns["is_fraud"] = pa.array(table.is_fraud, pa.int8(), mask=table.is_fraud < 0)
    if table.label_time_ms is not None:
        columns["label_time"] = times(table.label_time_ms)
    return pa.table(columns)


def _write_json_lines(table: TransactionTable, path: Path, progress: Callable[[int], None]) -> None:
    """Write the very records of the topic; the labels are two further members, which the stream ignores."""
    with path.open("wb") as file:
        for start in range(0, len(table), _JSON_CHUNK_ROWS):
            part = table.slice(start, start + _JSON_CHUNK_ROWS)
            file.writelines(_labelled_lines(part))
            progress(len(part))


def _labelled_lines(table: TransactionTable) -> list[bytes]:
    records = (value for _, value in table.to_records())
    if table.is_fraud is None:
        return [value + b"\n" for value in records]
    times = None
    if table.label_time_ms is not None:
        times = np.datetime_as_string(table.label_time_ms.astype("datetime64[ms]")).tolist()
    lines = []
    for row, (value, fraud) in enumerate(zip(records, table.is_fraud.tolist(), strict=True)):
        label: dict[str, object] = {} if fraud < 0 else {"is_fraud": bool(fraud)}
        if label and times is not None:
            label["label_time"] = times[row] + "Z"
        # Both are objects: the second object's members follow the first's.
        lines.append(value[:-1] + b"," + orjson.dumps(label)[1:] + b"\n" if label else value + b"\n")
    return lines
