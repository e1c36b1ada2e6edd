"""The parts of the entity join's benchmark that need no broker: its state, its models, its figures as a table."""

from __future__ import annotations

import json

import orjson
import pytest

from benchmarks import report
from benchmarks.entity_join import summary
from benchmarks.entity_join_workload import VARIANTS, decide, entity_join_workloads
from benchmarks.workload import PARTITIONS, WorkloadSpec
from stream.events.models import Outcome
from stream.scoring.bundle import Bundle
from stream.state.format import user_of_key
from stream.state.store import MemoryStore

SPEC = WorkloadSpec(users=40, events=12, transactions=400, trees=8, leaves=6, alert_share=0.1)


@pytest.fixture(scope="module")
def works(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RISKSTREAM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return entity_join_workloads(SPEC)


def decided(work):
    """Every plan of the workload's transactions on the workload's state."""
    memory = MemoryStore()
    memory.write([(key, value) for _, key, value in work.records()])
    transactions = [(int(key[1:]), value) for _, key, value in work.transactions]
    return list(decide(Bundle.load(work.bundle), memory, transactions))


@pytest.mark.parametrize("case", VARIANTS, ids=lambda case: case.name)
def test_every_model_decides_every_transaction(works, case):
    """No log of the made past is refused, and none is empty: entities and their labels are known."""
    work = works[case.name]
    all_effects = decided(work)
    hop = {}
    for effects in all_effects:
        for event, count in effects.join_counts.items():
            hop[event] = hop.get(event, 0) + count
    decisions = [orjson.loads(message.value) for effects in all_effects for message in effects.decisions]
    assert sorted(one["transaction_id"] for one in decisions) == sorted(
        orjson.loads(value)["transaction_id"] for _, _, value in work.transactions
    )
    assert {one["outcome"] for one in decisions} == {Outcome.SCORED.value}
    assert sum(len(effects.alerts) for effects in all_effects) == pytest.approx(
        0.1 * SPEC.transactions, rel=0.3
    )
    assert hop.get(("request", "answered"), 0) == len(case.profiles) * SPEC.transactions
    assert set(hop) <= {("request", "answered"), ("transaction", "pending")}
    names = list(Bundle.load(work.bundle).spec.names)
    for profile in case.profiles:
        column = [
            effects.features[:, names.index(f"{profile.entity}_count_30d")]
            for effects in all_effects
            if len(effects.features)
        ]
        assert max(map(max, column)) > 3 or profile.entity == "merchant"


def test_models_get_the_same_transactions_in_the_same_order(works):
    first, *others = [work.transactions for work in works.values()]
    assert all(each == first for each in others)
    value = orjson.loads(first[0][2])
    assert {"merchant_id", "card_id", "device_id"} <= set(value)


def test_state_lies_where_a_worker_looks_for_it(works):
    """Histories and logs of users where their transactions go; entities spread over the partitions."""
    for name, work in works.items():
        transactions = {key: partition for partition, key, _ in work.transactions}
        entities = set()
        for partition, key, _ in work.records():
            owner, _, _ = user_of_key(key)
            if owner.startswith(b"\xff"):
                entities.add(partition)
            else:
                assert transactions.get(owner, partition) == partition
        assert entities == (set() if name == VARIANTS[0].name else set(range(PARTITIONS)))


def test_ratios_are_taken_within_a_round():
    def one(per_second, p50):
        return {"per_second": per_second, "cpu_micros": 1e6 / per_second, "p50": p50, "p99": 2 * p50}

    found = summary(
        {
            "user features only": [one(1000, 4), one(2000, 2), one(4000, 1)],
            "with merchants": [one(500, 8), one(500, 4), one(4000, 3)],
        }
    )
    assert found["ratio"]["user features only"] == dict.fromkeys(found["ratio"]["user features only"], 1.0)
    assert found["ratio"]["with merchants"]["per_second"] == 0.5
    assert found["ratio"]["with merchants"]["p50"] == 2.0
    assert found["median"]["with merchants"]["per_second"] == 500
    made = {"entity-join": {"rate": 1000.0, **json.loads(json.dumps(found))}}
    (table,) = report.tables(made)
    assert len(table.rows) == 2
    assert {len(row) for row in table.rows} == {len(table.head)}
    assert "| with merchants | 500 | 500 - 4,000 | 0.50 | 2000.0 |" in report.markdown(made, [])
