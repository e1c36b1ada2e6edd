"""What a worker makes of a model with profiles, against the features of whole files."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import orjson
import pytest

from offline.features.build import build_features
from stream.events.mapping import parse_mapping
from stream.events.message_mapping import MessageMapping
from stream.events.records import ConsumerRecord, ProducerRecord
from stream.pipeline.effects import Batch, PipelineConfig
from stream.pipeline.entity_join.messages import (
    EntityRequest,
    LabelUpdate,
    PendingTransaction,
    decode_join_record,
    decode_request,
    ownership_marker,
)
from stream.pipeline.entity_join.topology import EntityJoinPipeline
from stream.state.hashing import hash_id
from stream.state.store import MemoryStore
from support.bundles import made_bundle
from support.entity_joins import TOPICS, Bus, Worker, run
from support.profiles import (
    OTHER_PROFILES,
    PROFILES,
    START_MS,
    corrected,
    labels_of,
    out_of_order,
    table_of,
    transactions,
)

DAY_MS = 86_400_000
CONFIG = PipelineConfig(decision_features=True)


def decided(bus):
    """By partition and offset, every decision; two about one transaction must be the same."""
    found = {}
    for partition, message in bus.decisions:
        body = orjson.loads(message.value)
        known = found.setdefault((partition, body["source_offset"]), message.value)
        assert known == message.value
    return {at: orjson.loads(value) for at, value in found.items()}


def compare(bus, bundle, order, expected):
    """``order`` holds each transaction's place in the source."""
    decisions = decided(bus)
    names = {0: "scored", 1: "late", 2: "duplicate"}
    assert len(decisions) == len(order)
    for row, at in enumerate(order):
        decision = decisions[at]
        assert decision["outcome"] == names[expected.outcome[row]]
        if expected.outcome[row] < 2:
            values = [math.nan if value is None else value for value in decision["features"].values()]
            np.testing.assert_array_equal(values, expected.matrix[row], str(bundle.spec.names))


def feed(bus, rows, labels, then=lambda: None):
    """Send transactions and labels in the order of time; returns where each transaction went."""
    both = [(row["event_time"], 1, row) for row in rows]
    both += [(label["label_time"], 0, label) for label in labels]
    both.sort(key=lambda one: one[:2])
    places = []
    for _, kind, value in both:
        topic = TOPICS.transactions if kind else TOPICS.labels
        bus.produce(topic, value["user_id"], value)
        if kind:
            partition = sum(value["user_id"].encode()) % bus.partitions
            places.append((partition, len(bus.of(topic, partition)) - 1))
        then()
    return places


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("crashes", [0, 25])
def test_without_labels_one_partition_gives_the_features_of_the_file(seed, crashes):
    rng = random.Random(seed)
    rows = transactions(rng, 150)
    bundle = made_bundle(entities=PROFILES)
    bus = Bus(1)
    order = feed(bus, rows, [])
    run(bus, bundle, CONFIG, START_MS + 1000 * DAY_MS, rng=rng, crashes=crashes)
    expected = build_features(table_of(rows), bundle.spec, allowed_lateness_ms=CONFIG.lateness_ms)
    compare(bus, bundle, order, expected)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("partitions", "crashes"), [(1, 0), (3, 0), (3, 1)])
def test_labels_that_come_when_they_are_known_give_the_features_of_the_file(seed, partitions, crashes):
    """Each record is worked off before the next one comes; every worker begins with what is stored."""
    rng = random.Random(seed)
    rows = transactions(rng, 120)
    labels = labels_of(rng, rows)
    bundle = made_bundle(entities=PROFILES)
    bus = Bus(partitions)

    def work():
        run(bus, bundle, CONFIG, START_MS + 1000 * DAY_MS, rng=rng, crashes=crashes)

    order = feed(bus, rows, labels, work)
    expected = build_features(table_of(rows, labels), bundle.spec, allowed_lateness_ms=CONFIG.lateness_ms)
    compare(bus, bundle, order, expected)
    assert np.nansum(expected.matrix[:, list(bundle.spec.names).index("merchant_fraud_count_3d")]) > 0


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("crashes", [0, 2])
def test_out_of_order_transactions_and_corrected_labels_give_the_features_of_the_file(seed, crashes):
    """Labels come before or after their transaction, long before they count."""
    rng = random.Random(seed)
    rows = out_of_order(rng, transactions(rng, 120, users=60))
    labels = corrected(rng, labels_of(rng, rows))
    bundle = made_bundle(entities=(PROFILES, OTHER_PROFILES)[seed])
    bus = Bus(2)
    arrived, order = [], []

    def work():
        run(bus, bundle, CONFIG, START_MS + 1000 * DAY_MS, rng=rng, crashes=crashes)

    def send_labels(some):
        for label in some:
            bus.produce(TOPICS.labels, label["user_id"], label)
            arrived.append(label)

    for row in rows:
        about = [one for one in labels if one["transaction_id"] == row["transaction_id"]]
        about = [one for one in about if one["user_id"] == row["user_id"] and one not in arrived]
        early = rng.randint(0, len(about))
        send_labels(about[:early])
        work()
        partition = sum(row["user_id"].encode()) % bus.partitions
        order.append((partition, len(bus.of(TOPICS.transactions, partition))))
        bus.produce(TOPICS.transactions, row["user_id"], row)
        work()
        send_labels(about[early:])
        work()
    expected = build_features(table_of(rows, arrived), bundle.spec, allowed_lateness_ms=CONFIG.lateness_ms)
    compare(bus, bundle, order, expected)
    assert bus.join_counts["label", "waiting"] > 0
    assert bus.join_counts["request", "late"] > 0
    assert bus.join_counts["label_update", "expired"] > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_label_of_the_same_round_is_told_behind_the_question(seed):
    """Whichever of a round's batches comes first."""
    rng = random.Random(seed)
    rows = transactions(rng, 150)
    bus = Bus(1)
    feed(bus, rows, labels_of(rng, rows))
    run(bus, made_bundle(entities=PROFILES), CONFIG, START_MS + 1000 * DAY_MS, rng=rng)
    assert bus.join_counts["label_update", "applied"] == bus.join_counts["label_update", "sent"] > 0


@pytest.mark.parametrize("seed", range(3))
def test_no_label_is_lost_whatever_its_round_and_whoever_falls(seed):
    rng = random.Random(seed)
    rows = transactions(rng, 150)
    labels = labels_of(rng, rows)
    bus = Bus(1)
    feed(bus, rows, labels)
    run(bus, made_bundle(entities=PROFILES), CONFIG, START_MS + 1000 * DAY_MS, rng=rng, most=3, crashes=60)
    heard = [decode_request(record.value) for record in bus.of(TOPICS.requests, 0)]
    told = {(what.id_hash, what.entity) for what in heard if isinstance(what, LabelUpdate)}
    first = {(row["user_id"], row["transaction_id"]): row for row in reversed(rows)}
    expected = {
        (hash_id(f"{label['user_id']}\0{label['transaction_id']}"), code)
        for label in labels
        for name, code in (("merchant_id", 2), ("device_id", 4))
        if name in first[label["user_id"], label["transaction_id"]]
    }
    assert told == expected


@pytest.mark.parametrize("seed", range(4))
def test_a_label_that_comes_late_counts_however_records_come_in_batches(seed):
    """Merchants keep transactions for 23 days; by whole chunks, so that some are there for longer."""
    rng = random.Random(seed)
    pipeline = EntityJoinPipeline(made_bundle(entities=PROFILES), CONFIG, TOPICS)
    heard, times = [], [START_MS]
    for at in range(300):
        times.append(times[-1] + rng.randrange(DAY_MS))
        merchant = rng.randrange(2)
        heard.append(EntityRequest(2, merchant, at, 0, times[at], 100 + at, 100, 7, at, 1.0).encode().value)
        old = rng.randrange(max(0, at - 60), at + 1)
        known = times[old] + rng.randrange(20 * DAY_MS)
        heard.append(LabelUpdate(2, rng.randrange(2), old, 1, known, at).encode().value)

    def answers(most):
        store, found, at = MemoryStore(), [], 0
        while at < len(heard):
            pipeline.on_rebalanced()  # what follows knows what is stored
            size = rng.randint(1, most)
            records = [ConsumerRecord(at, START_MS, None, value) for value in heard[at : at + size]]
            (effects,) = pipeline.process_all([Batch(TOPICS.requests, 0, 1, records)], [store], START_MS)
            store.write(effects.writes)
            found += [
                decode_join_record(ConsumerRecord(0, 0, None, message.value)).features
                for message in effects.outputs.get((TOPICS.responses, 0), ())
            ]
            at += size
        return found

    np.testing.assert_array_equal(answers(1), answers(len(heard)))
    np.testing.assert_array_equal(answers(1), answers(20))


def test_a_former_owners_late_case_is_not_believed():
    """It was paused, woke behind its successor's mark, opened a case again and fell before it asked."""
    bus, rng = Bus(1), random.Random(1)
    bundle = made_bundle(entities=PROFILES)
    rows = [row for row in transactions(rng, 30) if "merchant_id" in row]
    feed(bus, rows, [])
    run(bus, bundle, CONFIG, START_MS + 100 * DAY_MS, rng=rng)
    answers = bus.of(TOPICS.responses, 0)
    late = next(record for record in answers if isinstance(decode_join_record(record), PendingTransaction))
    bus.send(TOPICS.responses, 0, ownership_marker())
    successor = Worker(bus, bundle, CONFIG, START_MS + 100 * DAY_MS)
    successor.pipeline.on_partition_owned(0, 7, len(answers) - 1)
    bus.send(TOPICS.responses, 0, ProducerRecord(late.key, late.value))
    while waiting := successor.waiting():
        successor.round(waiting, 10)
    assert successor.pipeline.backlog == 0
    assert bus.committed[TOPICS.responses, 0] == len(answers)
    # Its own cases are believed, and carry its epoch.
    bus.produce(
        TOPICS.transactions, "new", rows[0] | {"user_id": "new", "event_time": START_MS + 50 * DAY_MS}
    )
    successor.round([(TOPICS.transactions, 0)], 10)
    assert decode_join_record(answers[-1]).epoch == 7
    while waiting := successor.waiting():
        successor.round(waiting, 10)
    assert successor.pipeline.backlog == 0
    assert b'"new"' in bus.decisions[-1][1].value


def test_pending_transactions_of_a_mapped_topic_are_decoded_with_the_mapping():
    rng = random.Random(4)
    rows = transactions(rng, 80)
    names = {"user_id": "payer", "merchant_id": "shop"}
    fields = (
        "transaction_id",
        "user_id",
        "event_time",
        "amount",
        "merchant_id",
        "card_id",
        "device_id",
        "ip",
    )
    columns = "".join(f'{name} = "{names.get(name, name)}"\n' for name in fields)
    text = (
        f'[columns]\n{columns}[constants]\ncurrency = "EUR"\nchannel = "web"\ntransaction_type = "purchase"\n'
    )
    mapping = MessageMapping(parse_mapping(text + '[time]\nformat = "epoch_ms"\n', "test"))
    bundle = made_bundle(entities=PROFILES)
    bus = Bus(1)
    for row in rows:
        renamed = {names.get(name, name): value for name, value in row.items()}
        bus.produce(TOPICS.transactions, row["user_id"], renamed)
    config = dataclasses.replace(CONFIG, mapping=mapping)
    run(bus, bundle, config, START_MS + 1000 * DAY_MS, rng=rng)
    expected = build_features(table_of(rows), bundle.spec, allowed_lateness_ms=CONFIG.lateness_ms)
    compare(bus, bundle, [(0, at) for at in range(len(rows))], expected)
