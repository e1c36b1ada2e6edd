"""Unforeseen exceptions in the stages of the entity join: nothing is decided wrongly, nothing stays pending."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest

from offline.features.build import build_features
from stream.events.models import DeadLetterHeader
from stream.pipeline.effects import PipelineConfig
from stream.pipeline.entity_join.topology import EntityJoinPipeline
from support.bundles import made_bundle
from support.entity_joins import TOPICS, Bus, run
from support.profiles import PROFILES, START_MS, labels_of, table_of, transactions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.pipeline.effects import Batch, BatchEffects
    from stream.state.store import StateReader

NOW_MS = START_MS + 1000 * 86_400_000
CONFIG = PipelineConfig(decision_features=True)


def failing(rng: random.Random, poison: tuple[str, int] | None = None) -> type[EntityJoinPipeline]:
    """Return a pipeline that often fails at several records, or always at the one at a topic's offset."""

    class Failing(EntityJoinPipeline):
        def process_all(
            self, batches: Sequence[Batch], readers: Sequence[StateReader], now_ms: int
        ) -> list[BatchEffects]:
            effects = super().process_all(batches, readers, now_ms)
            if sum(len(batch.records) for batch in batches) > 1 and rng.random() < 0.4:
                raise LookupError("several")
            for batch in batches:
                if any((batch.topic, record.offset) == poison for record in batch.records):
                    raise LookupError("the one")
            return effects

    return Failing


def bus_of(rows: Sequence[dict[str, Any]]) -> Bus:
    """Return topics with these transactions."""
    bus = Bus(1)
    for row in rows:
        bus.produce(TOPICS.transactions, row["user_id"], row)
    return bus


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("crashes", [0, 10])
def test_a_failed_attempt_leaves_no_trace(seed: int, crashes: int) -> None:
    rng = random.Random(seed)
    rows = transactions(rng, 60)
    bundle, bus = made_bundle(entities=PROFILES), bus_of(rows)
    run(bus, bundle, CONFIG, NOW_MS, rng=rng, crashes=crashes, kind=failing(rng))
    expected = build_features(table_of(rows), bundle.spec, allowed_lateness_ms=CONFIG.lateness_ms)
    found = {}
    for _, message in bus.decisions:
        body = orjson.loads(message.value or b"")
        assert found.setdefault(body["source_offset"], body) == body
    assert sorted(found) == list(range(len(rows)))
    assert bus.dead == []
    for at, body in found.items():
        if body["outcome"] == "scored":
            values = np.array([*body["features"].values()], np.float64)
            np.testing.assert_array_equal(values, expected.matrix[at])


@pytest.mark.parametrize("topic", [TOPICS.transactions, TOPICS.requests, TOPICS.responses, TOPICS.labels])
@pytest.mark.parametrize("offset", [0, 20])
def test_a_record_that_always_fails_is_a_dead_letter_and_keeps_nothing_pending(
    topic: str, offset: int
) -> None:
    rng = random.Random(offset)
    rows = transactions(rng, 60)
    bundle, bus = made_bundle(entities=PROFILES), bus_of(rows)
    for label in labels_of(rng, rows):
        bus.produce(TOPICS.labels, label["user_id"], label)
    run(bus, bundle, CONFIG, NOW_MS, rng=rng, kind=failing(rng, (topic, offset)))
    decided = {orjson.loads(message.value or b"")["source_offset"] for _, message in bus.decisions}
    [letter] = bus.dead
    headers = {name: value.decode() for name, value in letter.headers}
    assert "LookupError('the one')" in headers[DeadLetterHeader.REASON]
    missing = set(range(len(rows))) - decided
    rejected = headers[DeadLetterHeader.TOPIC] == TOPICS.transactions
    assert missing == ({int(headers[DeadLetterHeader.OFFSET])} if rejected else set())
    assert rejected or headers[DeadLetterHeader.TOPIC] == topic
    assert all(len(bus.of(name, 0)) == bus.committed[name, 0] for name in TOPICS.names if bus.of(name, 0))
