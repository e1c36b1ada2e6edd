"""Scores on request with profiles: the vector that the stream then makes of the same transaction, bit by bit."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import orjson
import pytest

from offline.features.build import LATE, SCORED, build_features
from offline.features.entity_logs import load_logs
from offline.features.histories import load_histories
from stream.features.profiles.log import HEAD_KIND
from stream.pipeline.effects import PipelineConfig
from stream.pipeline.entity_join.messages import CODES, partition_of
from stream.pipeline.preview import Preview
from stream.state.format import entity_prefix, record_key
from stream.state.hashing import hash_id
from stream.state.store import MemoryStore
from support.bundles import made_bundle
from support.entity_joins import TOPICS, Bus, Worker
from support.profiles import (
    DAY_MS,
    OTHER_PROFILES,
    PROFILES,
    START_MS,
    corrected,
    labels_of,
    out_of_order,
    table_of,
    transactions,
)

CONFIG = PipelineConfig(decision_features=True)
NOW_MS = START_MS + 1000 * DAY_MS
NAMES = {SCORED: "scored", LATE: "late", 2: "duplicate"}


def new_bus(partitions):
    return Bus(partitions, stores={at: MemoryStore() for at in range(partitions)})


def work(worker):
    while waiting := worker.waiting():
        assert worker.round(waiting, 10)


def preview_of(bundle):
    return Preview(bundle, lateness_ms=CONFIG.lateness_ms, max_reasons=5)


class Asking:
    """Asks a bus's stores, each about its own, as workers would."""

    def __init__(self, bus, bundle):
        self.bus = bus
        self.preview = preview_of(bundle)

    def __call__(self, value):
        """Return the vector and the answer."""
        row = self.preview.row(value, NOW_MS)
        before = {at: dict(store) for at, store in self.bus.stores.items()}
        answers = {}
        for one in self.preview.profiles.requests(row, 0):
            store = self.bus.stores[partition_of(one.name, self.bus.partitions)]
            [answers[one.entity]] = self.preview.profiles.read_profile([one], store)
        store = self.bus.stores[sum(value["user_id"].encode()) % self.bus.partitions]
        [answer] = self.preview.score([row], store, [answers])
        matrix, _ = self.preview._vectors([row], {row.user_id: 0}, store, [answers])
        assert {at: dict(store) for at, store in self.bus.stores.items()} == before
        return matrix[0], answer


def compare(vector, answer, decision):
    assert answer["outcome"] == decision["outcome"]
    assert ("risk_score" in answer) == (answer["outcome"] != "duplicate")
    if "risk_score" in answer:
        values = [math.nan if value is None else value for value in decision["features"].values()]
        np.testing.assert_array_equal(vector, values)
        for name in ("risk_score", "risk_level", "prediction", "model_version"):
            assert answer[name] == decision[name]


@pytest.mark.parametrize(("seed", "profiles"), [(0, PROFILES), (1, OTHER_PROFILES)])
def test_a_request_gets_what_the_stream_decides_next(seed, profiles):
    """Users, merchants, devices, cards and addresses, with labels that come before or after; three partitions.

    Some are late for their user, some for an entity only, some are there already, some name no entity.
    """
    rng = random.Random(seed)
    rows = out_of_order(rng, transactions(rng, 150, users=25))
    rows = [row for row in rows for _ in range(rng.choice([1] * 20 + [2]))]
    labels = corrected(rng, labels_of(rng, rows))
    bundle = made_bundle(entities=profiles)
    bus = new_bus(3)
    ask = Asking(bus, bundle)
    worker = Worker(bus, bundle, CONFIG, NOW_MS)
    outcomes, told = Counter(), Counter()
    for row in rows:
        about = [one for one in labels if one["transaction_id"] == row["transaction_id"]]
        early = rng.randint(0, len(about))
        for label in about[:early]:
            bus.produce(TOPICS.labels, label["user_id"], label)
        work(worker)
        vector, answer = ask(row)
        bus.produce(TOPICS.transactions, row["user_id"], row)
        work(worker)
        decision = orjson.loads(bus.decisions[-1][1].value)
        assert decision["transaction_id"] == row["transaction_id"]
        compare(vector, answer, decision)
        outcomes[answer["outcome"]] += 1
        known = ~np.isnan(vector)
        told.update(name for name, there in zip(bundle.spec.names, known, strict=True) if there)
        for label in about[early:]:
            bus.produce(TOPICS.labels, label["user_id"], label)
    assert min(outcomes[name] for name in NAMES.values()) > 0, outcomes
    assert bus.join_counts["request", "late"] > 0
    profile_names = [name for one in profiles for name in one.names]
    assert min(told[name] for name in profile_names) > 0, told


def test_logs_that_cannot_be_used_leave_their_features_unknown():
    """One merchant's, and one user's own beside a history that is sound; the stream does the same."""
    rng = random.Random(5)
    rows = [row | {"merchant_id": "m0"} for row in transactions(rng, 40)]
    bundle = made_bundle(entities=PROFILES)
    bus = new_bus(1)
    ask = Asking(bus, bundle)
    for row in rows[:-1]:
        bus.produce(TOPICS.transactions, row["user_id"], row)
    worker = Worker(bus, bundle, CONFIG, NOW_MS)
    work(worker)
    user = rows[-1]["user_id"].encode()
    for prefix, name in (
        (entity_prefix(CODES["merchant"], hash_id("m0")), "merchant_count_2d"),
        (user, "user_count_1d"),
    ):
        key = record_key(prefix, HEAD_KIND)
        bus.stores[0][key] = bus.stores[0][key][:-1] + b"!"
        vector, answer = ask(rows[-1])
        assert math.isnan(vector[list(bundle.spec.names).index(name)])
    bus.produce(TOPICS.transactions, rows[-1]["user_id"], rows[-1])
    worker.pipeline.forget()
    work(worker)
    compare(vector, answer, orjson.loads(bus.decisions[-1][1].value))
    assert bus.join_counts["request", "unusable_state"] == 2


@pytest.mark.parametrize(("seed", "profiles"), [(2, PROFILES), (3, OTHER_PROFILES)])
def test_a_file_says_what_its_next_row_would_get(seed, profiles):
    """At every length of it, against the features of the file with that row at its end."""
    rng = random.Random(seed)
    rows = out_of_order(rng, transactions(rng, 150, users=40))
    labels = corrected(rng, labels_of(rng, rows))
    bundle = made_bundle(entities=profiles)
    preview = preview_of(bundle)
    expected = build_features(table_of(rows, labels), bundle.spec, allowed_lateness_ms=CONFIG.lateness_ms)
    names = list(bundle.spec.names)
    seen = Counter()
    for length in range(1, len(rows)):
        table = table_of(rows[:length], labels)
        outcome = np.zeros(length, np.uint8)
        store = load_histories(table, lateness_ms=CONFIG.lateness_ms, outcome=outcome)
        store |= load_logs(table, bundle.spec, outcome == SCORED, lateness_ms=CONFIG.lateness_ms)
        row = preview.row(rows[length], NOW_MS)
        answers = preview.profiles.profile_responses([row], store)
        [answer] = preview.score([row], store, answers)
        matrix, _ = preview._vectors([row], {row.user_id: 0}, store, answers)
        np.testing.assert_array_equal(outcome, expected.outcome[:length])
        assert answer["outcome"] == NAMES[expected.outcome[length]]
        if answer["outcome"] != "duplicate":
            np.testing.assert_array_equal(matrix[0], expected.matrix[length], str(names))
            seen.update(np.flatnonzero(~np.isnan(matrix[0])).tolist())
    profile_names = [name for one in profiles for name in one.names]
    assert min(seen[names.index(name)] for name in profile_names) > 0


def test_a_file_may_be_without_an_entity_or_without_rows():
    bundle = made_bundle(entities=PROFILES)
    preview = preview_of(bundle)
    row = preview.row(
        transactions(random.Random(1), 1)[0] | {"transaction_id": "new", "merchant_id": "m"}, NOW_MS
    )
    table = table_of(transactions(random.Random(2), 20))
    for some in (table.slice(0, 0), replace(table, merchant_id=None, device_id=None)):
        outcome = np.zeros(len(some), np.uint8)
        store = load_histories(some, lateness_ms=CONFIG.lateness_ms, outcome=outcome)
        store |= load_logs(some, bundle.spec, outcome == SCORED, lateness_ms=CONFIG.lateness_ms)
        answers = preview.profiles.profile_responses([row], store)
        matrix, _ = preview._vectors([row], {row.user_id: 0}, store, answers)
        assert matrix[0, list(bundle.spec.names).index("merchant_count_2d")] == 1
