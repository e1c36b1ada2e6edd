"""A transaction and a label as producers send them, and their schemas."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from stream.errors import InvalidRecordError
from stream.events.decode import decode_transaction
from support.paths import SCHEMAS

if TYPE_CHECKING:
    from stream.events.models import Transaction

NOON = 1_769_860_800_000  # 2026-01-31T12:00:00Z

LAST = 253_402_300_799_999

TRANSACTION: dict[str, Any] = {
    "transaction_id": "t-1",
    "user_id": "u-1",
    "event_time": "2026-01-31T12:00:00Z",
    "amount": 12.34,
    "currency": "EUR",
    "channel": "web",
    "transaction_type": "purchase",
}

LABEL: dict[str, Any] = {
    "transaction_id": "t-1",
    "user_id": "u-1",
    "is_fraud": True,
    "event_time": "2026-01-31T12:00:00Z",
    "label_time": "2026-02-03T08:00:00Z",
}


class Raw(str):
    """JSON text to put in as it is, for numbers that Python would write otherwise."""

    __slots__ = ()


def to_json(document: dict[str, Any]) -> bytes:
    members = (
        f"{json.dumps(name)}:{value if isinstance(value, Raw) else json.dumps(value)}"
        for name, value in document.items()
    )
    return ("{" + ",".join(members) + "}").encode("utf-8", "surrogatepass")


def transaction(**changes: Any) -> Transaction:
    return decode_transaction(to_json({**TRANSACTION, **changes}))[0]


def refusal(**changes: Any) -> InvalidRecordError:
    with pytest.raises(InvalidRecordError) as caught:
        transaction(**changes)
    return caught.value


def schema(name: str) -> Draft202012Validator:
    path = SCHEMAS / name
    return Draft202012Validator(
        json.loads(path.read_text(encoding="utf-8")), format_checker=Draft202012Validator.FORMAT_CHECKER
    )
