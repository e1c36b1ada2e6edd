"""``POST /predict`` on workers: what the stream decides a moment later, from whichever of them is asked."""

from __future__ import annotations

import itertools
import json
import random
import re
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from confluent_kafka import Producer
from kafka import KafkaConsumer, TopicPartition

from stream.kafka.clients import client_config
from stream.kafka.partitioner import partition_of
from stream.kafka.topics import changelog_topic
from stream.pipeline.entity_join.messages import partition_of as entity_partition
from stream.state.hashing import hash_id
from support.bundles import simulated
from support.profiles import labels_of, transactions
from support.streams import Sent, Stream, labels_arrived, sent, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from stream.kafka.local.base import Broker
    from support.streams import Worker

pytestmark = pytest.mark.kafka

TOKEN = "correct horse battery"
SCORING = {"enabled": True, "port": 0, "token": TOKEN}
PAST = 5_700
DECIDED = ("outcome", "risk_score", "risk_level", "prediction", "model_version")


class Answer(NamedTuple):
    status: int
    body: Any


def address(worker: Worker) -> str:
    found = re.search(r"scores on (http://[\w.:]+)/predict", worker.log)
    assert found is not None, worker.log
    return found[1]


def ask(worker: Worker, body: bytes, token: str | None = TOKEN) -> Answer:
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{address(worker)}/predict", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return Answer(answer.status, json.load(answer))
    except urllib.error.HTTPError as error:
        return Answer(error.code, json.load(error))


def batch(records: Sequence[Sent]) -> bytes:
    return b"[" + b",".join(record.value or b"" for record in records) + b"]"


def start_pair(stream: Stream) -> list[Worker]:
    """Start two workers, and return once each has its share of the partitions."""
    folders = [stream.folder / f"state-{number}" for number in range(2)]
    found = [
        stream.start(stream.settings.model_copy(update={"state_dir": one}), ready=False) for one in folders
    ]
    for worker in found:
        worker.wait_ready()
    until(lambda: all(worker.metric("riskstream_assigned_partitions") == 2 for worker in found), "no pair")
    return found


@pytest.fixture(scope="module")
def records() -> list[Sent]:
    return [Sent(key, value) for key, value in simulated().to_records()]


@pytest.fixture(scope="module")
def pair(
    kafka_broker: Broker, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory, records: list[Sent]
) -> Iterator[Stream]:
    """Two workers that have taken most of the records, each with its share of the partitions."""
    folder = tmp_path_factory.mktemp("predictions")
    # An alert, and so reasons, for every transaction.
    stream = Stream(
        kafka_broker, folder, bundle_folder, scoring=SCORING, alert_level="LOW", decisions={"features": False}
    )
    try:
        start_pair(stream)
        stream.produce(records[:PAST])
        for name in ("decisions", "alerts"):
            fresh(stream, name, 0)
        yield stream
    finally:
        stream.close()


def waves(records: Sequence[Sent], count: int) -> list[list[Sent]]:
    """Return the first records as waves in which no user comes twice."""
    found: list[list[Sent]] = [[]]
    seen: set[bytes | None] = set()
    for record in records:
        if record.key in seen:
            found.append([])
            seen.clear()
        found[-1].append(record)
        seen.add(record.key)
    return found[:count]


@pytest.fixture(scope="module")
def ends(pair: Stream) -> Iterator[Callable[[], dict[TopicPartition, int]]]:
    """Return where all topics end that a worker writes to."""
    topics = pair.settings.topics
    names = (changelog_topic(pair.settings), topics.alerts, topics.decisions, topics.dead_letters)
    places = [TopicPartition(name, at) for name in names for at in range(topics.partitions)]
    reader = KafkaConsumer(**client_config(pair.settings.kafka))
    yield lambda: reader.end_offsets(places)
    reader.close()


def fresh(stream: Stream, name: str, before: int) -> dict[str, dict[str, Any]]:
    """Return the records that a topic has had since it had so many, by their transactions' ids."""
    until(lambda: len(stream.read(name)) == len(stream.sent), f"not every transaction has its one of {name}")
    return {body["transaction_id"]: body for body in (found.json for found in stream.read(name)[before:])}


def test_a_prediction_is_what_the_stream_then_decides(
    pair: Stream, records: list[Sent], ends: Callable[[], dict[TopicPartition, int]]
) -> None:
    """To the last bit, reasons too; asked of either worker, one by one or all at once, as often as one likes."""
    turns = itertools.cycle(pair.workers)
    for wave in waves(records[PAST:], 5):
        before, past = ends(), len(pair.sent)
        status, answers = ask(next(turns), batch(wave))
        assert status == 200, answers
        assert ask(next(turns), batch(wave)) == (200, answers)
        assert ask(next(turns), wave[0].value or b"") == (200, answers[0])
        assert ask(next(turns), wave[0].value or b"") == (200, answers[0])
        assert ends() == before, "something was stored or sent"
        pair.produce(wave)
        decided, alerted = fresh(pair, "decisions", past), fresh(pair, "alerts", past)
        for answer in answers:
            decision = decided[answer["transaction_id"]]
            assert {name: answer[name] for name in DECIDED} == {name: decision[name] for name in DECIDED}
            assert answer["outcome"] == "scored"
            assert answer["reasons"] == alerted[answer["transaction_id"]]["reasons"]
    answered = [worker.metric(r"riskstream_predictions_total\{end=\"answered\"\}") for worker in pair.workers]
    assert min(answered) > 10, "one of them was never asked by the other"


def held(worker: Worker) -> set[int]:
    """Return the partitions of a worker."""
    (*_, last) = re.findall(r'partitions assigned .* partitions="\[(.*)\]"', worker.log)
    return {int(partition) for partition in last.split(",")}


def test_a_prediction_asks_entities_of_both_workers(
    kafka_broker: Broker, profiled_folder: Path, tmp_path: Path
) -> None:
    """Labels, merchants and devices too; nobody comes twice in a wave, since its transactions go together."""
    stream = Stream(
        kafka_broker,
        tmp_path,
        profiled_folder,
        scoring=SCORING,
        alert_level="LOW",
        decisions={"features": False},
    )
    rng = random.Random(9)
    rows = transactions(rng, 360, users=30, merchants=25, devices=25)
    rows = [row | {"transaction_id": f"n{at}"} for at, row in enumerate(rows)]
    past, rest = rows[:300], rows[300:]
    labels = labels_of(rng, past)
    try:
        workers = start_pair(stream)
        shares = [held(worker) for worker in workers]
        stream.produce(sent(row) for row in past)
        stream.wait_answered()
        stream.produce_labels(sent(label) for label in labels)
        until(lambda: labels_arrived(workers, len(labels)), "not every label has arrived")
        for name in ("decisions", "alerts"):
            fresh(stream, name, 0)
        crossed = 0
        turns = itertools.cycle(workers)
        for wave in itertools.islice(_apart(rest), 2):
            past_records = len(stream.sent)
            status, answers = ask(next(turns), batch([sent(row) for row in wave]))
            assert status == 200, answers
            assert ask(next(turns), batch([sent(row) for row in wave])) == (200, answers)
            stream.produce(sent(row) for row in wave)
            decided, alerted = fresh(stream, "decisions", past_records), fresh(stream, "alerts", past_records)
            for row, answer in zip(wave, answers, strict=True):
                decision = decided[answer["transaction_id"]]
                assert {name: answer[name] for name in DECIDED} == {name: decision[name] for name in DECIDED}
                assert answer["reasons"] == alerted[answer["transaction_id"]]["reasons"]
                user = partition_of(row["user_id"].encode(), 4, "murmur2")
                merchant = entity_partition(hash_id(row.get("merchant_id", "")), 4)
                crossed += "merchant_id" in row and not any({user, merchant} <= share for share in shares)
        assert crossed > 5
    finally:
        stream.close()


def _apart(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield waves in which no user, merchant or device comes twice."""
    while rows:
        seen: set[str] = set()
        wave = []
        for row in rows:
            names = {row[name] for name in ("user_id", "merchant_id", "device_id") if name in row}
            if not seen & names:
                wave.append(row)
            seen |= names
        yield wave
        rows = [row for row in rows if row not in wave]


def test_what_was_taken_is_a_duplicate(pair: Stream, records: list[Sent]) -> None:
    status, answer = ask(pair.workers[0], records[PAST - 1].value or b"")
    assert (status, answer["outcome"]) == (200, "duplicate")


@pytest.mark.parametrize("token", [None, "wrong horse battery"])
def test_nobody_is_answered_without_the_token(pair: Stream, records: list[Sent], token: str | None) -> None:
    assert ask(pair.workers[0], records[0].value or b"", token).status == 401


def test_bad_input_names_its_field(pair: Stream, records: list[Sent]) -> None:
    wrong = json.loads(records[0].value or b"") | {"amount": "1-"}
    for worker in pair.workers:
        status, answer = ask(worker, json.dumps([wrong]).encode())
        assert status == 422
        assert [problem["loc"] for problem in answer["detail"]] == [["body", 0, "amount"]]
    status, answer = ask(pair.workers[0], b"[" + b",".join([records[0].value or b""] * 101) + b"]")
    assert (status, answer["detail"][0]["msg"]) == (422, "must hold 1 to 100 transactions, not 101")


def test_keys_are_looked_for_where_producers_put_them(pair: Stream) -> None:
    """By Kafka's own client and those like it, and by librdkafka."""
    settings = pair.settings
    topic, count = settings.topics.labels, settings.topics.partitions
    keys = [f"user-{number}-{'x' * number}".encode() for number in range(40)]
    placed: dict[str, dict[bytes, int]] = {"murmur2": {}, "crc32": {}}
    futures = [(key, pair._producer.send(topic, key=key, value=b"{}")) for key in keys]
    pair._producer.flush()
    placed["murmur2"] = {key: future.get(30).partition for key, future in futures}
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})

    def delivered(error: Any, message: Any) -> None:
        assert error is None, error
        placed["crc32"][message.key()] = message.partition()

    for key in keys:
        producer.produce(topic, b"{}", key, on_delivery=delivered)
    producer.flush(30)
    for partitioner, found in placed.items():
        assert found == {key: partition_of(key, count, partitioner) for key in keys}


def test_another_worker_takes_over(pair: Stream, records: list[Sent]) -> None:
    """Meanwhile a user of the one that died gets a reason, no wrong answer; then what he got before."""
    first, second = pair.workers
    asked = batch(waves(records[-200:], 1)[0])
    status, before = ask(first, asked)
    assert status == 200
    second.kill()
    seen: list[Answer] = []

    def answered() -> bool:
        seen.append(ask(first, asked))
        return seen[-1].status == 200

    until(answered, "the histories are not taken over")
    assert seen[-1].body == before
    assert {answer.status for answer in seen[:-1]} == {503}
    said = " ".join(answer.body["detail"][0]["msg"] for answer in seen[:-1])
    assert "which owns the history, responded" in said
    assert "are being moved" in said
