"""One batch in, everything that must happen out: alerts, decisions, state."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from stream.events.models import Alert, Decision, Outcome
from stream.features.windows.events import HistoryConfig
from stream.pipeline.effects import Batch, BatchEffects, PipelineConfig
from stream.pipeline.preview import Preview
from stream.pipeline.transactions import TransactionPipeline
from stream.scoring.bundle import Bundle, Thresholds
from stream.state.format import user_of_key
from support.bundles import made_bundle
from support.histories import Memory
from support.pipelines import (
    DAY,
    FEATURES,
    NOW,
    parsed,
    record,
    run,
    simulated_records,
    transaction,
    validator,
)

if TYPE_CHECKING:
    from pathlib import Path

# --- what goes out -------------------------------------------------------------------------------------


def test_everything_that_goes_out_is_what_the_schemas_promise(bundle: Bundle) -> None:
    records = simulated_records(range(2_000))
    records += [record(2_000, transaction()), record(2_001, transaction())]
    effects = run(records, bundle)
    assert len(effects.decisions) == 2_002
    assert effects.outcomes == {Outcome.SCORED: 2_001, Outcome.DUPLICATE: 1}
    assert len(effects.scores) == 2_001
    assert len(effects.alerts) == len(effects.alerted) == 2_001
    for name, model, messages in (
        ("decision", Decision, effects.decisions),
        ("alert", Alert, effects.alerts),
    ):
        check = validator(name)
        for message, source in zip(messages, records, strict=False):
            check.validate(json.loads(message.value or b""))
            event = model.model_validate_json(message.value or b"")
            assert message.key == event.user_id.encode() == source.key
            assert event.source_offset == source.offset
            assert (event.source_topic, event.source_partition) == ("transactions", 3)
            assert event.scored_at == source.timestamp_ms
            assert event.feature_spec == bundle.spec.hash
            assert event.model_version == bundle.model_version


def test_an_alert_and_its_decision_say_the_same(bundle: Bundle) -> None:
    effects = run(simulated_records(range(3_000)), bundle, PipelineConfig())
    decisions = parsed(effects.decisions)
    limits = bundle.thresholds
    alerted = [decision for decision in decisions if "alert_id" in decision]
    assert 0 < len(alerted) < len(decisions) / 2
    for decision, alert in zip(alerted, parsed(effects.alerts), strict=True):
        assert {name: alert[name] for name in decision if name != "outcome"} == {
            name: value for name, value in decision.items() if name != "outcome"
        }
    for decision, score in zip(decisions, effects.scores.tolist(), strict=True):
        assert decision["risk_score"] == round(score, 4)
        level = "HIGH" if decision["risk_score"] > limits.high else "MEDIUM"
        level = level if decision["risk_score"] > limits.medium else "LOW"
        assert decision["risk_level"] == level
        assert decision["prediction"] == int(decision["risk_score"] >= limits.prediction)
        assert ("alert_id" in decision) == (level != "LOW" or decision["prediction"] == 1)
        assert "features" not in decision


def test_decisions_can_be_switched_off_and_alerts_stay(bundle: Bundle) -> None:
    records = simulated_records(range(500))
    silent = run(records, bundle, dataclasses.replace(FEATURES, decisions=False))
    loud = run(records, bundle)
    assert silent.decisions == []
    assert silent.alerts == loud.alerts
    assert silent.writes == loud.writes
    assert silent.outcomes == loud.outcomes


def test_money_and_times_in_every_accepted_form_are_the_same(bundle: Bundle) -> None:
    forms = [
        transaction(amount="12.5", event_time=1_780_000_000_123),
        transaction(amount=12.5, event_time="2026-05-28T20:26:40.123Z"),
        transaction(amount="12.50", event_time="2026-05-28T22:26:40.123456+02:00"),
    ]
    bodies = [parsed(run([record(0, form)], bundle).decisions)[0] for form in forms]
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0]["event_time"] == "2026-05-28T20:26:40.123Z"


def test_unknown_fields_are_counted_and_harmless(bundle: Bundle) -> None:
    plain = run([record(0, transaction())], bundle)
    more = run([record(0, transaction(colour="red", shoe={"size": 44}))], bundle)
    assert (plain.unknown_fields, more.unknown_fields) == (0, 2)
    assert more.decisions == plain.decisions


def test_nothing_comes_of_nothing(bundle: Bundle) -> None:
    assert run([], bundle).outcomes == {}


def test_a_duplicate_is_decided_without_a_score(bundle: Bundle) -> None:
    memory = Memory()
    run([record(0, transaction(1))], bundle, memory=memory)
    stored = dict(memory)
    effects = run([record(1, transaction(1, amount="99999"))], bundle, memory=memory)
    (decision,) = parsed(effects.decisions)
    assert decision["outcome"] == "duplicate"
    assert decision.keys().isdisjoint({"risk_score", "risk_level", "prediction", "alert_id", "features"})
    Decision.model_validate_json(effects.decisions[0].value or b"")
    assert (effects.alerts, effects.writes, len(effects.scores)) == ([], [], 0)
    assert memory == stored


def test_a_replay_says_nothing_again(bundle: Bundle) -> None:
    memory = Memory()
    records = simulated_records(range(300))
    run(records, bundle, memory=memory)
    again = run(records, bundle, memory=memory)
    assert (again.alerts, again.decisions, again.dead_letters, again.writes) == ([], [], [], [])
    assert (again.outcomes, again.replayed) == ({}, 300)


def test_a_late_transaction_is_scored_and_called_late(bundle: Bundle) -> None:
    records = [
        record(0, transaction(0, event_time=NOW)),
        record(1, transaction(1, event_time=NOW - 3 * DAY)),
        record(2, transaction(2, event_time=NOW - 3 * DAY - 1)),
    ]
    bodies = parsed(run(records, bundle).decisions)
    assert [body["outcome"] for body in bodies] == ["scored", "scored", "late"]
    assert all("risk_score" in body and "features" in body for body in bodies)


# --- the same in, the same out -------------------------------------------------------------------------


def sent(effects: BatchEffects) -> tuple[object, ...]:
    return effects.alerts, effects.decisions, effects.dead_letters, effects.outcomes


def test_a_plan_is_the_same_to_the_byte(bundle: Bundle, tmp_path: Path) -> None:
    records = [*simulated_records(range(1000)), record(1000, b"{"), record(1001, transaction())]
    bundle.save(tmp_path)
    first, second = run(records, bundle), run(records, Bundle.load(tmp_path))
    assert sent(first) == sent(second)
    assert first.writes == second.writes
    np.testing.assert_array_equal(first.scores, second.scores)


def test_batches_of_any_size_send_the_same(bundle: Bundle) -> None:
    """A score does not depend on which other rows are predicted with it."""
    records = simulated_records(range(1_200))
    whole = run(records, bundle, memory=Memory())
    memory, alerts, decisions = Memory(), [], []
    rng, begin = random.Random(5), 0
    while begin < len(records):
        end = begin + rng.randint(1, 60)
        effects = run(records[begin:end], bundle, memory=memory)
        alerts += effects.alerts
        decisions += effects.decisions
        begin = end
    assert decisions == whole.decisions
    assert alerts == whole.alerts


# --- attributes ----------------------------------------------------------------------------------------


def test_attributes_become_features_by_their_kind() -> None:
    made = made_bundle(("age", "merchant_code"), {"device": ("ios", "android")})
    cases = [
        ({"age": 41, "device": "android", "merchant_code": 5411}, (41.0, 5411.0, 1.0)),
        ({"age": "41", "device": 7, "merchant_code": -0.5}, (None, -0.5, -1.0)),
        ({}, (None, None, -1.0)),
        (None, (None, None, -1.0)),
    ]
    records = [record(at, transaction(at, attributes=attributes)) for at, (attributes, _) in enumerate(cases)]
    effects = run(records, made)
    for body, (_, expected) in zip(parsed(effects.decisions), cases, strict=True):
        names = ("attributes.age", "attributes.merchant_code", "attributes.device_code")
        assert tuple(body["features"][name] for name in names) == expected
    assert len(effects.alerts) == len(cases)


def test_partitions_taken_together_are_as_if_each_was_taken_alone(bundle: Bundle) -> None:
    """Also where one user's records lie in two of them, one has none that are valid, one user's state is bad."""
    everything = simulated_records(range(3_000))
    spread = [[record for at, record in enumerate(everything) if at % 3 == part] for part in range(3)]
    spread.insert(1, [record(0, b"{"), record(1, None)])
    alone, together = TransactionPipeline(bundle, FEATURES), TransactionPipeline(bundle, FEATURES)
    apart_memory, joint_memory = [Memory() for _ in spread], [Memory() for _ in spread]
    for begin in range(0, 1_000, 170):
        batches = [
            Batch("transactions", number, 99 + number, part[begin : begin + 170])
            for number, part in enumerate(spread)
        ]
        all_effects = together.process_all(batches, joint_memory, NOW)
        for one, apart, joint, effects in zip(batches, apart_memory, joint_memory, all_effects, strict=True):
            expected = alone.process(one, apart, NOW)
            apart.write(expected.writes)
            joint.write(effects.writes)
            assert effects.alerts == expected.alerts
            assert effects.decisions == expected.decisions
            assert effects.dead_letters == expected.dead_letters
            assert dict(effects.writes) == dict(expected.writes)
            assert effects.outcomes == expected.outcomes
            np.testing.assert_array_equal(effects.scores, expected.scores)
        if begin == 340:
            head = next(key for key in apart_memory[2] if user_of_key(key)[1] == "H")
            for memory in (apart_memory[2], joint_memory[2]):
                memory[head] = memory[head][:-8] + bytes(8)
    assert apart_memory == joint_memory


# --- traces ---

TRACE = ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")

STATE = ("tracestate", b"congo=t61rcWkgMzE")


def trace_of(headers: Any) -> Any:
    """Return the headers of the decision and the alert on a transaction with these headers."""
    bundle = made_bundle(thresholds=Thresholds(high=0.0, medium=0.0, prediction=0.0))
    made = record(1, transaction(1), headers=headers)
    effects = TransactionPipeline(bundle, FEATURES).process(
        Batch("transactions", 0, 1, [made]), Memory(), NOW
    )
    [alert], [decision] = effects.alerts, effects.decisions
    assert alert.headers == decision.headers
    return alert.headers


def test_a_trace_goes_on_with_the_alert_and_the_decision() -> None:
    assert trace_of((("mine", b"x"), TRACE, STATE)) == (TRACE, STATE)


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("mine", b"x"),),
        (STATE,),
        (("traceparent", None),),
        (("traceparent", b"0" * 513),),
    ],
    ids=["none", "others", "state alone", "null", "endless"],
)
def test_what_is_no_trace_stays_behind(headers: Any) -> None:
    assert trace_of(headers) == ()


def test_of_two_traces_the_first_goes_on() -> None:
    assert trace_of((TRACE, ("traceparent", b"another"), ("tracestate", b"0" * 513))) == (TRACE,)


def test_a_cut_dead_letter_keeps_its_trace() -> None:
    bundle = made_bundle()
    huge = record(1, b"x" * 2_000_000, headers=(("mine", b"x"), TRACE))
    effects = TransactionPipeline(bundle, FEATURES).process(
        Batch("transactions", 0, 1, [huge]), Memory(), NOW
    )
    [letter] = effects.dead_letters
    assert letter.headers[0] == TRACE
    assert "mine" not in dict(letter.headers)


def test_a_decision_says_that_its_history_is_truncated(bundle: Bundle) -> None:
    pipeline = TransactionPipeline(bundle, FEATURES)
    pipeline._history = HistoryConfig(max_chunks=3)
    memory = Memory()
    records = [
        record(at, transaction(at, event_time=NOW - DAY + at * 60_000), b"u1") for at in range(200)
    ] + [record(200, transaction(0, "u2"), b"u2")]
    decisions, truncated = [], 0
    for begin in range(0, len(records), 30):
        effects = pipeline.process(Batch("transactions", 3, 99, records[begin : begin + 30]), memory, NOW)
        memory.write(effects.writes)
        decisions += effects.decisions
        truncated += effects.truncated
    check = validator("decision")
    for message in decisions:
        check.validate(json.loads(message.value or b""))
    said = [Decision.model_validate_json(message.value or b"").truncated for message in decisions]
    # 64 events are sealed as two chunks, then 32 as one: the fourth chunk leaves no room for the first.
    assert said == [128 <= at < 200 for at in range(201)]
    assert truncated == sum(said)
    preview = Preview(bundle, lateness_ms=FEATURES.lateness_ms, max_reasons=3)
    rows = [preview.row(transaction(500, user, event_time=NOW), NOW) for user in ("u1", "u2")]
    assert [answer.get("truncated", False) for answer in preview.score(rows, memory)] == [True, False]
