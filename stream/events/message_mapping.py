"""Messages of producers with names of their own, made transactions by a mapping.

The mapping is that of files (:mod:`stream.events.mapping`), and the same cells give the same transactions:
what is a column there is a member of the JSON object here, and ``payer.account`` is the member ``account`` of
the object ``payer``. An empty text counts as missing. Members that the mapping does not name are ignored.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import jiter

from stream.errors import ConfigError, InvalidRecordError
from stream.events.decode import TransactionRow, parse_object, row_of_object
from stream.events.fields import MAX_TIME_MS, MS_PER_DAY, parse_event_time

if TYPE_CHECKING:
    from stream.events.mapping import ColumnMapping, TimeFormat

__all__ = ["MessageMapping"]

_MONEY: Final = frozenset({"amount", "pre_balance", "post_balance"})
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII).fullmatch
_UNIT_MS: Final = {"ms": 1, "seconds": 1_000, "days": MS_PER_DAY}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = Decimal("0.001")
_MOST_DIGITS: Final = 40


class MessageMapping:
    """Decodes the records of a topic whose messages have other names than a transaction's.

    Raises
    ------
    ConfigError
        Times are texts, and the mapping has no zone for those without an offset.
    """

    def __init__(self, mapping: ColumnMapping) -> None:
        self._columns: dict[str, str] = {str(name): column for name, column in mapping.columns.items()}
        self._constants: dict[str, str] = {str(name): text for name, text in mapping.constants.items()}
        self._time = mapping.time
        self._numeric = mapping.attributes.numeric
        self._categorical = mapping.attributes.categorical
        self._zone = None if mapping.time.zone is None else ZoneInfo(mapping.time.zone)
        if "%" in mapping.time.format and "%z" not in mapping.time.format and self._zone is None:
            raise ConfigError(f"the mapping's format {mapping.time.format} has no offset: declare the zone")

    def decode(self, raw: bytes | None, max_bytes: int) -> tuple[TransactionRow, int]:
        """Return the row of a record's value, and 0: which members are unknown, a mapping does not say.

        Raises
        ------
        InvalidRecordError
            With the offending field and the reason.
        """
        return row_of_object(self.transaction(parse_object(raw, max_bytes))), 0

    def transaction(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return the object that a producer would send with the names of a transaction.

        Raises
        ------
        InvalidRecordError
            A member is no time, number or text; the reason names it.
        """
        found: dict[str, Any] = dict(self._constants)
        for name, column in self._columns.items():
            value = _member(message, column)
            if value is None:
                continue
            if name == "event_time":
                found[name] = self._time_of(value, column)
            elif name in _MONEY:
                found[name] = value
            else:
                found[name] = _text(value, name, column)
        attributes: dict[str, Any] = {}
        for name, column in self._numeric.items():
            if (value := _member(message, column)) is not None:
                attributes[name] = float(_number(value, "attributes", column))
        for name, column in self._categorical.items():
            if (value := _member(message, column)) is not None:
                attributes[name] = _text(value, "attributes", column)
        if attributes:
            found["attributes"] = attributes
        return found

    def _time_of(self, value: object, column: str) -> int:
        how = self._time
        if how.format in {"epoch_s", "epoch_ms", "offset"}:
            result = _count(_number(value, "event_time", column), how)
        else:
            result = self._moment(_text(value, "event_time", column), column)
        if not 0 <= result <= MAX_TIME_MS:
            raise InvalidRecordError("event_time", _at("must lie in the years 1970 to 9999", column))
        return result

    def _moment(self, text: str, column: str) -> int:
        how = self._time.format
        try:
            moment = datetime.fromisoformat(text) if how == "iso" else datetime.strptime(text, how)  # noqa: DTZ007
        except ValueError as error:
            shape = "ISO 8601" if how == "iso" else how
            raise InvalidRecordError(
                "event_time", _at(f"is not a time of the form {shape}", column)
            ) from error
        if moment.tzinfo is None:
            if self._zone is None:
                raise InvalidRecordError(
                    "event_time", _at("has no offset, and the mapping declares no zone", column)
                )
            moment = moment.replace(tzinfo=self._zone)
        elapsed = moment - _EPOCH
        return (elapsed.days * 86_400 + elapsed.seconds) * 1_000 + elapsed.microseconds // 1_000


def _at(reason: str, column: str) -> str:
    return f"{reason} (member {column})"


def _member(message: dict[str, Any], column: str) -> Any:
    """Return a member of a message, None if it is missing, null or an empty text."""
    value: Any = message.get(column)
    if value is None and column not in message and "." in column:
        value = message
        for part in column.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return None if value == "" else value


def _text(value: object, name: str, column: str) -> str:
    if type(value) is str:
        return value
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int or type(value) is jiter.LosslessFloat:
        return str(value)
    raise InvalidRecordError(name, _at("must be a text or a number", column))


def _number(value: object, name: str, column: str) -> Decimal:
    text = _text(value, name, column)
    if type(value) is bool or len(text) > _MOST_DIGITS or _NUMBER(text) is None:
        raise InvalidRecordError(name, _at("must be a number", column))
    return Decimal(text)


def _count(number: Decimal, how: TimeFormat) -> int:
    """Return a time counted from the epoch or the mapping's origin, cut to milliseconds."""
    unit = {"epoch_s": 1_000, "offset": _UNIT_MS[how.unit or "ms"]}.get(how.format, 1)
    if abs(number) > MAX_TIME_MS:
        return -1
    origin = 0 if how.origin is None else parse_event_time(how.origin)
    # Rounded to the microsecond before the cut, as in files, where 0.001 s is a binary fraction.
    exact = (number * unit).quantize(_MICROSECOND, ROUND_HALF_EVEN)
    return origin + int(exact.to_integral_value(ROUND_FLOOR))
