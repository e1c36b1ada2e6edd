"""Columns of a CSV or Parquet file, converted as a whole to the arrays of a :class:`TransactionTable`.

A whole column is converted at once; only cells that this cannot convert are checked one by one. A cell that
makes no valid transaction is reported by row, column and reason, and its row is kept as invalid.

Money in binary floating point is read as the shortest decimal with the same float (``repr``), rounded half to
even to the currency's decimals. Money as text or decimal is exact and is not rounded: more decimals than the
currency has make the row invalid, as on the topic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream.errors import DataError, InvalidRecordError
from stream.events.decode import field_check
from stream.events.fields import MAX_AMOUNT_MINOR, MS_PER_DAY, parse_event_time

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from stream.events.mapping import TimeFormat

__all__ = [
    "Problems",
    "distinct",
    "looks_numeric",
    "read_category",
    "read_money",
    "read_number",
    "read_text",
    "read_time",
]


_MAX_TIME_MS: Final = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z

#: Texts whose value times 10,000 (the most decimals of a currency) fits an int64.
_FAST_DECIMAL: Final = r"^-?[0-9]{1,14}(\.[0-9]{1,4})?$"

_FAST_SCALE: Final = 4
_DECIMAL: Final = re.compile(r"-?\d{1,20}(\.\d{1,20})?", re.ASCII).fullmatch
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII).fullmatch
_CHECK_ATTRIBUTES: Final = field_check("attributes")
_UNIT_MS: Final = {"ms": 1, "seconds": 1_000, "days": MS_PER_DAY}


@dataclass(slots=True)
class Problems:
    """The cells that make no valid transaction; the first of a row is kept."""

    file: str
    by_row: dict[int, InvalidRecordError] = field(default_factory=dict)

    def add(self, row: int, field_name: str, column: str, reason: str) -> None:
        """Record that the cell of 0-based ``row`` in ``column`` cannot be ``field_name``."""
        if row not in self.by_row:
            text = f"{reason} (row {row + 1}, column {column})"
            self.by_row[row] = InvalidRecordError(field_name, text)

    def add_all(self, rows: npt.NDArray[np.bool_], field_name: str, column: str, reason: str) -> None:
        """Record the same reason for every row of a mask."""
        for row in np.flatnonzero(rows).tolist():
            self.add(row, field_name, column, reason)


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return any column as texts; whole numbers in a float column lose their ``.0``."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        whole = pc.all(pc.equal(pc.floor(column), column)).as_py()
        if whole is not False and (pc.max(pc.abs(column)).as_py() or 0) < 2**53:
            column = column.cast(pa.int64(), safe=False)
    return column.cast(pa.string())


def distinct(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the distinct texts of a column and each row's index in them; -1 for null or empty."""
    encoded = _as_text(column).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    values: list[str] = encoded.dictionary.to_pylist()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    if "" in values:
        codes[codes == values.index("")] = -1
    return values, codes


def read_text(
    column: pa.ChunkedArray,
    field_name: str,
    column_name: str,
    problems: Problems,
    *,
    check: Callable[[str], str | None],
    required: bool,
) -> npt.NDArray[np.object_]:
    """Return a column of texts, shape ``(n,)``, with None (or ``""`` if ``required``) for an empty cell.

    ``check`` is called once for each distinct text and returns why it is wrong, or None.
    """
    values, codes = distinct(column)
    if required:
        problems.add_all(codes < 0, field_name, column_name, "is required")
    for code, value in enumerate(values):
        reason = check(value) if value else None
        if reason is not None:
            problems.add_all(codes == code, field_name, column_name, f"{reason}, not {value[:40]!r}")
    lookup = np.empty(len(values) + 1, dtype=np.object_)
    lookup[:-1] = values
    lookup[-1] = "" if required else None
    return lookup[codes]


def read_category(
    column: pa.ChunkedArray, name: str, column_name: str, problems: Problems
) -> npt.NDArray[np.object_]:
    """Return a column of texts that becomes an attribute; None where missing."""

    def check(value: str) -> str | None:
        return _CHECK_ATTRIBUTES({name: value})

    return read_text(column, f"attributes.{name}", column_name, problems, check=check, required=False)


def read_number(
    column: pa.ChunkedArray, name: str, column_name: str, problems: Problems
) -> npt.NDArray[np.float64]:
    """Return a column of numbers that becomes an attribute; NaN where missing."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        values, codes = distinct(column)
        numbers = np.full(len(values) + 1, np.nan)
        for code, value in enumerate(values):
            if value and _NUMBER(value):
                numbers[code] = float(value)
            elif value:
                problems.add_all(
                    codes == code, f"attributes.{name}", column_name, f"must be a number, not {value[:40]!r}"
                )
        result = numbers[codes]
    else:
        try:
            # A null becomes NaN, and NaN is how a Parquet file of floats writes a missing number.
            result = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
        except pa.ArrowInvalid as error:
            raise DataError(f"{problems.file}: column {column_name} is not numeric: {error}") from error
        except pa.ArrowNotImplementedError as error:
            raise DataError(f"{problems.file}: column {column_name} is not numeric") from error
    problems.add_all(np.isinf(result), f"attributes.{name}", column_name, "must be finite")
    return result


def read_money(
    column: pa.ChunkedArray,
    field_name: str,
    column_name: str,
    problems: Problems,
    *,
    minor_units: npt.NDArray[np.int64],
    missing: int | None,
) -> npt.NDArray[np.int64]:
    """Return amounts in minor units, shape ``(n,)``.

    ``minor_units`` (shape ``(n,)``) are the minor units per major unit of each row's currency; ``missing``
    stands for an empty cell, and is None if a value is required.
    """
    rows = len(column)
    empty = pc.is_null(column, nan_is_null=True).to_numpy().astype(np.bool_)
    minor = np.zeros(rows, dtype=np.int64)
    if pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).to_numpy().astype(np.float64)
        values = np.where(empty, 0.0, values)
        with np.errstate(over="ignore", invalid="ignore"):
            nearest = np.rint(values * minor_units)
            # If the nearest whole minor amount divides back to the same float, repr prints that amount.
            done = (np.abs(nearest) <= MAX_AMOUNT_MINOR) & (nearest / minor_units == values)
        minor[done] = nearest[done].astype(np.int64)
        rest = np.flatnonzero(~done & ~empty)
        texts = [repr(value) for value in values[rest].tolist()]
        exact = False
    else:
        text = _as_text(column)
        blank = pc.fill_null(pc.equal(text, ""), fill_value=True).to_numpy().astype(np.bool_)
        empty |= blank
        fast = pc.fill_null(pc.match_substring_regex(text, _FAST_DECIMAL), fill_value=False)
        mask = fast.to_numpy().astype(np.bool_)
        unscaled = pc.if_else(fast, text, "0").cast(pa.decimal128(38, _FAST_SCALE)).combine_chunks()
        scaled = _low_words(unscaled)
        step = 10**_FAST_SCALE // minor_units
        done = mask & (scaled % step == 0) & (np.abs(scaled) <= MAX_AMOUNT_MINOR * step.astype(np.float64))
        minor[done] = (scaled // step)[done]
        rest = np.flatnonzero(~done & ~empty)
        texts = text.take(pa.array(rest)).to_pylist()
        exact = True
    for row, value in zip(rest.tolist(), texts, strict=True):
        amount, reason = _slow_money(value, int(minor_units[row]), exact=exact)
        if reason is not None:
            problems.add(row, field_name, column_name, f"{reason}, not {value[:40]!r}")
        minor[row] = amount
    if missing is None:
        problems.add_all(empty, field_name, column_name, "is required")
    else:
        minor[empty] = missing
    return minor


def _low_words(decimals: pa.Array) -> npt.NDArray[np.int64]:
    """Return the unscaled values of a decimal128 array that are known to fit an int64."""
    if isinstance(decimals, pa.ChunkedArray):
        decimals = pa.concat_arrays(decimals.chunks) if decimals.num_chunks else pa.array([], decimals.type)
    words = np.frombuffer(decimals.buffers()[1] or b"", dtype="<i8")
    return words[2 * decimals.offset : 2 * (decimals.offset + len(decimals)) : 2].astype(np.int64)


def _slow_money(text: str, minor_units: int, *, exact: bool) -> tuple[int, str | None]:
    if exact and _DECIMAL(text) is None:
        return 0, "must be a plain decimal number such as 12.34"
    value = Decimal(text)
    if not value.is_finite() or abs(value) * minor_units > MAX_AMOUNT_MINOR:
        return 0, "must be finite and within 1e15 minor units"
    scaled = value * minor_units
    minor = int(scaled.to_integral_value(ROUND_HALF_EVEN))
    if exact and minor != scaled:
        return 0, "has more decimals than the currency allows"
    return minor, None


def read_time(
    column: pa.ChunkedArray,
    field_name: str,
    column_name: str,
    problems: Problems,
    *,
    how: TimeFormat,
    missing: int | None = None,
) -> npt.NDArray[np.int64]:
    """Return times in milliseconds since the epoch, UTC, shape ``(n,)``; fractions are cut off.

    Raises
    ------
    DataError
        The times carry no offset and no zone is declared.
    """
    zone_error = DataError(
        f"{problems.file}: column {column_name} has times without an offset; "
        "declare their zone in the mapping"
    )
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("ms"))
        kind = column.type
    empty = pc.is_null(column).to_numpy().astype(np.bool_)
    if pa.types.is_timestamp(kind):
        times = _read_timestamps(column, how, zone_error)
    elif how.format in ("epoch_s", "epoch_ms", "offset") or not pa.types.is_string(kind):
        times = _read_counts(column, field_name, column_name, problems, how)
    else:
        empty |= pc.fill_null(pc.equal(column, ""), fill_value=True).to_numpy().astype(np.bool_)
        times = _read_time_texts(column, field_name, column_name, problems, how=how, zone_error=zone_error)
    if missing is None:
        problems.add_all(empty, field_name, column_name, "is required")
        outside = ~empty & ((times < 0) | (times > _MAX_TIME_MS))
        problems.add_all(outside, field_name, column_name, "must lie in the years 1970 to 9999")
        times[outside | empty] = 0
    else:
        times[empty] = missing
    return times


def _to_milliseconds(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    column = column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False)
    numbers: npt.NDArray[np.int64] = (
        pc.fill_null(column.cast(pa.int64()), fill_value=0).to_numpy().astype(np.int64)
    )
    return numbers.copy()


def _read_timestamps(
    column: pa.ChunkedArray, how: TimeFormat, zone_error: DataError
) -> npt.NDArray[np.int64]:
    if column.type.tz is None:
        if how.zone is None:
            raise zone_error
        # An hour that the clocks skip or repeat: the earlier reading, as Python's fold=0 takes it.
        column = pc.assume_timezone(column, how.zone, ambiguous="earliest", nonexistent="earliest")
    return _to_milliseconds(column)


def _read_counts(
    column: pa.ChunkedArray, field_name: str, column_name: str, problems: Problems, how: TimeFormat
) -> npt.NDArray[np.int64]:
    """Return times counted from an origin: the epoch, or the mapping's."""
    origin = 0 if how.origin is None else parse_event_time(how.origin)
    unit = {"epoch_s": 1_000, "offset": _UNIT_MS[how.unit or "ms"]}.get(how.format, 1)
    if pa.types.is_integer(column.type):
        counts = pc.fill_null(column.cast(pa.int64()), fill_value=0).to_numpy().astype(np.int64)
        result: npt.NDArray[np.int64] = np.clip(counts, -(2**53) // unit, 2**53 // unit) * unit + origin
        return result
    own = Problems(problems.file)
    numbers = read_number(column, "", column_name, own)
    for row, error in own.by_row.items():
        problems.add(row, field_name, column_name, error.reason.split(" (row ", 1)[0])
    numbers = np.nan_to_num(numbers, posinf=0.0, neginf=0.0)
    # Rounded to the microsecond before the cut, or 0.001 s could become 0 ms.
    return np.floor(np.round(np.clip(numbers * unit, -(2.0**53), 2.0**53), 3)).astype(np.int64) + origin


def _read_time_texts(
    column: pa.ChunkedArray,
    field_name: str,
    column_name: str,
    problems: Problems,
    *,
    how: TimeFormat,
    zone_error: DataError,
) -> npt.NDArray[np.int64]:
    if how.format == "iso":
        for offset in ("UTC", None):
            try:
                moments = column.cast(pa.timestamp("us", tz=offset))
            except pa.ArrowInvalid:
                continue
            return _read_timestamps(moments, how, zone_error)
    values, codes = distinct(column)
    zone = None if how.zone is None else ZoneInfo(how.zone)
    times = np.zeros(len(values) + 1, dtype=np.int64)
    for code, value in enumerate(values):
        if not value:
            continue
        try:
            if how.format == "iso":
                moment = datetime.fromisoformat(value)
            else:
                moment = datetime.strptime(value, how.format)  # noqa: DTZ007
        except ValueError:
            shape = "ISO 8601" if how.format == "iso" else how.format
            problems.add_all(
                codes == code, field_name, column_name, f"is not a time of the form {shape}: {value[:40]!r}"
            )
            continue
        if moment.tzinfo is None:
            if zone is None:
                raise zone_error
            moment = moment.replace(tzinfo=zone)
        elapsed = moment - datetime(1970, 1, 1, tzinfo=UTC)
        times[code] = (elapsed.days * 86_400 + elapsed.seconds) * 1_000 + elapsed.microseconds // 1_000
    result: npt.NDArray[np.int64] = times[codes]
    return result


def looks_numeric(column: pa.ChunkedArray) -> bool:
    """Return whether every cell that is not empty is a number."""
    kind: Any = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        return all(_NUMBER(value) is not None for value in distinct(column)[0] if value)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
