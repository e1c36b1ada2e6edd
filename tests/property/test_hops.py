"""What a worker makes of a model with profiles, against the features of whole files."""

from __future__ import annotations

import math
import random

import numpy as np
import orjson
import pytest
from bundles import made_bundle
from hops import START_MS, TOPICS, Bus, run

from offline.features import build_features
from offline.table import MISSING, TransactionTable
from stream.features.entities import ACTIVITY_AGGREGATES, LABEL_AGGREGATES, LABEL_RECENCY, EntityProfile
from stream.pipeline import PipelineConfig

DAY_MS = 86_400_000
CONFIG = PipelineConfig(decision_features=True)
PROFILES = (
    EntityProfile("user", (1.0, 5.0), ACTIVITY_AGGREGATES, usual_days=9.0),
    EntityProfile(
        "merchant", (2.0,), ACTIVITY_AGGREGATES[:5], (3.0, 8.0), LABEL_AGGREGATES, LABEL_RECENCY, 2.0, 20.0
    ),
    EntityProfile("device", (1.0,), ("count", "user_distinct"), (4.0,), ("fraud_share",), (), 1.0, 20.0),
)


def transactions(rng, count, users=4, merchants=3, devices=3):
    """Rows in order of time, some without a merchant or a device, some twice."""
    rows, time = [], START_MS
    for number in range(count):
        time += rng.choice([0, 1, DAY_MS // 50, rng.randrange(DAY_MS // 4)])
        name = f"t{rng.randrange(number)}" if number and rng.random() < 0.05 else f"t{number}"
        row = {
            "transaction_id": name,
            "user_id": f"u{rng.randrange(users)}",
            "event_time": time,
            "amount": rng.randrange(1, 500),
            "currency": "EUR",
            "channel": "web",
            "transaction_type": "purchase",
        }
        if rng.random() < 0.9:
            row["merchant_id"] = f"m{rng.randrange(merchants)}"
        if rng.random() < 0.7:
            row["device_id"] = f"d{rng.randrange(devices)}"
        rows.append(row)
    return rows


def labels_of(rng, rows):
    """One label of most transactions, known up to ten days later."""
    seen, labels = set(), []
    for row in rows:
        who = (row["user_id"], row["transaction_id"])
        if who in seen or rng.random() < 0.2:
            continue
        seen.add(who)
        labels.append(
            {
                "transaction_id": row["transaction_id"],
                "user_id": row["user_id"],
                "is_fraud": rng.random() < 0.4,
                "event_time": row["event_time"],
                "label_time": row["event_time"] + rng.randrange(0, 10 * DAY_MS),
            }
        )
    return sorted(labels, key=lambda label: label["label_time"])


def table_of(rows, labels=()):
    known = {(label["user_id"], label["transaction_id"]): label for label in labels}
    found = [known.get((row["user_id"], row["transaction_id"])) for row in rows]

    def texts(name):
        return np.array([row.get(name) for row in rows], np.object_)

    return TransactionTable(
        transaction_id=texts("transaction_id"),
        user_id=texts("user_id"),
        event_time_ms=np.array([row["event_time"] for row in rows], np.int64),
        amount_minor=np.array([row["amount"] * 100 for row in rows], np.int64),
        minor_units=np.full(len(rows), 100, np.int64),
        currency=texts("currency"),
        channel=texts("channel"),
        transaction_type=texts("transaction_type"),
        pre_balance_minor=np.full(len(rows), MISSING, np.int64),
        post_balance_minor=np.full(len(rows), MISSING, np.int64),
        merchant_id=texts("merchant_id"),
        device_id=texts("device_id"),
        is_fraud=np.array([-1 if one is None else int(one["is_fraud"]) for one in found], np.int8),
        label_time_ms=np.array([0 if one is None else one["label_time"] for one in found], np.int64),
    )


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


@pytest.mark.parametrize("seed", range(6))
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


@pytest.mark.parametrize("seed", range(6))
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
