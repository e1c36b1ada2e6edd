"""Exact money and time: the types of an event's fields, and the parsers of their texts."""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime, timedelta
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, InvalidOperation
from functools import lru_cache
from typing import Annotated, Final

import jiter
from pydantic import BeforeValidator, PlainSerializer, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from stream.events.currencies import MINOR_UNIT_DECIMALS

__all__ = [
    "MAX_AMOUNT_MINOR",
    "MAX_TIME_MS",
    "MS_PER_DAY",
    "Amount",
    "EventTime",
    "EventTimeOut",
    "Identifier",
    "Name",
    "format_event_time",
    "parse_event_time",
]

MS_PER_DAY: Final = 86_400_000

#: Largest amount or balance, in minor units. Sums of squares of such amounts stay exact in 128 bits.
MAX_AMOUNT_MINOR: Final = 10**15

_MAX_ATTRIBUTES: Final = 64
_MIN_TIME_MS: Final = 0
#: The last millisecond that a date of four digits can express.
MAX_TIME_MS: Final = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z
_FIRST_TIME_MS: Final = -62_135_596_800_000  # 0001-01-01T00:00:00.000Z
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:[0-5]\d)", re.ASCII
).fullmatch

#: The default context would round numbers of more than 28 digits without an error.
_EXACT: Final = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)

_DECIMAL: Final = re.compile(r"-?\d{1,20}(\.\d{1,20})?", re.ASCII).fullmatch


def parse_event_time(value: object) -> int:
    """Return an event time as integer milliseconds since the epoch, UTC.

    Accepts an integer (epoch milliseconds) or an RFC 3339 text with an offset; finer fractions of a
    second are cut off.

    Raises
    ------
    PydanticCustomError
        Not such a value, naive, or outside the years 1970 to 9999.
    """
    if type(value) is int:
        milliseconds = value
    elif isinstance(value, str):
        if _RFC3339(value) is None:
            kind = "event_time"
            raise PydanticCustomError(
                kind, "must be RFC 3339 with an offset, such as 2026-01-31T12:00:00.000Z"
            )
        try:
            moment = datetime.fromisoformat(value.upper())
        except ValueError as error:
            raise PydanticCustomError("event_time", "is not a real date and time") from error
        milliseconds = (moment - _EPOCH) // _MILLISECOND
    else:
        raise PydanticCustomError("event_time", "must be an RFC 3339 text or integer epoch milliseconds")
    if not _MIN_TIME_MS <= milliseconds <= MAX_TIME_MS:
        raise PydanticCustomError("event_time", "must lie in the years 1970 to 9999")
    return milliseconds


@lru_cache(maxsize=1024)  # records that reach Kafka together have one time
def format_event_time(milliseconds: int) -> str:
    """Return ``milliseconds`` since the epoch as RFC 3339 in UTC with three decimals.

    A time before the year 1 or after 9999, such as a record's timestamp in another unit, becomes the nearest
    that the format has.
    """
    milliseconds = min(max(milliseconds, _FIRST_TIME_MS), MAX_TIME_MS)
    minute, rest = divmod(milliseconds, 60_000)
    return f"{_minute_text(minute)}{rest // 1000:02d}.{rest % 1000:03d}Z"


@lru_cache(maxsize=16_384)
def _minute_text(minute: int) -> str:
    """Return a minute since the epoch as ``2026-01-31T12:00:``."""
    days, minute = divmod(minute, 1440)
    date = (_EPOCH + timedelta(days=days)).date().isoformat()
    return f"{date}T{minute // 60:02d}:{minute % 60:02d}:"


def _parse_decimal(value: object) -> Decimal:
    """Return the exact decimal that a JSON number or text holds."""
    if type(value) is int:
        if abs(value) > MAX_AMOUNT_MINOR:
            raise PydanticCustomError("amount", "is out of range")
        return Decimal(value)
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise PydanticCustomError("amount", "must be finite")
        return value
    if isinstance(value, str):
        if _DECIMAL(value) is None:
            raise PydanticCustomError("amount", "must be a plain decimal number such as 12.34")
        return Decimal(value)
    if isinstance(value, jiter.LosslessFloat):
        text = str(value)
        try:
            parsed = Decimal(text)
        except InvalidOperation as error:  # pragma: no cover - JSON's grammar is a part of Decimal's
            raise PydanticCustomError("amount", "is not a number") from error
        if parsed and not -40 < parsed.adjusted() < 40:  # noqa: PLR2004 - far beyond any amount
            raise PydanticCustomError("amount", "is out of range")
        return parsed
    raise PydanticCustomError("amount", "must be a JSON number or a decimal text")


def _parse_currency(value: object) -> str:
    if not isinstance(value, str) or value not in MINOR_UNIT_DECIMALS:
        raise PydanticCustomError("currency", "must be an ISO 4217 code such as EUR")
    return value


def _parse_ip(value: object) -> object:
    if isinstance(value, str):
        try:
            ipaddress.ip_address(value)
        except ValueError as error:
            raise PydanticCustomError("ip", "must be an IPv4 or IPv6 address") from error
    return value


def _parse_attributes(value: object) -> dict[str, float | str]:
    if not isinstance(value, dict):
        raise PydanticCustomError("attributes", "must be an object of numbers and texts")
    if len(value) > _MAX_ATTRIBUTES:
        raise PydanticCustomError("attributes", "must have at most 64 members")
    parsed: dict[str, float | str] = {}
    for name, member in value.items():
        if not isinstance(name, str) or not 0 < len(name) <= 64:  # noqa: PLR2004
            raise PydanticCustomError("attributes", "member names must have 1 to 64 characters")
        if isinstance(member, str):
            if len(member) > 256:  # noqa: PLR2004
                raise PydanticCustomError("attributes", "texts must have at most 256 characters")
            parsed[name] = member
        elif type(member) in (int, float) or isinstance(member, jiter.LosslessFloat):
            try:
                number = float(member)
            except OverflowError:  # an integer of more than 308 digits
                number = float("inf")
            if not abs(number) < float("inf"):
                raise PydanticCustomError("attributes", "numbers must be finite")
            parsed[name] = number
        else:
            raise PydanticCustomError("attributes", "members must be numbers or texts")
    return parsed


def _to_minor(value: Decimal, currency: str) -> int | None:
    """Return ``value`` in minor units, or None where it has more decimals than the currency."""
    scaled = _EXACT.scaleb(value, MINOR_UNIT_DECIMALS[currency])
    minor = int(scaled)
    return minor if minor == scaled else None


EventTime = Annotated[
    int,
    BeforeValidator(parse_event_time),
    PlainSerializer(format_event_time, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "integer", "minimum": _MIN_TIME_MS, "maximum": MAX_TIME_MS},
            ],
            "description": "RFC 3339 with an offset, or integer epoch milliseconds",
        }
    ),
]

EventTimeOut = Annotated[
    int,
    BeforeValidator(parse_event_time),
    PlainSerializer(format_event_time, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]

Amount = Annotated[
    Decimal,
    BeforeValidator(_parse_decimal),
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^-?\d{1,20}(\.\d{1,20})?$"}]}
    ),
]

Identifier = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=64)]
