"""Seeded transactions as producers send them on a bad day."""

from __future__ import annotations

import json
import random
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

from support.oracle import DAY, Event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["BAD_FIELD", "Sent", "Traffic", "event_of"]

#: A bad record's own header: the field that its dead letter must name. Good records do not have it.
BAD_FIELD = "chaos.bad-field"

START_MS = 1_750_000_000_000
STEP_MS = 1_200_000
#: With profiles: a backlog is worked off partition by partition, and then most would be late for entities.
PROFILED_STEP_MS = 600_000
_REQUIRED = ("transaction_id", "user_id", "event_time", "amount", "currency", "channel", "transaction_type")
#: Behind the newest event: within the allowed lateness, beyond it, beyond everything that is kept.
_DELAYS_MS = (3_600_000, DAY, 2 * DAY, 5 * DAY, 20 * DAY, 40 * DAY)


#: Behind a transaction, at which its label becomes known: before any is used, in time, too late to count.
_LABEL_DELAYS_MS = (0, 3_600_000, DAY, DAY, 2 * DAY, 4 * DAY, 4 * DAY, 9 * DAY, 19 * DAY, 22 * DAY)


class Sent(NamedTuple):
    """A record to produce."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    #: The topic by its name in the settings.
    topic: str = "transactions"


def _sent(label: dict[str, Any]) -> Sent:
    return Sent(label["user_id"].encode(), json.dumps(label).encode(), (), "labels")


def event_of(body: Mapping[str, Any]) -> tuple[str, Event]:
    """Return the user and the event of a good transaction, as the oracle takes them."""
    whole, cents = body["amount"].split(".")
    amount = int(whole) * 100 + int(cents)
    return body["user_id"], Event(body["transaction_id"], body["event_time"], amount, body["merchant_id"])


class Traffic:
    """One deployment's transactions, endless: the same seed makes the same records in the same order.

    The first user makes a fifth of them, and so gets a history of several hundred events and sealed chunks;
    ten more come to about a hundred, the rest stay small. Some are out of order, late, or later than
    anything that is kept; some are sent twice, as a producer's retry or with an id used before; some are
    not valid, each in its own way.

    With ``profiled`` most name a device, and labels come among them: most when they become known, some long
    after and some before their transaction; some are corrected, some repeated, some about a transaction that
    nobody sends or one that is too old, and some are not valid.
    """

    def __init__(self, seed: str, users: int = 60, *, profiled: bool = False) -> None:
        self._rng = random.Random(seed)
        #: Of its own, so that the same transactions come with and without profiles.
        self._label_rng = random.Random(f"labels {seed}")
        self._profiled = profiled
        self._step_ms = PROFILED_STEP_MS if profiled else STEP_MS
        #: Labels, each with the number of the transaction before which it is sent.
        self._due: list[tuple[int, int, Sent]] = []
        self._labels = 0
        self._users = users
        self._at = 0
        self._recent: list[tuple[str, str]] = []

    def take(self, count: int) -> list[Sent]:
        """Return about ``count`` further records."""
        records: list[Sent] = []
        while len(records) < count:
            while self._due and self._due[0][0] <= self._at:
                records.append(heappop(self._due)[-1])
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
            "event_time": START_MS + self._at * self._step_ms,
            "amount": f"{rng.randrange(20_000 if rng.random() < 0.97 else 900_000)}.{rng.randrange(100):02}",
            "currency": "EUR",
            "channel": rng.choice(["web", "pos", "app"]),
            "transaction_type": "purchase",
            "merchant_id": rng.choice([None, *(f"m{number}" for number in range(12))]),
        }
        if self._profiled:
            body["device_id"] = self._label_rng.choice([None, None, *(f"d{number}" for number in range(8))])
        draw = rng.random()
        if draw < 0.10:
            body["event_time"] -= rng.choice(_DELAYS_MS)
        elif draw < 0.13 and self._recent:
            body["transaction_id"], body["user_id"] = rng.choice(self._recent)
        elif draw < 0.18:
            return [self._bad(body)]
        self._recent = [*self._recent[-50:], (body["transaction_id"], body["user_id"])]
        record = Sent(body["user_id"].encode(), json.dumps(body).encode())
        first = self._label(body) if self._profiled and self._label_rng.random() < 0.6 else []
        return [*first, *([record] * 2 if rng.random() < 0.02 else [record])]

    def _label(self, body: dict[str, Any]) -> list[Sent]:
        """Make labels of a transaction: returns those that come before it, the others are sent later."""
        rng = self._label_rng
        label: dict[str, Any] = {
            "transaction_id": body["transaction_id"],
            "user_id": body["user_id"],
            "is_fraud": rng.random() < 0.3,
            "event_time": body["event_time"],
            "label_time": body["event_time"] + rng.choice(_LABEL_DELAYS_MS),
        }
        if rng.random() < 0.03:
            label["transaction_id"] = f"never-{self._at}"
        # So many transactions later it is known; some come at once all the same, and some much later.
        due = max(0, label["label_time"] - (START_MS + self._at * self._step_ms)) // self._step_ms
        due = rng.choice([due, due, due, rng.randrange(6), rng.randrange(300), due + rng.randrange(1_500)])
        if rng.random() < 0.05:
            return [self._bad_label(label) if rng.random() < 0.3 else _sent(label)]
        for _ in range(rng.choice([1, 1, 1, 1, 1, 2, 3])):
            self._labels += 1
            heappush(self._due, (self._at + due, self._labels, _sent(label)))
            if rng.random() < 0.7:  # otherwise the same bytes again
                label = label | {
                    "is_fraud": not label["is_fraud"],
                    "label_time": label["label_time"] + rng.choice([0, 1, DAY, DAY, 4 * DAY, -DAY // 2]),
                }
            due += rng.choice([0, 1, 20, 300])
        return []

    def _bad_label(self, label: dict[str, Any]) -> Sent:
        kind = self._label_rng.randrange(4)
        key, value, field = label["user_id"].encode(), json.dumps(label).encode(), "key"
        if kind == 0:
            value, field = value[:-4], "$"
        elif kind == 1:
            key = b"user-of-another-name"
        elif kind == 2:
            field = "is_fraud"
            value = json.dumps(label | {field: "perhaps"}).encode()
        else:
            field = "label_time"
            del label[field]
            value = json.dumps(label).encode()
        return Sent(key, value, [(BAD_FIELD, field.encode())], "labels")

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
