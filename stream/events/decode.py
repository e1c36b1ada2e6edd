"""From a record's bytes to the row that the pipeline works on.

:class:`~stream.events.models.Transaction` defines a valid transaction. Validating every record with it is too
slow for a fast stream, so decoding has a *fast path* for records whose every field has its most ordinary
form. The fast path never rejects: any other record goes to the model, which accepts it or names the offending
field. A property test holds the two paths to the same rows.

orjson parses a record whose every value is a string; it is faster than the exact parser and exact for
strings. It would accept a repeated name, which must be rejected; but a flat object of n strings without
escapes has exactly 4n quotes, and a repeated name adds more.
"""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import jiter
import orjson
from pydantic import ConfigDict, TypeAdapter, ValidationError

from stream.errors import InvalidRecordError
from stream.events.currencies import MINOR_UNIT_DECIMALS
from stream.events.fields import MAX_AMOUNT_MINOR
from stream.events.models import Label, Transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "MAX_RECORD_BYTES",
    "MAX_RECORD_VALUES",
    "TransactionRow",
    "decode_label",
    "decode_row",
    "decode_transaction",
    "field_check",
    "parse_object",
    "row_of",
    "row_of_object",
    "validate_transaction",
]


#: Largest record that is parsed; a larger record becomes a dead letter.
MAX_RECORD_BYTES: Final = 65_536

#: Most values in a record, counted by the commas between them, since none is parsed before: the known
#: fields at their longest hold 24,000 commas, and a value takes up to a hundred times its text in memory.
MAX_RECORD_VALUES: Final = 32_768

#: Names of the fields that a transaction may have.
TRANSACTION_FIELDS: Final = frozenset(Transaction.model_fields)

_LABEL_FIELDS: Final = frozenset(Label.model_fields)


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
    """Return a function that returns why a value cannot be a transaction's field, None if it can.

    It uses the schema's own validator, for callers that check a column of a file and not transactions.
    """
    field = Transaction.model_fields[name]
    annotation: Any = Annotated[field.annotation, field]
    adapter: TypeAdapter[object] = TypeAdapter(annotation, config=ConfigDict(strict=True))

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


_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()

_IPV4: Final = re.compile(
    r"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)", re.ASCII
).fullmatch

_COUNTRY: Final = re.compile(r"[A-Z]{2}", re.ASCII).fullmatch

#: By currency: decimals, minor units, and the multiplier of a fraction by its number of digits.
_CURRENCIES: Final = {
    code: (decimals, 10**decimals, tuple(10 ** (decimals - digits) for digits in range(decimals + 1)))
    for code, decimals in MINOR_UNIT_DECIMALS.items()
}


class TransactionRow(NamedTuple):
    """The pipeline's view of a transaction: times in ms, money in minor units, None for an unknown value."""

    transaction_id: str
    user_id: str
    event_time: int
    amount_minor: int
    minor_units: int
    channel: str
    transaction_type: str
    merchant_id: str | None
    pre_balance_minor: int | None
    post_balance_minor: int | None
    attributes: Mapping[str, float | str] | None
    card_id: str | None = None
    device_id: str | None = None
    ip: str | None = None


def decode_row(raw: bytes | None, max_bytes: int = MAX_RECORD_BYTES) -> tuple[TransactionRow, int]:
    """Return the row of a record's value, and how many unknown fields were left out.

    Raises
    ------
    InvalidRecordError
        With the offending field and the reason.

    Examples
    --------
    >>> value = (
    ...     b'{"transaction_id": "t-1", "user_id": "u-1", "event_time": "2026-01-31T12:00:00Z",'
    ...     b' "amount": "49.90", "currency": "EUR", "channel": "online", "transaction_type": "purchase",'
    ...     b' "colour": "blue"}'
    ... )
    >>> row, unknown = decode_row(value)
    >>> row.amount_minor, row.minor_units, row.event_time, unknown
    (4990, 100, 1769860800000, 1)
    >>> decode_row(value.replace(b"49.90", b"49.901"))
    Traceback (most recent call last):
    stream.errors.InvalidRecordError: amount: has more decimals than EUR allows
    """
    parsed = _texts(raw, max_bytes) or parse_object(raw, max_bytes)
    row = _fast_row(parsed)  # not row_of_object: one call less for each record
    if row is None:
        row = row_of(validate_transaction(parsed))
    return row, 0 if parsed.keys() <= TRANSACTION_FIELDS else len(parsed.keys() - TRANSACTION_FIELDS)


def row_of_object(parsed: dict[str, Any]) -> TransactionRow:
    """Return the row of a parsed JSON object, see :func:`stream.events.decode.parse_object`.

    Raises
    ------
    InvalidRecordError
        With the offending field and the reason.
    """
    row = _fast_row(parsed)
    return row_of(validate_transaction(parsed)) if row is None else row


def _texts(raw: bytes | None, max_bytes: int) -> dict[str, Any] | None:
    """Return the object in a record's value where it is flat and all its values are texts, otherwise None."""
    if raw is None or len(raw) > max_bytes or b"\\" in raw:
        return None
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if type(parsed) is not dict:
        return None
    size = len(parsed)
    if raw.count(b'"') != 4 * size or list(map(type, parsed.values())).count(str) != size:
        return None
    return parsed


def row_of(transaction: Transaction) -> TransactionRow:
    """Return the row of a validated transaction."""
    return TransactionRow(
        transaction.transaction_id,
        transaction.user_id,
        transaction.event_time,
        transaction.amount_minor,
        transaction.minor_units,
        transaction.channel,
        transaction.transaction_type,
        transaction.merchant_id,
        transaction.pre_balance_minor,
        transaction.post_balance_minor,
        transaction.attributes,
        transaction.card_id,
        transaction.device_id,
        transaction.ip,
    )


def _fast_row(parsed: dict[str, Any]) -> TransactionRow | None:
    """Return the row of an ordinary transaction, or None where the model must decide."""
    get = parsed.get
    transaction_id, user_id = get("transaction_id"), get("user_id")
    channel, transaction_type = get("channel"), get("transaction_type")
    currency = get("currency")
    if (
        type(transaction_id) is not str
        or type(user_id) is not str
        or type(channel) is not str
        or type(transaction_type) is not str
        or type(currency) is not str
        or not 0 < len(transaction_id) <= 128  # noqa: PLR2004 - the model's lengths
        or not 0 < len(user_id) <= 128  # noqa: PLR2004
        or not 0 < len(channel) <= 64  # noqa: PLR2004
        or not 0 < len(transaction_type) <= 64  # noqa: PLR2004
        or currency not in _CURRENCIES
    ):
        return None
    money = _CURRENCIES[currency]
    amount = _minor(get("amount"), money)
    event_time = _time_ms(get("event_time"))
    if amount is None or event_time is None:
        return None
    pre = post = None
    if (value := get("pre_balance")) is not None and (pre := _minor(value, money)) is None:
        return None
    if (value := get("post_balance")) is not None and (post := _minor(value, money)) is None:
        return None
    merchant_id, card_id, device_id = get("merchant_id"), get("card_id"), get("device_id")
    for value in (merchant_id, card_id, device_id):
        if value is not None and (type(value) is not str or not 0 < len(value) <= 128):  # noqa: PLR2004
            return None
    if (ip := get("ip")) is not None and (type(ip) is not str or _IPV4(ip) is None):
        return None
    if (value := get("country")) is not None and (type(value) is not str or _COUNTRY(value) is None):
        return None
    if "memo" in parsed or "attributes" in parsed:
        return None
    return TransactionRow(
        transaction_id, user_id, event_time, amount, money[1],
        channel, transaction_type, merchant_id, pre, post, None, card_id, device_id, ip,
    )  # fmt: skip


def _minor(value: object, money: tuple[int, int, tuple[int, ...]]) -> int | None:
    """Return a plain decimal in minor units, or None where it is anything else."""
    decimals, units, scale = money
    if type(value) is str:
        text = value
    elif type(value) is int:
        minor = value * units
        return minor if -MAX_AMOUNT_MINOR <= minor <= MAX_AMOUNT_MINOR else None
    elif type(value) is jiter.LosslessFloat:
        text = str(value)
    else:
        return None
    if len(text) > 20 or not text.isascii():  # noqa: PLR2004 - more than any amount has
        return None
    whole, point, fraction = text.partition(".")
    digits = whole[1:] if whole[:1] == "-" else whole
    if not digits.isdigit():
        return None
    if point:
        indexes = len(fraction)
        if indexes > decimals or not fraction.isdigit():
            return None
        minor = int(digits + fraction) * scale[indexes]
    else:
        minor = int(digits) * units
    if minor > MAX_AMOUNT_MINOR:
        return None
    return minor if digits is whole else -minor


def _time_ms(value: object) -> int | None:
    """Return a time such as ``2026-01-31T12:00:00.000Z`` (or without the fraction) in ms."""
    if type(value) is not str or value[-1:] != "Z" or not value.isascii():
        return None
    minute = _minute_ms(value[:17])
    seconds = value[17:19]
    if minute is None or not seconds.isdigit() or seconds > "59":
        return None
    size = len(value)
    if size == 24:  # noqa: PLR2004
        fraction = value[20:23]
        if value[19] != "." or not fraction.isdigit():
            return None
        return minute + int(seconds + fraction)
    return minute + int(seconds) * 1000 if size == 20 else None  # noqa: PLR2004


@lru_cache(maxsize=16_384)
def _minute_ms(text: str) -> int | None:
    """Return a minute such as ``2026-01-31T12:00:`` in ms, None where it is no such minute."""
    if len(text) != 17 or text[10] != "T" or text[13] != ":" or text[16] != ":":  # noqa: PLR2004
        return None
    hours, minutes = text[11:13], text[14:16]
    if not (hours.isdigit() and minutes.isdigit()) or hours > "23" or minutes > "59":
        return None
    day = _day_ms(text[:10])
    return None if day is None else day + int(hours) * 3_600_000 + int(minutes) * 60_000


@lru_cache(maxsize=4096)
def _day_ms(text: str) -> int | None:
    """Return the start of a day such as ``2026-01-31`` in ms, None where it is no such day."""
    if text[4] != "-" or text[7] != "-":
        return None
    try:
        ordinal = date.fromisoformat(text).toordinal()
    except ValueError:
        return None
    return (ordinal - _EPOCH_DAY) * 86_400_000 if ordinal >= _EPOCH_DAY else None
