"""The card recipe's week on Apache Kafka: a worker decides it as the files have it, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.card_worlds import World, draw
from benchmarks.cluster import Cluster
from benchmarks.stream_week import learn, replay, up_to_week
from offline.evaluation.prequential import Protocol
from offline.training.recipes import CARDS

if TYPE_CHECKING:
    from pathlib import Path

    from stream.kafka.local.base import Broker

WEEK_MS = round(datetime(2018, 5, 12, tzinfo=UTC).timestamp() * 1000)


@pytest.mark.kafka
@pytest.mark.slow
def test_the_stream_decides_a_week_as_offline(kafka_broker: Broker, tmp_path: Path) -> None:
    table, _ = draw(World(5, customers=60, terminals=120, days=50))
    protocol = Protocol(WEEK_MS, 1)
    table = up_to_week(table, protocol)
    learnt = learn(table, replace(CARDS, trees=40), protocol)
    names = list(learnt.spec.names)
    for name in ("user_max_to_usual_7d", "merchant_fraud_count_28d", "merchant_fraud_to_usual_min_28d"):
        assert np.nanmax(learnt.features.matrix[learnt.fold.test][:, names.index(name)]) > 0
    decided: list[int] = []
    found = replay(Cluster(kafka_broker), learnt, tmp_path, progress=decided.append)
    assert sum(decided) == len(table) == found.week.transactions + found.before.transactions
    assert found.week.transactions > 300
    for part in (found.week, found.before):
        assert (part.outcomes, part.features, part.scores, part.by_feature) == (0, 0, 0, {})
    np.testing.assert_allclose(found.scores, learnt.scores, rtol=0, atol=5.1e-5)
    assert len(np.unique(found.scores)) > 100


def test_a_shorter_history_is_the_end_of_the_longer_one() -> None:
    table, _ = draw(World(5, customers=60, terminals=120, days=50))
    protocol = Protocol(WEEK_MS, 1)
    whole, short = up_to_week(table, protocol), up_to_week(table, protocol, days=10)
    assert whole.event_time_ms.max() < WEEK_MS + 7 * 86_400_000 <= table.event_time_ms.max()
    assert short.event_time_ms.min() >= WEEK_MS - 10 * 86_400_000
    assert short.transaction_id.tolist() == whole.transaction_id.tolist()[-len(short) :]
