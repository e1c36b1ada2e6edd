"""Models with profiles on real brokers: merchants, devices and labels across the hop."""

from __future__ import annotations

import math
import random
import subprocess
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from offline.features.build import build_features
from stream.events.records import ConsumerRecord
from stream.kafka.topics import responses_topic
from stream.pipeline.entity_join.messages import CODES, PendingTransaction
from support.bundles import made_bundle
from support.profiles import PROFILES, START_MS, labels_of, table_of, transactions
from support.streams import COMMAND, Sent, labels_arrived, readable_line, sent, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.streams import Stream

    MakeStream = Callable[..., Stream]

DAY_MS = 86_400_000


def test_features_with_labels_are_those_of_the_file(make_stream: MakeStream, profiled_folder: Path) -> None:
    """Labels become known at the ends of blocks of two days, and come before what follows."""
    stream = make_stream(bundle=profiled_folder, topics={"partitions": 1})
    rng = random.Random(3)
    rows = transactions(rng, 400)
    block = 2 * DAY_MS
    labels = [one | {"label_time": -(-one["label_time"] // block) * block} for one in labels_of(rng, rows)]
    worker = stream.start()
    order, told = [], 0
    for begin in range(rows[0]["event_time"] // block * block, rows[-1]["event_time"] + 1, block):
        due = [one for one in labels if one["label_time"] == begin]
        told += len(due)
        stream.produce_labels(sent(one) for one in due)
        until(partial(labels_arrived, [worker], told), "not every label has arrived")
        order += stream.produce(sent(row) for row in rows if begin <= row["event_time"] < begin + block)
        # A label that came before its transaction would be counted twice: as waiting, and when it is told.
        stream.wait_answered()
    expected = build_features(
        table_of(rows, labels), made_bundle(entities=PROFILES).spec, allowed_lateness_ms=3 * DAY_MS
    )
    decisions = stream.decisions()
    for row, place in enumerate(order):
        (decision,) = decisions[place]
        if expected.outcome[row] < 2:
            values = [math.nan if value is None else value for value in decision["features"].values()]
            np.testing.assert_array_equal(values, expected.matrix[row])
        else:
            assert decision["outcome"] == "duplicate"
    assert worker.metric("riskstream_pending_transactions") == 0
    assert worker.stop() == 0


def traffic(seed: int, count: int) -> tuple[list[dict], list[Sent]]:
    rows = transactions(random.Random(seed), count)
    return rows, [sent(row) for row in rows]


def test_two_workers_answer_each_other_and_hand_over(
    make_stream: MakeStream, profiled_folder: Path, tmp_path: Path
) -> None:
    """Every transaction is decided, by whichever worker; what each entity was asked is known once."""
    stream = make_stream(bundle=profiled_folder)
    _, records = traffic(5, 900)
    first = stream.start()
    stream.produce(records[:300])
    second = stream.start(stream.settings.model_copy(update={"state_dir": tmp_path / "second"}))
    stream.produce(records[300:600])
    stream.wait_answered()
    assert first.metric("riskstream_assigned_partitions") == second.metric("riskstream_assigned_partitions")
    first.kill()
    stream.produce(records[600:])
    stream.wait_answered()
    for deliveries in stream.decisions().values():
        assert all(body == deliveries[0] for body in deliveries)
    assert second.stop() == 0


def test_a_bad_label_is_a_dead_letter_that_can_be_sent_again(
    make_stream: MakeStream, profiled_folder: Path
) -> None:
    stream = make_stream(bundle=profiled_folder)
    worker = stream.start()
    bad = b'{"transaction_id": "t", "user_id": "u", "is_fraud": "perhaps", "event_time": 1, "label_time": 2}'
    stream.produce_labels([Sent(b"u", bad)])
    until(lambda: stream.read("dead_letters"), "there is no dead letter")
    (letter,) = stream.read("dead_letters")
    assert (letter.key, letter.value) == (b"u", bad)
    assert letter.header("__streams.errors.topic") == stream.settings.topics.labels
    assert letter.header("riskstream.errors.field") == "is_fraud"
    done = subprocess.run(
        [*COMMAND[:-1], "dlq", "replay", "--all"],
        env=stream.settings.child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"sent 1 to {stream.settings.topics.labels}" in done.stdout, done.stderr
    until(lambda: len(stream.read("dead_letters")) == 2, "it is not refused again")
    assert worker.stop() == 0


def test_a_model_without_profiles_is_refused_while_cases_wait(
    make_stream: MakeStream, profiled_folder: Path, bundle_folder: Path
) -> None:
    stream = make_stream(bundle=profiled_folder, topics={"partitions": 1})
    worker = stream.start()
    _, records = traffic(6, 50)
    stream.produce(records)
    stream.wait_answered()
    assert worker.stop() == 0
    plain = stream.settings.model_copy(update={"bundle": bundle_folder})
    record = ConsumerRecord(0, START_MS, records[0].key, records[0].value)
    case = PendingTransaction(1, record, "00" * 8, 1 << CODES["merchant"], np.zeros(3))
    stream.send(responses_topic(stream.settings), case.encode().value)
    refused = stream.start(plain, ready=False)
    assert refused.wait_end() != 0
    assert "has not decided yet" in readable_line(refused)


def test_workers_of_both_kinds_of_model_are_not_mixed(
    make_stream: MakeStream, profiled_folder: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    stream = make_stream(bundle=bundle_folder)
    plain = stream.start()
    other = stream.settings.model_copy(update={"bundle": profiled_folder, "state_dir": tmp_path / "other"})
    profiled = stream.start(other, ready=False)
    assert profiled.wait_end() != 0
    assert "models with and without profiles" in readable_line(profiled)
    stream.workers.remove(profiled)
    _, records = traffic(7, 50)
    stream.produce(records)
    stream.wait_answered()
    assert plain.stop() == 0
