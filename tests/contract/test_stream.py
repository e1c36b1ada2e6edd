"""The stream's contract, the same for every broker: the real worker, the real topics, every record counted."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from kafka import KafkaProducer

from offline.features.build import build_features
from stream.events.models import DeadLetterHeader, Decision
from stream.kafka.clients import client_config
from stream.kafka.local.base import free_port
from stream.pipeline.encode import MAX_DEAD_LETTER_BYTES
from stream.scoring.bundle import Bundle
from stream.scoring.predictor import Predictor
from support.bundles import made_bundle, model_text, simulated, trained_bundle
from support.helpers import is_running, settings_for
from support.oracle import DAY, Event
from support.streams import Sent, Stream, Worker, children_of, readable_line, until
from support.traffic import OUTCOMES, START, check_alerts, check_decisions, sent, traffic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.kafka.local.base import Broker

MakeStream = "Callable[..., Stream]"


# --- a worker that runs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated_run(shared: Stream) -> Stream:
    """The shared deployment after it was sent the whole simulated file."""
    shared.produce(Sent(key, value) for key, value in simulated().to_records())
    shared.wait_answered()
    return shared


def test_every_transaction_is_decided_exactly_once(simulated_run: Stream) -> None:
    table = simulated()
    decisions = simulated_run.read("decisions")
    by_id: dict[str, dict[str, Any]] = {}
    for found in decisions:
        decision = Decision.model_validate_json(found.value or b"")
        assert found.key == decision.user_id.encode()
        assert found.partition == decision.source_partition
        assert decision.transaction_id not in by_id
        by_id[decision.transaction_id] = found.json
    assert set(table.transaction_id.tolist()) <= by_id.keys()


def test_features_and_scores_are_those_of_training_to_the_bit(simulated_run: Stream) -> None:
    table, bundle = simulated(), trained_bundle()
    offline = build_features(table, bundle.spec, allowed_lateness_ms=3 * DAY)
    scores = Predictor(bundle).scores(offline.matrix)
    by_id = {found.json["transaction_id"]: found.json for found in simulated_run.read("decisions")}
    for row, name in enumerate(table.transaction_id.tolist()):
        body = by_id[name]
        assert list(body["features"]) == list(bundle.spec.names)
        online = [math.nan if value is None else value for value in body["features"].values()]
        np.testing.assert_array_equal(np.array(online), offline.matrix[row])
        assert body["outcome"] == OUTCOMES[offline.outcome[row]]
        assert body["risk_score"] == round(float(scores[row]), 4)


def test_alerts_are_where_decisions_say(simulated_run: Stream) -> None:
    alerts = check_alerts(simulated_run)
    decided = simulated_run.decisions()
    expected = [bodies[0] for bodies in decided.values() if bodies[0].get("risk_level") != "LOW"]
    assert 0 < alerts < len(decided) / 2
    assert alerts >= len([body for body in expected if body["outcome"] != "duplicate"])
    assert len(simulated_run.read("alerts")) == alerts


def test_duplicates_and_late_ones_are_called_so(shared: Stream) -> None:
    start = START + 100 * DAY
    events = [
        Event("dup-1", start, 500, "m"),
        Event("dup-2", start + DAY, 700, "m"),
        Event("dup-1", start + 2 * DAY, 900, "m"),
        Event("dup-3", start + DAY, 0),
        Event("dup-4", start - 3 * DAY, 10**15),
        Event("dup-2", start, 1),
    ]
    places = shared.produce(sent("dup-user", event) for event in events)
    shared.wait_answered(places)
    decided = [shared.decisions()[place] for place in places]
    assert [[body["outcome"] for body in bodies] for bodies in decided] == [
        ["scored"], ["scored"], ["duplicate"], ["scored"], ["late"], ["duplicate"],
    ]  # fmt: skip
    assert ["risk_score" in bodies[0] for bodies in decided] == [True, True, False, True, True, False]
    assert check_decisions(shared, "dup", once=True) == len(events)


def test_traffic_of_all_kinds_is_that_of_the_oracle(shared: Stream) -> None:
    places = shared.produce(traffic("mix", 1_500, users=12))
    shared.wait_answered(places)
    assert check_decisions(shared, "mix", once=True) == len(places)
    assert {body["outcome"] for bodies in shared.decisions().values() for body in bodies} == {
        "scored", "late", "duplicate",
    }  # fmt: skip


def test_bad_records_become_dead_letters_and_good_neighbours_are_scored(shared: Stream) -> None:
    good = [sent("dlq", Event(f"dlq-{at}", START + at, 100)) for at in range(8)]
    trace = [("trace", b"\x00\xff"), ("empty", b""), ("trace", b"again")]
    future = json.loads(good[0].value or b"") | {"event_time": "2999-01-01T00:00:00Z"}
    bad = [
        (Sent(b"dlq", b'{"no', trace), "$"),
        (Sent(b"dlq", b"\xff\xfe\x00"), "$"),
        (Sent(b"someone-else", good[7].value, trace[:1]), "key"),
        (Sent(None, good[7].value), "key"),
        (Sent(b"dlq", json.dumps(future).encode()), "event_time"),
        (Sent(b"dlq", None, trace), "$"),
        (Sent(b"dlq", b" " * 200_000, trace), "$"),
        (Sent(b"dlq", b"{}"), "transaction_id"),
    ]
    mixed = [record for pair in zip(good, (record for record, _ in bad), strict=True) for record in pair]
    places = shared.produce(mixed)
    shared.wait_answered(places)
    decisions = shared.decisions()
    assert [decisions[place][0]["outcome"] for place in places[::2]] == ["scored"] * 8
    letters = {
        (found.partition, int(found.header(DeadLetterHeader.OFFSET))): found
        for found in shared.read("dead_letters")
    }
    known = {header.value for header in DeadLetterHeader}
    for place, (record, field) in zip(places[1::2], bad, strict=True):
        letter = letters[place]
        assert place not in decisions
        assert (letter.key, letter.value) == (record.key, record.value)
        assert [pair for pair in letter.headers if pair[0] not in known] == list(record.headers)
        assert letter.header(DeadLetterHeader.FIELD) == field
        assert letter.header(DeadLetterHeader.TOPIC) == shared.settings.topics.transactions
        assert letter.header(DeadLetterHeader.REASON)


def test_it_tells_of_itself(shared: Stream) -> None:
    worker = shared.workers[0]
    assert (worker.status("/healthz"), worker.status("/readyz"), worker.status("/nothing")) == (200, 200, 404)
    places = shared.produce(traffic("metric", 50, users=3))
    shared.wait_answered(places)
    until(
        lambda: worker.metric("riskstream_transactions_total") == len(shared.sent),
        "not every record is counted",
    )
    assert worker.metric("riskstream_dead_letters_total") == len(shared.read("dead_letters"))
    assert worker.metric("riskstream_alerts_total") == len(shared.read("alerts"))


def test_its_threads_stay_on_their_core_and_those_of_rocksdb_do_not(shared: Stream) -> None:
    """``shared`` is told a core where the system lets choose."""
    if shared.settings.core is None:
        pytest.skip("this system does not let choose a core")
    own: list[frozenset[int]] = []
    of_rocksdb: set[frozenset[int]] = set()
    for task in Path(f"/proc/{shared.workers[0].process.pid}/task").iterdir():
        name = (task / "comm").read_text(encoding="ascii")
        cores = frozenset(os.sched_getaffinity(int(task.name)))
        if name.startswith("rocksdb"):
            of_rocksdb.add(cores)
        else:
            own.append(cores)
    everywhere = frozenset(os.sched_getaffinity(0))
    assert of_rocksdb == {everywhere}
    # RocksDB's clock has the name of whoever started it.
    assert [cores for cores in own if cores != {shared.settings.core}] == [everywhere]


# --- records as large as the broker takes them ---------------------------------------------------------


def test_a_record_as_large_as_the_broker_takes_stops_nobody(shared: Stream) -> None:
    """A dead letter is larger than its record by its headers, and is not compressed as the record was."""
    stream, settings = shared, shared.settings
    topic = settings.topics.transactions
    packed = Sent(b"large-1", b" " * 6_000_000)
    full = Sent(b"large-1", random.Random(1).randbytes(1_048_588 - 100))
    within = Sent(b"large-1", random.Random(2).randbytes(MAX_DEAD_LETTER_BYTES - 100))
    places = stream.produce([sent("large-1", Event("before", START, 100))])
    producer = KafkaProducer(
        **client_config(settings.kafka),
        acks="all",
        max_request_size=20_000_000,
        compression_type="gzip",
    )
    try:
        result = producer.send(topic, key=b"large-1", value=packed.value).get(60)
        places.append((result.partition, result.offset))
    finally:
        producer.close()
    places += stream.produce([full, within, sent("large-1", Event("behind", START + 1, 100))])
    stream.wait_answered(places)
    letters = {
        int(found.header(DeadLetterHeader.OFFSET)): found
        for found in stream.read("dead_letters")
        if found.partition == places[0][0]
    }
    assert not {offset for _, offset in (places[0], places[-1])} & letters.keys()
    for (_, offset), record in zip(places[1:-1], [packed, full, within], strict=True):
        letter, value = letters[offset], record.value or b""
        cut = len(value) > MAX_DEAD_LETTER_BYTES
        assert letter.key == record.key
        assert letter.value == (value[: len(letter.value or b"")] if cut else value)
        assert len(letter.value or b"") > MAX_DEAD_LETTER_BYTES * 0.9
        assert (f"of {len(value) + len(b'large-1')} bytes" in letter.header(DeadLetterHeader.REASON)) == cut


# --- ends and beginnings -------------------------------------------------------------------------------


def test_a_restart_goes_on_where_the_stop_was(make_stream: MakeStream) -> None:
    stream = make_stream(kafka={"max_poll_records": 40})
    first = stream.start()
    stream.produce(traffic("stop", 1_200, users=10))
    until(lambda: len(stream.read("decisions")) > 100, "no decisions")
    children = children_of(first.process.pid)
    assert first.stop() == 0
    assert not is_running(first.process.pid)
    assert not any(map(is_running, children))
    assert "Traceback" not in first.log
    stream.produce(traffic("stop", 300, users=10, begin=1_200))
    second = stream.start()
    stream.wait_answered()
    assert check_decisions(stream, "stop", once=True) == len(stream.sent)
    # A state folder that is lost comes back from the changelog.
    assert second.stop() == 0
    assert any(stream.settings.state_dir.rglob("*.db"))
    shutil.rmtree(stream.settings.state_dir)
    stream.produce(traffic("stop", 300, users=10, begin=1_500))
    third = stream.start()
    stream.wait_answered()
    assert third.metric("riskstream_recovered_records_total") > 0
    assert check_decisions(stream, "stop", once=True) == len(stream.sent)
    check_alerts(stream)
    third.process.send_signal(signal.SIGINT)
    assert third.wait_end() == 0


def test_a_sigkill_loses_nothing_and_counts_nothing_twice(make_stream: MakeStream) -> None:
    stream = make_stream(kafka={"max_poll_records": 25})
    for life in range(3):
        worker = stream.start()
        answered = len(stream.answered())
        stream.produce(traffic("kill", 700, users=10, begin=700 * life))
        if life < 2:
            until(lambda: len(stream.answered()) > answered + 50, "no decisions")  # noqa: B023 - called here
            worker.kill()
    stream.wait_answered()
    assert check_decisions(stream, "kill", once=False) == len(stream.sent)
    check_alerts(stream)
    assert stream.workers[-1].stop() == 0


def test_two_workers_share_the_partitions_and_hand_them_over(make_stream: MakeStream) -> None:
    stream = make_stream(kafka={"max_poll_records": 100})
    elsewhere = stream.settings.model_copy(update={"state_dir": stream.folder / "state-of-two"})
    begins = itertools.count(step=4)

    def stream_on() -> None:
        stream.produce(traffic("two", 4, users=40, begin=next(begins)))

    one = stream.start()
    stream_on()
    two = stream.start(elsewhere, ready=False)

    def both_take() -> bool:
        stream_on()
        return two.status("/readyz") == 200 and two.metric("riskstream_transactions_total") > 0

    until(both_take, f"the second worker takes nothing:\n{two.log}")
    before = one.metric("riskstream_transactions_total")
    until(
        lambda: stream_on() or one.metric("riskstream_transactions_total") > before,
        "the first one takes nothing now",
    )
    assert one.stop() == 0
    for _ in range(50):
        stream_on()
    stream.wait_answered()
    assert check_decisions(stream, "two", once=True) == len(stream.sent)
    check_alerts(stream)
    assert two.stop() == 0
    assert "Traceback" not in one.log + two.log


# --- what cannot start ---------------------------------------------------------------------------------


def ended(worker: Worker, says: Sequence[str], status: int) -> None:
    try:
        assert worker.wait_end() == status, worker.log
        line = readable_line(worker)
        assert all(part in line for part in says), line
        assert len(line) < 500
    finally:
        worker.kill()
    assert not is_running(worker.process.pid)


@pytest.mark.parametrize(
    ("what", "status", "says"),
    [
        ("no bundle", 3, ["no model bundle in", "riskstream train"]),
        ("a damaged bundle", 3, ["damaged", "SHA-256"]),
        ("a model of other features", 3, ["takes 7 features"]),
        ("no broker", 4, ["127.0.0.1", "RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS"]),
        ("a wrong setting", 2, ["RISKSTREAM_KAFKA__SESSION_TIMEOUT_SECONDS"]),
        ("an unknown setting", 2, ["RISKSTREAM_COLOUR"]),
        ("a core that is not there", 2, ["RISKSTREAM_CORE", "4096 is not one of"]),
    ],
)
def test_what_cannot_start_says_so_in_one_line(
    what: str,
    status: int,
    says: list[str],
    embedded_broker: Broker,
    tmp_path: Path,
    bundle_folder: Path,
) -> None:
    bundle = tmp_path / "bundle"
    if what != "no bundle":
        shutil.copytree(bundle_folder, bundle)
    settings = settings_for(
        embedded_broker,
        bundle=bundle,
        state_dir=tmp_path / "state",
        kafka={"request_timeout_seconds": 1.0},
    )
    variables = settings.child_environment()
    if what == "a damaged bundle":
        with (bundle / "model.txt").open("ab") as file:
            file.write(b"\n")
    elif what == "a model of other features":
        Bundle(model_text(7), "seven", made_bundle().spec).save(bundle)
    elif what == "no broker":
        variables["RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS"] = f"127.0.0.1:{free_port()}"
    elif what == "a wrong setting":
        variables["RISKSTREAM_KAFKA__SESSION_TIMEOUT_SECONDS"] = "soon"
    elif what == "an unknown setting":
        variables["RISKSTREAM_COLOUR"] = "red"
    elif what == "a core that is not there":
        variables["RISKSTREAM_CORE"] = "4096"
    ended(Worker(settings, tmp_path / "log", variables), says, status)


def test_an_occupied_metrics_port_is_one_readable_line(make_stream: MakeStream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        stream = make_stream(metrics={"port": port})
        ended(stream.start(ready=False), ["RISKSTREAM_METRICS__PORT", str(port)], 2)


def test_topics_of_another_shape_are_one_readable_line(make_stream: MakeStream) -> None:
    stream = make_stream(topics={"partitions": 2})
    topics = stream.settings.topics.model_copy(update={"partitions": 3})
    worker = stream.start(stream.settings.model_copy(update={"topics": topics}), ready=False)
    ended(worker, [stream.settings.topics.transactions, "has 2 partitions, not 3"], 4)


def test_no_process_is_left(shared: Stream) -> None:
    """The last word on the workers of this module, whatever way they ended."""
    mine = {worker.process.pid for worker in shared.workers}
    running = [
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.pid not in mine and "from stream.cli import main; main()" in child.cmdline()
    ]
    assert running == []
