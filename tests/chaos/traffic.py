"""Seeded transactions as producers send them on a bad day."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, NamedTuple

from oracle import DAY, Event

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BAD_FIELD", "Sent", "Traffic", "event_of"]

#: A bad record's own header: the field that its dead letter must name. Good records do not have it.
BAD_FIELD = "chaos.bad-field"

START_MS = 1_750_000_000_000
STEP_MS = 1_200_000
_REQUIRED = ("transaction_id", "user_id", "event_time", "amount", "currency", "channel", "transaction_type")
#: Behind the newest event: within the allowed lateness, beyond it, beyond everything that is kept.
_DELAYS_MS = (3_600_000, DAY, 2 * DAY, 5 * DAY, 20 * DAY, 40 * DAY)


class Sent(NamedTuple):
    """A record to produce."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


def event_of(value: bytes) -> tuple[str, Event]:
    """Return the user and the event of a good record, as the oracle takes them."""
    body = json.loads(value)
    whole, cents = body["amount"].split(".")
    amount = int(whole) * 100 + int(cents)
    return body["user_id"], Event(body["transaction_id"], body["event_time"], amount, body["merchant_id"])


class Traffic:
    """One deployment's transactions, endless: the same seed makes the same records in the same order.

    The first user makes a fifth of them, and so gets a history of several hundred events and sealed chunks;
    ten more come to about a hundred, the rest stay small. Some are out of order, late, or later than
    anything that is kept; some are sent twice, as a producer's retry or with an id used before; some are
    not valid, each in its own way.
    """

    def __init__(self, seed: str, users: int = 60) -> None:
        self._rng = random.Random(seed)
        self._users = users
        self._at = 0
        self._recent: list[tuple[str, str]] = []

    def take(self, count: int) -> list[Sent]:
        """Return about ``count`` further records."""
        records: list[Sent] = []
        while len(records) < count:
            records += self._next()
        return records

    def _next(self) -> list[Sent]:
        rng = self._rng
        self._at += 1
        draw = rng.random()
        user = "user-0" if draw < 0.2 else f"user-{rng.randrange(1, 11 if draw < 0.6 else self._users)}"
        body: dict[str, Any] = {
            "transaction_id": f"t{self._at}",
            "user_id": user,
            "event_time": START_MS + self._at * STEP_MS,
            "amount": f"{rng.randrange(20_000 if rng.random() < 0.97 else 900_000)}.{rng.randrange(100):02}",
            "currency": "EUR",
            "channel": rng.choice(["web", "pos", "app"]),
            "transaction_type": "purchase",
            "merchant_id": rng.choice([None, *(f"m{number}" for number in range(12))]),
        }
        draw = rng.random()
        if draw < 0.10:
            body["event_time"] -= rng.choice(_DELAYS_MS)
        elif draw < 0.13 and self._recent:
            body["transaction_id"], body["user_id"] = rng.choice(self._recent)
        elif draw < 0.18:
            return [self._bad(body)]
        self._recent = [*self._recent[-50:], (body["transaction_id"], body["user_id"])]
        record = Sent(body["user_id"].encode(), json.dumps(body).encode())
        return [record] * 2 if rng.random() < 0.02 else [record]

    def _bad(self, body: dict[str, Any]) -> Sent:
        rng = self._rng
        key: bytes | None = body["user_id"].encode()
        kind = rng.randrange(9)
        if kind == 0:
            value: bytes | None = json.dumps(body).encode()[:-4]
            field = "$"
        elif kind == 1:
            value, field = bytes(rng.randrange(256) for _ in range(40)) + b"\xff", "$"
        elif kind == 2:
            field = rng.choice(_REQUIRED)
            del body[field]
            value = json.dumps(body).encode()
        elif kind == 3:
            key, value, field = b"user-of-another-name", json.dumps(body).encode(), "key"
        elif kind == 4:
            key, value, field = None, json.dumps(body).encode(), "key"
        elif kind == 5:
            value, field = json.dumps(body | {"amount": float("nan")}).encode(), "$"
        elif kind == 6:
            value, field = json.dumps(body | {"amount": "NaN"}).encode(), "amount"
        elif kind == 7:
            value, field = None, "$"
        else:
            value, field = json.dumps(body | {"event_time": "2999-01-01T00:00:00Z"}).encode(), "event_time"
        return Sent(key, value, [(BAD_FIELD, field.encode()), ("trace", rng.randbytes(9)), ("trace", b"")])
