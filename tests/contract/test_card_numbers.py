"""No card number in clear in state, changelog, dead letters, alerts, decisions or logs."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from offline.data.card_numbers import without_card_numbers
from offline.data.readers import read_transactions
from stream.events.card_numbers import CardNumbers
from stream.kafka.clients import client_config
from stream.kafka.topics import changelog_topic
from support.oracle import Event
from support.streams import Sent, Stream, until
from support.traffic import START, sent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NUMBER, OTHER = "4111111111111111", "5555 5555 5555 4444"
KEY = "0123456789abcdef0123456789abcdef"


def transactions() -> list[Sent]:
    found = []
    for at in range(80):
        base = sent(NUMBER, Event(f"t{at}", START + at * 60_000, 1_000, OTHER))
        found.append(base)
    plain = sent("plain", Event("p", START, 1_000, "m"))
    broken = Sent(
        NUMBER.encode(),
        b'{"user_id": "%b", "card": "%b"' % (NUMBER.encode(), OTHER.encode()),
        [("pan", NUMBER.encode())],
    )
    return [*found, plain, broken]


def bytes_of(stream: Stream, *topics: str) -> bytes:
    """Return all keys, values and header values of topics, in one."""
    reader = KafkaConsumer(**client_config(stream.settings.kafka), enable_auto_commit=False)
    found = []
    try:
        places = [
            TopicPartition(topic, at) for topic in topics for at in range(stream.settings.topics.partitions)
        ]
        reader.assign(places)
        reader.seek_to_beginning()
        ends = reader.end_offsets(places)
        while any(reader.position(place) < end for place, end in ends.items()):
            for batch in reader.poll(timeout_ms=200).values():
                for record in batch:
                    found += [
                        record.key or b"",
                        record.value or b"",
                        *(value or b"" for _, value in record.headers),
                    ]
    finally:
        reader.close()
    return b"\n".join(found)


def check_nothing_is_clear(stream: Stream) -> None:
    topics = stream.settings.topics
    everything = bytes_of(
        stream, topics.alerts, topics.decisions, topics.dead_letters, changelog_topic(stream.settings)
    )
    assert b"plain" in everything
    files = [path for path in stream.settings.state_dir.rglob("*") if path.is_file()]
    assert files
    everything += b"".join(path.read_bytes() for path in files)
    everything += "".join(worker.log for worker in stream.workers).encode()
    for number in (NUMBER, OTHER, OTHER.replace(" ", "")):
        assert number.encode() not in everything


def test_card_numbers_are_refused_by_default(make_stream: Callable[..., Stream]) -> None:
    stream = make_stream()
    worker = stream.start()
    stream.produce(transactions())
    stream.wait_answered()
    letters = stream.read("dead_letters")
    assert len(letters) == 81
    assert {letter.header("riskstream.errors.field") for letter in letters} == {
        "user_id",
        "merchant_id",
        "$",
    } - {"merchant_id"}
    assert all(
        letter.header("riskstream.errors.reason").endswith("; card numbers masked") for letter in letters
    )
    assert all(letter.key == b"411111******1111" for letter in letters)
    until(lambda: worker.metric("riskstream_card_numbers_total") == 80, "the refused records are not counted")
    assert worker.stop() == 0
    check_nothing_is_clear(stream)


def test_card_numbers_are_replaced_by_hmacs(make_stream: Callable[..., Stream], tmp_path: Path) -> None:
    stream = make_stream(card_numbers={"policy": "hmac", "key": KEY})
    worker = stream.start()
    places = stream.produce(transactions())
    stream.wait_answered()
    guard = CardNumbers("hmac", KEY.encode())
    user = guard.token(NUMBER)
    decisions = stream.decisions()
    mine = [decisions[place] for place in places[:80]]
    assert {body[0]["user_id"] for body in mine} == {user}
    assert [body[0]["features"]["lifetime_count"] for body in mine] == [float(at + 1) for at in range(80)]
    assert worker.stop() == 0
    check_nothing_is_clear(stream)

    # A file with the same ids gives the same users.
    path = tmp_path / "file.jsonl"
    path.write_bytes(b"\n".join(record.value or b"" for record in transactions()[:80]))
    table = without_card_numbers(read_transactions(path), guard)
    assert set(table.user_id.tolist()) == {user}
    assert set((table.merchant_id if table.merchant_id is not None else table.user_id).tolist()) == {
        guard.token(OTHER)
    }
    refused: Any = without_card_numbers(read_transactions(path), CardNumbers("refuse"))
    assert len(refused.invalid) == 80
    assert dataclasses.is_dataclass(refused)
    assert NUMBER not in json.dumps([str(error) for error in refused.invalid.values()])


@pytest.mark.parametrize("key", [None, "short"])
def test_a_policy_without_a_key_stops_the_start(
    make_stream: Callable[..., Stream], key: str | None, tmp_path: Path
) -> None:
    from support.streams import Worker, readable_line

    stream = make_stream()
    variables = stream.settings.child_environment() | {"RISKSTREAM_CARD_NUMBERS__POLICY": "hmac"}
    if key is not None:
        variables["RISKSTREAM_CARD_NUMBERS__KEY"] = key
    worker = Worker(stream.settings, tmp_path / "bad.log", variables)
    assert worker.wait_end() != 0
    line = readable_line(worker)
    assert "RISKSTREAM_CARD_NUMBERS" in line
    assert "short" not in line.replace("too short", "")
