"""The events on the bus: what producers send, what consumers receive.

JSON outside, exact inside: money is a decimal in JSON and an integer in the currency's minor unit in
memory; times are event times, RFC 3339 with an offset in JSON and integer milliseconds UTC in memory.
Validation is strict: no coercion between types, no NaN or infinity, no naive time, bounded lengths.
Fields that the schema does not know are left out and counted, so that a producer may add fields first.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime, timedelta
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, InvalidOperation
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final

import jiter
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from stream.currencies import MINOR_UNIT_DECIMALS
from stream.errors import InvalidRecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "MAX_AMOUNT_MINOR",
    "MAX_RECORD_BYTES",
    "MAX_RECORD_VALUES",
    "TRANSACTION_FIELDS",
    "Alert",
    "DeadLetterHeader",
    "Decision",
    "Label",
    "Outcome",
    "Reason",
    "RiskLevel",
    "Transaction",
    "decode_label",
    "decode_transaction",
    "field_check",
    "format_event_time",
    "parse_event_time",
    "parse_object",
    "validate_transaction",
]

#: Largest amount or balance, in minor units. Sums of squares of such amounts stay exact in 128 bits.
MAX_AMOUNT_MINOR: Final = 10**15

#: Largest record that is parsed at all; a longer one is a dead letter.
MAX_RECORD_BYTES: Final = 65_536

#: Most values in a record, counted by the commas between them, since none is parsed before: the known
#: fields at their longest hold 24,000 commas, and a value takes up to a hundred times its text in memory.
MAX_RECORD_VALUES: Final = 32_768

_MAX_ATTRIBUTES: Final = 64
_MIN_TIME_MS: Final = 0
_MAX_TIME_MS: Final = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:[0-5]\d)", re.ASCII
).fullmatch
#: The default context would round what has more than 28 digits, and so take it for exact.
_EXACT: Final = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
_DECIMAL: Final = re.compile(r"-?\d{1,20}(\.\d{1,20})?", re.ASCII).fullmatch


class Outcome(StrEnum):
    """What became of one record of ``transactions``."""

    SCORED = "scored"
    LATE = "late"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


class RiskLevel(StrEnum):
    """How an alert should be treated, from the score and the bundle's two thresholds."""

    HIGH = "HIGH"
    MEDIUM = "MEDIUM"
    LOW = "LOW"


class DeadLetterHeader(StrEnum):
    """Headers of a dead letter; Kafka Streams' names (KIP-1034) where they exist."""

    EXCEPTION = "__streams.errors.exception"
    MESSAGE = "__streams.errors.message"
    TOPIC = "__streams.errors.topic"
    PARTITION = "__streams.errors.partition"
    OFFSET = "__streams.errors.offset"
    FIELD = "riskstream.errors.field"
    REASON = "riskstream.errors.reason"
    TIMESTAMP = "riskstream.errors.timestamp"


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
    if not _MIN_TIME_MS <= milliseconds <= _MAX_TIME_MS:
        raise PydanticCustomError("event_time", "must lie in the years 1970 to 9999")
    return milliseconds


@lru_cache(maxsize=1024)  # records that reach Kafka together have one time
def format_event_time(milliseconds: int) -> str:
    """Return ``milliseconds`` since the epoch as RFC 3339 in UTC with three decimals."""
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
                {"type": "integer", "minimum": _MIN_TIME_MS, "maximum": _MAX_TIME_MS},
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
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "pattern": r"^\d{1,20}(\.\d{1,20})?$"},
            ]
        }
    ),
]
Balance = Annotated[
    Decimal,
    BeforeValidator(_parse_decimal),
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^-?\d{1,20}(\.\d{1,20})?$"}]}
    ),
]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class _Event(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, allow_inf_nan=False, ser_json_inf_nan="null"
    )


class Transaction(_Event):
    """One card or account transaction, as producers send it to the topic ``transactions``."""

    transaction_id: Identifier = Field(description="Unique; a second one within the horizon is a duplicate")
    user_id: Identifier = Field(description="Whose history the windows are kept for; the record's key")
    event_time: EventTime
    amount: Amount = Field(
        description="At least 0, at most the currency's decimals, at most 1e15 minor units"
    )
    currency: Annotated[
        str, BeforeValidator(_parse_currency), WithJsonSchema({"type": "string", "pattern": "^[A-Z]{3}$"})
    ] = Field(description="ISO 4217")
    channel: Name
    transaction_type: Name
    pre_balance: Balance | None = None
    post_balance: Balance | None = None
    merchant_id: Identifier | None = None
    card_id: Identifier | None = None
    device_id: Identifier | None = None
    ip: Annotated[str, BeforeValidator(_parse_ip), StringConstraints(max_length=45)] | None = None
    country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")] | None = Field(
        default=None, description="ISO 3166-1 alpha-2"
    )
    memo: Annotated[str, StringConstraints(max_length=1024)] | None = None
    attributes: (
        Annotated[
            dict[str, float | str],
            BeforeValidator(_parse_attributes),
            WithJsonSchema(
                {
                    "type": "object",
                    "maxProperties": _MAX_ATTRIBUTES,
                    "additionalProperties": {"type": ["number", "string"]},
                }
            ),
        ]
        | None
    ) = Field(default=None, description="Further columns of one's own that a model may use as features")

    _amount_minor: int = PrivateAttr(default=0)
    _pre_balance_minor: int | None = PrivateAttr(default=None)
    _post_balance_minor: int | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _to_minor_units(self) -> Transaction:
        amount = _to_minor(self.amount, self.currency)
        if self.amount < 0:
            raise _error("amount", "must not be negative")
        if amount is None:
            raise _error("amount", f"has more decimals than {self.currency} allows")
        if amount > MAX_AMOUNT_MINOR:
            raise _error("amount", "is above 1e15 minor units")
        self._amount_minor = amount
        for name in ("pre_balance", "post_balance"):
            balance: Decimal | None = getattr(self, name)
            if balance is None:
                continue
            minor = _to_minor(balance, self.currency)
            if minor is None:
                raise _error(name, f"has more decimals than {self.currency} allows")
            if abs(minor) > MAX_AMOUNT_MINOR:
                raise _error(name, "is beyond 1e15 minor units")
            setattr(self, f"_{name}_minor", minor)
        return self

    @property
    def event_time_ms(self) -> int:
        """Event time, milliseconds since the epoch, UTC."""
        return self.event_time

    @property
    def amount_minor(self) -> int:
        """Amount in the currency's minor unit, exact."""
        return self._amount_minor

    @property
    def pre_balance_minor(self) -> int | None:
        """Balance before, in the currency's minor unit, exact."""
        return self._pre_balance_minor

    @property
    def post_balance_minor(self) -> int | None:
        """Balance after, in the currency's minor unit, exact."""
        return self._post_balance_minor

    @property
    def minor_units(self) -> int:
        """Minor units in one unit of the currency: 100 for EUR, 1 for JPY."""
        return int(10 ** MINOR_UNIT_DECIMALS[self.currency])


class Reason(_Event):
    """Why a score is what it is: one feature and how much it moved the score."""

    feature: str
    value: float | str | None = Field(description="The feature's value; null where it is not defined")
    usual: float | None = Field(default=None, description="This user's own usual value, where there is one")
    contribution: float = Field(description="SHAP contribution to the log-odds of fraud")
    sentence: str


#: Not the worker's clock: an alert that is delivered again must be the same to the byte. When a record was
#: written, its own Kafka timestamp says.
_SCORED_AT: Final = "As of when it was scored: the time at which the transaction's record reached Kafka"


class Alert(_Event):
    """A transaction that deserves attention, on the topic ``risk-alerts``."""

    alert_id: str = Field(description="The same for every delivery of the same alert")
    transaction_id: str
    user_id: str
    event_time: EventTimeOut
    scored_at: EventTimeOut = Field(description=_SCORED_AT)
    risk_score: float = Field(ge=0, le=1, description="Four decimals")
    risk_level: RiskLevel
    prediction: int = Field(ge=0, le=1, description="1 where the score reaches the alert threshold")
    reasons: list[Reason]
    model_version: str
    feature_spec: str = Field(description="Hash of the ordered feature list that made the score")
    source_topic: str
    source_partition: int
    source_offset: int


class Decision(_Event):
    """What was decided about one transaction, on the topic ``risk-decisions``."""

    transaction_id: str
    user_id: str
    event_time: EventTimeOut
    scored_at: EventTimeOut = Field(description=_SCORED_AT)
    outcome: Outcome
    risk_score: float | None = Field(default=None, ge=0, le=1)
    risk_level: RiskLevel | None = None
    prediction: int | None = Field(default=None, ge=0, le=1)
    alert_id: str | None = None
    model_version: str
    feature_spec: str
    source_topic: str
    source_partition: int
    source_offset: int
    features: dict[str, float | None] | None = Field(
        default=None, description="Feature values by name, when switched on; null is not-a-number"
    )


class Label(_Event):
    """What a transaction turned out to be, known days later, on the topic ``labels``."""

    transaction_id: Identifier
    user_id: Identifier
    is_fraud: bool
    event_time: EventTime = Field(description="Event time of the transaction")
    label_time: EventTime = Field(description="When the label became known")


#: Names of the fields that a transaction may have.
TRANSACTION_FIELDS: Final = frozenset(Transaction.model_fields)
_LABEL_FIELDS: Final = frozenset(Label.model_fields)


def _error(field: str, reason: str) -> PydanticCustomError:
    """Return an error of a check over several fields, which names the one at fault."""
    return PydanticCustomError("invalid_field", "{reason}", {"field": field, "reason": reason})


def parse_object(raw: bytes | None, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object in a record's value, its numbers as exact as their text.

    Raises
    ------
    InvalidRecordError
        No value, too long, too many values, not JSON, or not an object.
    """
    if raw is None:
        raise InvalidRecordError("$", "the record has no value")
    if len(raw) > max_bytes:
        raise InvalidRecordError(
            "$", f"{len(raw)} bytes are more than the {max_bytes} allowed by max_record_bytes"
        )
    if len(raw) > MAX_RECORD_VALUES and raw.count(b",") >= MAX_RECORD_VALUES:
        raise InvalidRecordError("$", f"holds more than the {MAX_RECORD_VALUES} values allowed")
    try:
        parsed = jiter.from_json(
            raw,
            allow_inf_nan=False,
            float_mode="lossless-float",
            cache_mode="keys",
            catch_duplicate_keys=True,
        )
    except (ValueError, UnicodeError, RecursionError) as error:
        raise InvalidRecordError("$", f"is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidRecordError("$", "must be a JSON object")
    return parsed


def _to_invalid_record(error: ValidationError) -> InvalidRecordError:
    first = error.errors(include_url=False, include_input=False)[0]
    context = first.get("ctx", {})
    field = context.get("field") if first["type"] == "invalid_field" else None
    path = ".".join(
        str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained"))
    )
    reason = "is required" if first["type"] == "missing" else first["msg"]
    return InvalidRecordError(str(field or path or "$"), reason)


def validate_transaction(parsed: Mapping[str, Any]) -> Transaction:
    """Return the transaction that a parsed JSON object holds.

    Raises
    ------
    InvalidRecordError
        With the offending field and the reason.
    """
    try:
        return Transaction.model_validate(parsed)
    except ValidationError as error:
        raise _to_invalid_record(error) from error


def field_check(name: str) -> Callable[[object], str | None]:
    """Return what says why a value cannot be a transaction's field, None where it can.

    By the schema itself, for those who look at a whole column's values and not at transactions.
    """
    field = Transaction.model_fields[name]
    what: Any = Annotated[field.annotation, field]
    adapter: TypeAdapter[object] = TypeAdapter(what, config=ConfigDict(strict=True))

    def check(value: object) -> str | None:
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            return _to_invalid_record(error).reason
        return None

    return check


def decode_transaction(raw: bytes | None, *, max_bytes: int = MAX_RECORD_BYTES) -> tuple[Transaction, int]:
    """Return the transaction in a record's value, and how many unknown fields were left out.

    Raises
    ------
    InvalidRecordError
        With the offending field and the reason.
    """
    parsed = parse_object(raw, max_bytes)
    return validate_transaction(parsed), len(parsed.keys() - TRANSACTION_FIELDS)


def decode_label(raw: bytes | None, *, max_bytes: int = MAX_RECORD_BYTES) -> tuple[Label, int]:
    """Return the label in a record's value, and how many unknown fields were left out.

    Raises
    ------
    InvalidRecordError
        With the offending field and the reason.
    """
    parsed = parse_object(raw, max_bytes)
    try:
        label = Label.model_validate(parsed)
    except ValidationError as error:
        raise _to_invalid_record(error) from error
    return label, len(parsed.keys() - _LABEL_FIELDS)
