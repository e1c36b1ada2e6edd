"""Files of transactions: JSON lines, CSV and Parquet, read into a table.

JSON lines are the records of the topic and are decoded by the same code. CSV and Parquet columns are named
like the fields of a Transaction, or a mapping names them. In every format the labels ``is_fraud`` and
``label_time`` may be part of the row; JSON lines may also have a file of Label events beside them
(``x.labels.jsonl`` beside ``x.jsonl``), with any number of labels of a transaction.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from offline.data.columns import (
    Problems,
    distinct,
    looks_numeric,
    read_category,
    read_money,
    read_number,
    read_text,
    read_time,
)
from offline.data.json_lines import read_json_lines
from offline.data.mapping import shipped_mapping
from offline.data.table import TransactionTable
from stream.errors import DataError
from stream.events.currencies import MINOR_UNIT_DECIMALS
from stream.events.decode import field_check
from stream.events.fields import MS_PER_DAY
from stream.events.mapping import (
    REQUIRED_FIELDS,
    AttributeColumns,
    ColumnMapping,
    LabelColumns,
    TimeFormat,
    load_mapping,
)
from stream.features.spec import MISSING

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["read_scenarios", "read_transactions"]


_JSON_SUFFIXES: Final = (".jsonl", ".ndjson", ".json")
_PARQUET_SUFFIXES: Final = (".parquet", ".pq")
_ATTRIBUTE_PREFIX: Final = "attributes."
_MONEY: Final = ("pre_balance", "post_balance")
_OPTIONAL_TEXTS: Final = ("merchant_id", "card_id", "device_id", "ip", "country")


def read_transactions(
    path: Path, *, dataset: str | None = None, mapping: Path | None = None
) -> TransactionTable:
    """Return the transactions of a file, in the file's order.

    Parameters
    ----------
    path:
        ``.jsonl``, ``.ndjson`` or ``.json`` (a transaction a line), ``.csv``, ``.parquet`` or ``.pq``.
    dataset:
        A shipped mapping, by name.
    mapping:
        Your own mapping: see :mod:`stream.events.mapping`.

    Raises
    ------
    DataError
        The file cannot be read, a column is missing, a label is invalid, or no row makes a transaction.
        Single rows that make none are in the table's ``invalid``.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    suffix = path.suffix.lower()
    if suffix in _JSON_SUFFIXES:
        if dataset is not None or mapping is not None:
            raise DataError(f"{path}: JSON lines need no mapping; their fields are those of a transaction")
        table = read_json_lines(path)
    elif suffix in (*_PARQUET_SUFFIXES, ".csv"):
        chosen = None
        if dataset is not None:
            chosen = shipped_mapping(dataset)
        elif mapping is not None:
            chosen = load_mapping(mapping)
        table = _read_columns(path, chosen)
    else:
        raise DataError(
            f"{path}: name a .jsonl, .csv or .parquet file, not {suffix or 'a file without an extension'}"
        )
    if len(table) and len(table.invalid) == len(table):
        row, error = next(iter(sorted(table.invalid.items())))
        raise DataError(f"{path}: no row is a valid transaction; the first (row {row + 1}): {error}")
    return table


def read_scenarios(
    path: Path, *, dataset: str | None = None, mapping: Path | None = None
) -> npt.NDArray[np.object_] | None:
    """Return the kind of fraud of each row as a text, for reports: object[n], None where the file has none.

    It is kept apart from the table, so that no feature can be made of it. Parameters and errors are those of
    :func:`read_transactions`; a column that is not in the file is no error, since only reports miss it.
    """
    chosen = shipped_mapping(dataset) if dataset is not None else load_mapping(mapping) if mapping else None
    column = None if chosen is None or chosen.label is None else chosen.label.scenario_column
    if column is None or path.suffix.lower() not in (*_PARQUET_SUFFIXES, ".csv"):
        return None
    parquet = path.suffix.lower() in _PARQUET_SUFFIXES
    if column not in (pa_parquet.read_schema(path).names if parquet else _csv_header(path)):
        return None
    values, codes = distinct(_read_arrow(path, (column,))[column])
    return np.array([*values, None], dtype=np.object_)[codes]


def _read_columns(path: Path, mapping: ColumnMapping | None) -> TransactionTable:
    arrow = _read_arrow(path, None if mapping is None else mapping.used_columns())
    if mapping is None:
        mapping = _plain_mapping(path, arrow)
    return _to_table(path, arrow, mapping)


def _read_arrow(path: Path, wanted: tuple[str, ...] | None) -> pa.Table:
    """Return the requested columns, or all of them."""
    parquet = path.suffix.lower() in _PARQUET_SUFFIXES
    try:
        names = pa_parquet.read_schema(path).names if parquet else _csv_header(path)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"{path}: column {twice[0]} appears more than once")
        for column in wanted or ():
            if column not in names:
                raise DataError(f"{path}: column {column} is missing; the file has {', '.join(names)}")
        if parquet:
            arrow = pa_parquet.read_table(path, columns=None if wanted is None else list(wanted))
        else:
            # Every cell as text: nothing is guessed, so amounts stay exact and identifiers keep their zeros.
            arrow = pa_csv.read_csv(
                path,
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    include_columns=None if wanted is None else list(wanted),
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
    except (pa.ArrowException, OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return _plain_texts(arrow)


def _plain_texts(arrow: pa.Table) -> pa.Table:
    """Return a table with one string type for all texts, whatever program wrote the file."""
    for index, part in enumerate(arrow.schema):
        kind = part.type.value_type if pa.types.is_dictionary(part.type) else part.type
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            kind = pa.string()
        if kind != part.type:
            arrow = arrow.set_column(index, part.name, arrow.column(index).cast(kind))
    return arrow


def _csv_header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), None)
    if not header:
        raise DataError(f"{path} has no header line")
    return header


def _plain_mapping(path: Path, arrow: pa.Table) -> ColumnMapping:
    """Return the mapping of a file with columns named like the fields of a transaction."""
    names: list[str] = arrow.column_names
    for name in REQUIRED_FIELDS:
        if name not in names:
            raise DataError(
                f"{path}: column {name} is missing; the file has {', '.join(names)}. "
                "For other names use --dataset or --mapping"
            )
    fields = (*REQUIRED_FIELDS, *_MONEY, *_OPTIONAL_TEXTS)
    attributes = [name for name in names if name.startswith(_ATTRIBUTE_PREFIX)]
    numeric = [name for name in attributes if looks_numeric(arrow[name])]
    label = None
    if "is_fraud" in names:
        label = LabelColumns(column="is_fraud", time_column="label_time" if "label_time" in names else None)
    return ColumnMapping(
        columns={name: name for name in fields if name in names},  # type: ignore[misc]
        label=label,
        attributes=AttributeColumns(
            numeric={name.removeprefix(_ATTRIBUTE_PREFIX): name for name in numeric},
            categorical={
                name.removeprefix(_ATTRIBUTE_PREFIX): name for name in attributes if name not in numeric
            },
        ),
    )


#: Returns why a text cannot be a field; the order decides which of a row's faults is reported.
_TEXT_CHECKS: Final = {
    name: field_check(name)
    for name in (
        "transaction_id", "user_id", "channel", "transaction_type", "currency", *_OPTIONAL_TEXTS,
    )
}  # fmt: skip


def _to_table(path: Path, arrow: pa.Table, mapping: ColumnMapping) -> TransactionTable:
    rows = arrow.num_rows
    problems = Problems(str(path))
    columns: dict[str, Any] = {}
    for name, check in _TEXT_CHECKS.items():
        required = name in REQUIRED_FIELDS
        if name in mapping.columns:
            source = mapping.columns[name]
            columns[name] = read_text(arrow[source], name, source, problems, check=check, required=required)
        elif name in mapping.constants:
            constant = mapping.constants[name]
            reason = check(constant)
            if reason is not None:
                raise DataError(f"constants.{name}: {reason}, not {constant!r}")
            columns[name] = np.full(rows, constant, dtype=np.object_)
        else:
            columns[name] = None
    units = {code: 10**decimals for code, decimals in MINOR_UNIT_DECIMALS.items()}
    minor_units = np.fromiter((units.get(code, 1) for code in columns["currency"]), np.int64, rows)
    source = mapping.columns["event_time"]
    times = read_time(arrow[source], "event_time", source, problems, how=mapping.time)
    money: dict[str, npt.NDArray[np.int64]] = {}
    for name in ("amount", *_MONEY):
        if name not in mapping.columns:
            money[name] = np.full(rows, MISSING, dtype=np.int64)
            continue
        source = mapping.columns[name]
        missing = None if name == "amount" else MISSING
        money[name] = read_money(
            arrow[source], name, source, problems, minor_units=minor_units, missing=missing
        )
    attributes: dict[str, npt.NDArray[Any]] = {}
    for name, source in mapping.attributes.numeric.items():
        attributes[name] = read_number(arrow[source], name, source, problems)
    for name, source in mapping.attributes.categorical.items():
        attributes[name] = read_category(arrow[source], name, source, problems)
    is_fraud, label_times = _read_labels(path, arrow, mapping, times)
    table = TransactionTable(
        **columns,
        event_time_ms=times,
        amount_minor=money["amount"],
        minor_units=minor_units,
        pre_balance_minor=money["pre_balance"],
        post_balance_minor=money["post_balance"],
        attributes=attributes,
        is_fraud=is_fraud,
        label_time_ms=label_times,
        invalid=dict(sorted(problems.by_row.items())),
    )
    _blank_invalid(table)
    return table


def _blank_invalid(table: TransactionTable) -> None:
    """Put zeros and empty texts into the rows that make no transaction; their ids stay, to name them by."""
    rows = list(table.invalid)
    if not rows:
        return
    table.transaction_id[rows] = [name or "" for name in table.transaction_id[rows]]
    for name in ("user_id", "channel", "transaction_type", "currency"):
        getattr(table, name)[rows] = ""
    for name in _OPTIONAL_TEXTS:
        if getattr(table, name) is not None:
            getattr(table, name)[rows] = None
    for column in (table.event_time_ms, table.amount_minor):
        column[rows] = 0
    for column in (table.pre_balance_minor, table.post_balance_minor):
        column[rows] = MISSING
    table.minor_units[rows] = 1
    for attribute in table.attributes.values():
        attribute[rows] = None if attribute.dtype == np.object_ else np.nan


def _read_labels(
    path: Path, arrow: pa.Table, mapping: ColumnMapping, times: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int8] | None, npt.NDArray[np.int64] | None]:
    label = mapping.label
    if label is None:
        return None, None
    values, codes = distinct(arrow[label.column])
    meaning = {**dict.fromkeys(label.fraud, 1), **dict.fromkeys(label.legitimate, 0)}
    known = np.full(len(values) + 1, -1, dtype=np.int8)
    for code, value in enumerate(values):
        if not value:
            continue
        if value.lower() not in meaning and value not in meaning:
            row = int(np.flatnonzero(codes == code)[0])
            raise DataError(
                f"{path}: row {row + 1}, column {label.column}: {value[:40]!r} is not one of the "
                f"labels {', '.join(meaning)}"
            )
        known[code] = meaning.get(value, meaning.get(value.lower(), -1))
    is_fraud: npt.NDArray[np.int8] = known[codes]
    if label.delay_days is not None:
        return is_fraud, times + round(label.delay_days * MS_PER_DAY)
    if label.time_column is None:
        return is_fraud, None
    # The zone holds for every time of the file; a counted or strptime format is the event time's own.
    how = (
        mapping.time
        if pa.types.is_timestamp(arrow[label.time_column].type)
        else TimeFormat(zone=mapping.time.zone)
    )
    problems = Problems(str(path))
    column = arrow[label.time_column]
    label_times = read_time(column, "label_time", label.time_column, problems, how=how, missing=MISSING)
    for error in problems.by_row.values():
        raise DataError(f"{path}: {error}")
    # A label without a time is known from the event on: there is no other time.
    return is_fraud, np.where(label_times == MISSING, times, label_times)
