"""Producers keep their own names: a worker with a mapping decides their messages as it decides its own form."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from support.oracle import Event, User, same
from support.streams import Sent, Stream, Worker, readable_line, until
from support.traffic import START

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAPPING = """
[columns]
transaction_id = "id"
user_id = "payer.account"
event_time = "booked"
amount = "value"
merchant_id = "shop"
[constants]
currency = "EUR"
channel = "web"
transaction_type = "purchase"
[time]
format = "epoch_s"
"""


def message(user: str, event: Event) -> Sent:
    body: dict[str, Any] = {
        "id": event.transaction_id,
        "payer": {"account": user, "name": "not for us"},
        "booked": event.time // 1000,
        "value": event.amount / 100,
        "shop": event.merchant,
    }
    return Sent(user.encode(), json.dumps(body).encode())


def test_messages_with_other_names_are_decided(make_stream: Callable[..., Stream], tmp_path: Path) -> None:
    path = tmp_path / "mapping.toml"
    path.write_text(MAPPING)
    stream = make_stream(mapping=path)
    worker = stream.start()
    rng = random.Random(3)
    events = [
        (f"user-{rng.randrange(3)}", Event(f"t{at}", START + at * 60_000, rng.randrange(9_999), f"m{at % 4}"))
        for at in range(150)
    ]
    places = stream.produce(message(user, event) for user, event in events)
    [bad] = stream.produce(
        [Sent(b"user-1", b'{"id": "x", "payer": {"account": "user-1"}, "booked": "soon", "value": 1}')]
    )
    stream.wait_answered()
    users: dict[str, User] = {}
    decisions = stream.decisions()
    for place, (user, event) in zip(places, events, strict=True):
        outcome, expected = users.setdefault(user, User()).take(event)
        [decision] = decisions[place]
        assert decision["outcome"] == outcome
        assert expected is not None
        for name, value in expected.items():
            found = decision["features"][name]
            assert same(float("nan") if found is None else found, value), name
    [letter] = stream.read("dead_letters")
    assert (letter.partition, bad[0]) == (bad[0], letter.partition)
    assert letter.header("riskstream.errors.field") == "event_time"
    assert "must be a number (member booked)" in letter.header("riskstream.errors.reason")
    until(lambda: worker.metric("riskstream_dead_letters_total") == 1, "the dead letter is not counted")
    assert worker.stop() == 0


def test_a_bad_mapping_stops_the_start(make_stream: Callable[..., Stream], tmp_path: Path) -> None:
    path = tmp_path / "mapping.toml"
    path.write_text(MAPPING.replace("user_id", "customer"))
    stream = make_stream(mapping=path)
    worker = Worker(stream.settings, tmp_path / "bad.log")
    assert worker.wait_end() != 0
    assert "customer" in readable_line(worker)
