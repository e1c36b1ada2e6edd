"""Refunds have a history of their own: payments' features do not depend on them, and theirs not on payments."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.features.build import build_features, refund_rows
from offline.features.histories import load_histories
from stream.errors import StateError
from stream.features.refunds import history_key, history_name
from stream.features.spec import HISTORY_FEATURES
from stream.features.windows.records import head_key
from stream.pipeline.preview import Preview
from stream.state.format import describe_record
from support.bundles import made_bundle
from support.entity_joins import Bus
from support.entity_joins import run as run_join
from support.histories import Memory
from support.pipelines import FEATURES, NOW, parsed, record, run, transaction
from support.profiles import DAY_MS, PROFILES, START_MS, table_of, transactions
from support.window_histories import REPEATABLE
from tests.stream.pipeline.entity_join.test_entity_join import CONFIG, compare, feed

if TYPE_CHECKING:
    from stream.scoring.bundle import Bundle

REFUND_TYPES = ("refund", "reversal")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    made = made_bundle()
    return dataclasses.replace(made, spec=dataclasses.replace(made.spec, refund_types=REFUND_TYPES))


def decisions(bodies: list[dict[str, Any]], bundle: Bundle) -> list[dict[str, Any]]:
    effects = run([record(at, body) for at, body in enumerate(bodies)], bundle)
    assert effects.dead_letters == []
    return parsed(effects.decisions)


def history(decision: dict[str, Any]) -> dict[str, float]:
    return {name: decision["features"][name] for name in HISTORY_FEATURES}


#: A payment, and the ways in which money comes back.
PAYMENT, NEGATIVE, REFUND, REVERSAL = range(4)


def body(number: int, kind: int, cents: int) -> dict[str, Any]:
    amount = f"{cents // 100}.{cents % 100:02}"
    return transaction(
        number,
        amount=f"-{amount}" if kind == NEGATIVE else amount,
        transaction_type={REFUND: "refund", REVERSAL: "reversal"}.get(kind, "purchase"),
    )


@REPEATABLE
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 10**6)), min_size=1, max_size=40))
def test_payments_and_refunds_do_not_see_each_other(kinds: list[tuple[int, int]]) -> None:
    made = made_bundle()
    bundle = dataclasses.replace(made, spec=dataclasses.replace(made.spec, refund_types=REFUND_TYPES))
    bodies = [body(number, kind, cents) for number, (kind, cents) in enumerate(kinds)]
    together = decisions(bodies, bundle)
    for refunds in (False, True):
        chosen = [at for at, (kind, _) in enumerate(kinds) if (kind != PAYMENT) == refunds]
        # Refunds alone, sent as payments of the same amounts.
        alone = decisions([body(at, PAYMENT, kinds[at][1]) for at in chosen], bundle)
        assert [history(together[at]) for at in chosen] == [history(decision) for decision in alone]


def test_they_are_counted_and_the_amount_keeps_its_sign(bundle: Bundle) -> None:
    records = [record(at, body(at, kind, 1_234)) for at, kind in enumerate((PAYMENT, NEGATIVE, REFUND))]
    effects = run(records, bundle)
    assert effects.refunds == 2
    found = [decision["features"]["amount"] for decision in parsed(effects.decisions)]
    assert found == [12.34, -12.34, 12.34]


def test_a_spec_without_refund_types_counts_such_types_as_payments(bundle: Bundle) -> None:
    asked = made_bundle()
    bodies = [body(at, kind, 100) for at, kind in enumerate((PAYMENT, REFUND, REVERSAL, NEGATIVE, PAYMENT))]
    for used, counts in ((asked, [1, 2, 3, 1, 4]), (bundle, [1, 1, 2, 3, 2])):
        assert [decision["features"]["lifetime_count"] for decision in decisions(bodies, used)] == counts


def test_the_spec_s_hash_depends_on_the_refund_types(bundle: Bundle) -> None:
    made = made_bundle().spec
    assert "refund_types" not in made.to_json()
    assert bundle.spec.hash != made.hash
    assert type(made).from_json(bundle.spec.to_json()) == bundle.spec


def with_refunds(rng: random.Random, count: int) -> list[dict[str, Any]]:
    rows = transactions(rng, count)
    for row in rows:
        kind = rng.choice([PAYMENT, PAYMENT, NEGATIVE, REFUND])
        if kind == NEGATIVE:
            row["amount"] = -row["amount"]
        elif kind == REFUND:
            row["transaction_type"] = "refund"
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_entity_profiles_do_not_see_refunds_online_as_offline(seed: int) -> None:
    rng = random.Random(seed)
    rows = with_refunds(rng, 150)
    made = made_bundle(entities=PROFILES)
    bundle = dataclasses.replace(made, spec=dataclasses.replace(made.spec, refund_types=REFUND_TYPES))
    bus = Bus(1)
    order = feed(bus, rows, [])
    run_join(bus, bundle, CONFIG, START_MS + 1000 * DAY_MS, rng=rng, crashes=0)
    table = table_of(rows)
    expected = build_features(table, bundle.spec, allowed_lateness_ms=CONFIG.lateness_ms)
    compare(bus, bundle, order, expected)
    refunds = refund_rows(table, bundle.spec)
    assert 20 < refunds.sum() < 130
    profiles = expected.matrix[:, bundle.spec.names.index("user_count_1d") :]
    assert np.isnan(profiles[refunds]).all()
    assert not np.isnan(profiles[~refunds & (expected.outcome == 0)]).all()


def test_a_score_on_request_uses_the_history_that_the_stream_would_use(bundle: Bundle) -> None:
    memory = Memory()
    bodies = [body(at, at % 4, 100 * at) for at in range(40)]
    run([record(at, one) for at, one in enumerate(bodies)], bundle, memory=memory)
    preview = Preview(bundle, lateness_ms=FEATURES.lateness_ms, max_reasons=40)
    rows = [preview.row(body(50, kind, 700), NOW) for kind in (PAYMENT, NEGATIVE, REFUND)]
    asked = preview.score(rows, memory)
    for row, kind, answer in zip(rows, (PAYMENT, NEGATIVE, REFUND), asked, strict=True):
        [decision] = parsed(run([record(60, body(50, kind, 700))], bundle, memory=Memory(memory)).decisions)
        assert (row.transaction_id, decision["risk_score"]) == ("t50", answer["risk_score"])


def test_histories_of_a_file_are_those_of_the_stream(bundle: Bundle) -> None:
    rows = with_refunds(random.Random(9), 80)
    memory = Memory()
    records = [record(at, row, row["user_id"].encode()) for at, row in enumerate(rows)]
    run(records, bundle, memory=memory)
    loaded = load_histories(
        table_of(rows), lateness_ms=FEATURES.lateness_ms, refund_types=bundle.spec.refund_types
    )
    assert loaded.keys() == memory.keys()
    assert any(b"\xff" in key for key in memory)


def test_a_damaged_history_of_refunds_names_the_user_and_spares_the_payments(bundle: Bundle) -> None:
    memory = Memory()
    run([record(0, body(0, PAYMENT, 5)), record(1, body(1, REFUND, 5))], bundle, memory=memory)
    key = head_key(history_key(history_name("u1", refund=True)))
    memory[key] = memory[key][:-8]
    effects = run([record(2, body(2, PAYMENT, 5)), record(3, body(3, REFUND, 5))], bundle, memory=memory)
    assert len(effects.decisions) == 1
    [letter] = effects.dead_letters
    reason = dict(letter.headers)["riskstream.errors.reason"].decode()
    assert "state of user 'u1" in reason
    assert "u1" in describe_record(key)
    assert issubclass(StateError, Exception)
