"""Hostile records, and what must hold of whatever the decoder says of them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from stream.errors import InvalidRecordError
from stream.events.currencies import MINOR_UNIT_DECIMALS
from stream.events.decode import TransactionRow, decode_row
from stream.events.fields import MAX_AMOUNT_MINOR

if TYPE_CHECKING:
    import random

__all__ = ["TOKENS", "check", "hostile"]

_TIMES = (0, 253_402_300_799_999)
_UNITS = {10**decimals for decimals in MINOR_UNIT_DECIMALS.values()}

#: What a value is replaced by, or put anywhere into a record's bytes.
TOKENS = (
    b"NaN", b"Infinity", b"-Infinity", b"nan", b'"NaN"', b'"Infinity"', b"1e999", b"-1e999", b"1e-999", b"-0", b"-0.0",
    b"1E400", b"9" * 400, b"9" * 5_000, b"0." + b"0" * 400 + b"1", b"1e308", b"1.7976931348623159e308", b"true", b"null",
    b"[]", b"{}", b"[" * 300 + b"]" * 300, b'{"a":' * 300 + b"1" + b"}" * 300, b"[" * 3_000, b'"' + b"x" * 5_000 + b'"',
    b'"\\ud800"', b'"\\u0000"', b'"\xff"', b'"\xed\xa0\x80"', b'""', b'" "', b"\xef\xbb\xbf", b"\x00", b"//", b"/* */",
    b'"2024-02-30T00:00:00Z"', b'"2024-01-01T24:00:00Z"', b'"2024-01-01T00:00:60Z"', b'"2024-01-01T00:00:00"',
    b'"1969-12-31T23:59:59.999Z"', b'"9999-12-31T23:59:59-23:59"', b'"\xd9\xa2024-01-01T00:00:00Z"', b"253402300800000",
    b'"EUR "', b'"eur"', b'"1_0"', b'"1e5"', b'"+1"', b'".5"', b'"1."', b'"0x10"', b'"\xd9\xa1"', b"1000000000000000.001",
    b"9223372036854775808", b"-9223372036854775809", b"10000000000000000", b"0.001", b'"10000000000000.00"',
)  # fmt: skip

_BODY = {
    "transaction_id": "t1",
    "user_id": "u1",
    "event_time": "2024-05-01T10:00:00.123Z",
    "amount": 12.10,
    "currency": "EUR",
    "channel": "online",
    "transaction_type": "purchase",
    "pre_balance": "100.00",
    "post_balance": 87.90,
    "merchant_id": "m1",
    "ip": "10.0.0.1",
    "country": "DE",
    "memo": "a memo",
    "attributes": {"speed": 1.5, "colour": "red"},
}


def hostile(rng: random.Random) -> bytes:
    """Return a record that is a transaction but for a few changes, of values or of any bytes."""
    body = {name: json.dumps(value).encode() for name, value in _BODY.items() if rng.random() < 0.97}
    for _ in range(rng.randrange(3)):
        name = rng.choice(list(_BODY))
        body[name] = rng.choice(TOKENS) if rng.random() < 0.8 else json.dumps(_any(rng, 3)).encode()
    members = [b'"%s":%s' % (name.encode(), value) for name, value in body.items()]
    if rng.random() < 0.05:
        members.append(rng.choice(members))
    if rng.random() < 0.05:
        members += [b'"new%d":%s' % (at, rng.choice(TOKENS)) for at in range(rng.randrange(40))]
    rng.shuffle(members)
    raw = b"{" + b",".join(members) + b"}"
    for _ in range(rng.choice([0, 0, 1, 1, 2, 8])):
        raw = _mutated(raw, rng)
    return raw


def _any(rng: random.Random, depth: int) -> object:
    kind = rng.randrange(8 if depth else 6)
    if kind == 0:
        return rng.randrange(-(10**18), 10**18)
    if kind == 1:
        return rng.uniform(-1e16, 1e16)
    if kind == 2:
        return "".join(chr(rng.randrange(1, 0xD800)) for _ in range(rng.choice([0, 1, 5, 130, 300])))
    if kind == 3:
        return rng.choice([True, False, None])
    if kind == 4:
        return f"{rng.randrange(1960, 10_050)}-{rng.randrange(14):02}-{rng.randrange(33):02}T00:00:00Z"
    if kind == 5:
        return str(rng.randrange(10**17)) + rng.choice(["", ".", ".0", ".12", ".123"])
    if kind == 6:
        return [_any(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {str(at): _any(rng, depth - 1) for at in range(rng.choice([1, 3, 70]))}


def _mutated(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
    if kind == 2:
        return raw[:at] + rng.choice(TOKENS) + raw[at:]
    if kind == 3:
        to = rng.randrange(len(raw) + 1)
        return raw[: min(at, to)] + raw[max(at, to) :]
    return raw[:at] + raw[at // 2 : at] + raw[at:]


def check(raw: bytes | None, max_bytes: int = 65_536) -> bool:
    """Decode a record; returns whether it was taken, and fails where what was taken may not be.

    Anything but a row or an ``InvalidRecordError`` goes through to the caller.
    """
    try:
        row, unknown = decode_row(raw, max_bytes)
    except InvalidRecordError as error:
        assert error.field, raw
        assert error.reason, raw
        assert len(str(error)) < 2_000, raw
        return False
    _check_row(row)
    assert unknown >= 0
    return True


def _check_row(row: TransactionRow) -> None:
    assert 1 <= len(row.transaction_id) <= 128, row
    assert 1 <= len(row.user_id) <= 128, row
    row.user_id.encode()
    row.transaction_id.encode()
    assert type(row.event_time) is int, row
    assert _TIMES[0] <= row.event_time <= _TIMES[1], row
    assert type(row.amount_minor) is int, row
    assert 0 <= row.amount_minor <= MAX_AMOUNT_MINOR, row
    assert row.minor_units in _UNITS, row
    for name in (row.channel, row.transaction_type):
        assert 1 <= len(name) <= 64, row
    if row.merchant_id is not None:
        assert 1 <= len(row.merchant_id) <= 128, row
        row.merchant_id.encode()
    for balance in (row.pre_balance_minor, row.post_balance_minor):
        assert balance is None or (type(balance) is int and abs(balance) <= MAX_AMOUNT_MINOR), row
    for name, value in (row.attributes or {}).items():
        assert 1 <= len(name) <= 64, row
        assert len(value) <= 256 if isinstance(value, str) else math.isfinite(value), row
