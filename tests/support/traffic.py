"""Transactions for a deployment, and its decisions and alerts against the oracle."""

from __future__ import annotations

import hashlib
import json
import math
import random
from typing import Any

from stream.decisions.policy import alert_id
from stream.events.models import Alert
from stream.features.windows.arrays import DUPLICATE, LATE, SCORED
from support.oracle import DAY, Event, User, same
from support.streams import Sent, Stream

START = 1_750_000_000_000


OUTCOMES = {SCORED: "scored", LATE: "late", DUPLICATE: "duplicate"}


def sent(user: str, event: Event) -> Sent:
    body = {
        "transaction_id": event.transaction_id,
        "user_id": user,
        "event_time": event.time,
        "amount": f"{event.amount // 100}.{event.amount % 100:02}",
        "currency": "EUR",
        "channel": "web",
        "transaction_type": "purchase",
        "merchant_id": event.merchant,
    }
    trace = hashlib.blake2b(event.transaction_id.encode(), digest_size=16).hexdigest()
    headers = [("traceparent", f"00-{trace}-00f067aa0ba902b7-01".encode()), ("mine", b"stays here")]
    return Sent(user.encode(), json.dumps(body).encode(), headers)


def event_of(record: Sent) -> tuple[str, Event]:
    body = json.loads(record.value or b"")
    whole, cents = body["amount"].split(".")
    amount = int(whole) * 100 + int(cents)
    return body["user_id"], Event(body["transaction_id"], body["event_time"], amount, body["merchant_id"])


def traffic(prefix: str, count: int, users: int, seed: int = 1, begin: int = 0) -> list[Sent]:
    """Return transactions of ``users`` users: in order, late, too late, tied, and some sent twice.

    The first user makes a third of them and so goes far beyond what the head of a history holds.
    """
    rng = random.Random(seed * 1_000_003 + begin)
    records: list[Sent] = []
    for at in range(begin, begin + count):
        user = 0 if rng.random() < 0.33 else rng.randrange(users)
        time = START + at * 600_000 - (rng.choice([0, 3_600_000, DAY, 5 * DAY]) if rng.random() < 0.1 else 0)
        merchant = rng.choice([None, *(f"m{number}" for number in range(9))])
        records.append(
            sent(f"{prefix}-{user}", Event(f"{prefix}-{at}", time, rng.randrange(500_000), merchant))
        )
        if rng.random() < 0.02:
            records.append(rng.choice(records[-30:]))
    return records


def check_decisions(stream: Stream, prefix: str, *, once: bool) -> int:
    """Compare every decision on users of this prefix with the oracle; returns how many positions there are.

    ``once`` asks for exactly one delivery; otherwise all deliveries must agree to the byte.
    """
    decisions = stream.decisions()
    users: dict[str, User] = {}
    checked = 0
    for place in sorted(stream.sent):
        record = stream.sent[place]
        if not (record.key or b"").startswith(f"{prefix}-".encode()):
            continue
        user, event = event_of(record)
        outcome, expected = users.setdefault(user, User()).take(event)
        deliveries = decisions[place]
        # A duplicate leaves nothing in the state by which its record could be recognised when it comes again.
        assert len(deliveries) == 1 or not once or outcome == "duplicate", deliveries
        bodies = deliveries
        assert all(body == bodies[0] for body in bodies)
        assert (bodies[0]["transaction_id"], bodies[0]["outcome"]) == (event.transaction_id, outcome)
        if expected is None:
            assert "features" not in bodies[0]
        else:
            found = {
                name: math.nan if value is None else value for name, value in bodies[0]["features"].items()
            }
            assert {name: found[name] for name in expected if not same(found[name], expected[name])} == {}
        checked += 1
    return checked


def check_alerts(stream: Stream) -> int:
    """Compare alerts and decisions both ways; returns how many different alerts there are."""
    asked = {
        body["alert_id"]: body
        for deliveries in stream.decisions().values()
        for body in deliveries
        if "alert_id" in body
    }
    alerts: dict[str, dict[str, Any]] = {}
    deliveries: dict[str, bytes | None] = {}
    for found in stream.read("alerts"):
        Alert.model_validate_json(found.value or b"")
        body = found.json
        source = stream.sent[body["source_partition"], body["source_offset"]]
        assert found.headers == tuple(pair for pair in source.headers if pair[0] == "traceparent")
        assert found.key == body["user_id"].encode()
        assert found.partition == body["source_partition"]
        assert body["alert_id"] == alert_id(body["user_id"], body["transaction_id"])
        assert deliveries.setdefault(body["alert_id"], found.value) == found.value
        alerts[body["alert_id"]] = body
    assert alerts.keys() == asked.keys()
    for name, body in alerts.items():
        same_names = body.keys() & asked[name].keys()
        assert {key: body[key] for key in same_names} == {key: asked[name][key] for key in same_names}
        assert body["reasons"]
    return len(alerts)
