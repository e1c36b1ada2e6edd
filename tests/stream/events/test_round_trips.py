"""Events come back from their own JSON, and are valid against their schemas."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stream.errors import InvalidRecordError
from stream.events.currencies import MINOR_UNIT_DECIMALS
from stream.events.decode import decode_label, decode_transaction
from stream.events.fields import MAX_AMOUNT_MINOR, format_event_time
from stream.events.models import Alert, Decision, Label, Outcome, Reason, RiskLevel
from support.events import LABEL, LAST, TRANSACTION, schema, to_json

# --- round trips ---------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)

TIMES = st.integers(0, LAST)

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)

UNIT = st.floats(0, 1)


@st.composite
def transactions(draw: st.DrawFn) -> dict[str, Any]:
    currency = draw(st.sampled_from(sorted(MINOR_UNIT_DECIMALS)))
    decimals = MINOR_UNIT_DECIMALS[currency]

    def money(lowest: int) -> str:
        return str(Decimal(draw(st.integers(lowest, MAX_AMOUNT_MINOR))).scaleb(-decimals).__format__("f"))

    document: dict[str, Any] = {
        "transaction_id": draw(TEXT),
        "user_id": draw(TEXT),
        "event_time": draw(TIMES | TIMES.map(format_event_time)),
        "amount": money(0),
        "currency": currency,
        "channel": draw(TEXT),
        "transaction_type": draw(TEXT),
    }
    optional: dict[str, Any] = {
        "pre_balance": money(-MAX_AMOUNT_MINOR),
        "post_balance": money(-MAX_AMOUNT_MINOR),
        "merchant_id": draw(TEXT),
        "card_id": draw(TEXT),
        "device_id": draw(TEXT),
        "ip": draw(st.ip_addresses().map(str)),
        "country": draw(st.from_regex(r"[A-Z]{2}", fullmatch=True)),
        "memo": draw(TEXT),
        "attributes": draw(st.dictionaries(TEXT, NUMBERS | TEXT, max_size=4)),
    }
    kept = draw(st.sets(st.sampled_from(sorted(optional))))
    return {**document, **{name: optional[name] for name in kept}}


@given(transactions())
def test_a_transaction_comes_back_from_its_own_json(document: dict[str, Any]) -> None:
    first, unknown = decode_transaction(to_json(document))
    assert unknown == 0
    schema("transaction.json").validate(document)
    again, unknown = decode_transaction(first.model_dump_json().encode())
    assert (again, unknown) == (first, 0)
    assert again.amount_minor == first.amount_minor
    assert again.pre_balance_minor == first.pre_balance_minor
    assert again.post_balance_minor == first.post_balance_minor
    schema("transaction.json").validate(json.loads(first.model_dump_json()))


@given(
    st.builds(
        Label, transaction_id=TEXT, user_id=TEXT, is_fraud=st.booleans(), event_time=TIMES, label_time=TIMES
    )
)
def test_a_label_comes_back_from_its_own_json(label: Label) -> None:
    raw = label.model_dump_json()
    schema("label.json").validate(json.loads(raw))
    assert decode_label(raw.encode()) == (label, 0)


REASONS = st.builds(
    Reason,
    feature=TEXT,
    value=st.none() | NUMBERS | TEXT,
    usual=st.none() | NUMBERS,
    contribution=NUMBERS,
    sentence=TEXT,
)

WHERE = {
    "source_topic": TEXT,
    "source_partition": st.integers(0, 1000),
    "source_offset": st.integers(0, 2**62),
}

WHAT = {
    "transaction_id": TEXT,
    "user_id": TEXT,
    "event_time": TIMES,
    "scored_at": TIMES,
    "model_version": TEXT,
    "feature_spec": TEXT,
}


@given(
    st.builds(
        Alert,
        alert_id=TEXT,
        risk_score=UNIT,
        risk_level=st.sampled_from(RiskLevel),
        prediction=st.integers(0, 1),
        reasons=st.lists(REASONS, max_size=3),
        **WHAT,
        **WHERE,
    )
)
def test_an_alert_is_valid_against_its_schema_and_comes_back(alert: Alert) -> None:
    raw = alert.model_dump_json()
    schema("alert.json").validate(json.loads(raw))
    assert Alert.model_validate_json(raw) == alert


@given(
    st.builds(
        Decision,
        outcome=st.sampled_from(Outcome),
        risk_score=st.none() | UNIT,
        risk_level=st.none() | st.sampled_from(RiskLevel),
        prediction=st.none() | st.integers(0, 1),
        alert_id=st.none() | TEXT,
        features=st.none() | st.dictionaries(TEXT, st.none() | NUMBERS, max_size=4),
        **WHAT,
        **WHERE,
    )
)
def test_a_decision_is_valid_against_its_schema_and_comes_back(decision: Decision) -> None:
    raw = decision.model_dump_json()
    schema("decision.json").validate(json.loads(raw))
    assert Decision.model_validate_json(raw) == decision


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("transaction.json", {**TRANSACTION, "user_id": ""}),
        ("transaction.json", {**TRANSACTION, "amount": "--1"}),
        ("transaction.json", {**TRANSACTION, "amount": "1e2"}),
        ("transaction.json", {**TRANSACTION, "currency": "eur"}),
        ("transaction.json", {**TRANSACTION, "event_time": "yesterday"}),
        ("transaction.json", {**TRANSACTION, "attributes": {"a": True}}),
        ("label.json", {**LABEL, "is_fraud": 1}),
        ("label.json", {name: value for name, value in LABEL.items() if name != "user_id"}),
    ],
)
def test_the_schema_refuses_what_the_code_refuses(name: str, document: dict[str, Any]) -> None:
    assert not schema(name).is_valid(document)
    with pytest.raises(InvalidRecordError):
        (decode_transaction if name == "transaction.json" else decode_label)(to_json(document))


def test_a_score_that_is_not_a_number_never_leaves() -> None:
    values = dict.fromkeys(
        ("transaction_id", "user_id", "model_version", "feature_spec", "source_topic"), "x"
    )
    numbers = {"event_time": 0, "scored_at": 0, "source_partition": 0, "source_offset": 0}
    for bad in (float("nan"), float("inf"), 1.1, -0.1):
        with pytest.raises(ValidationError):
            Decision(outcome=Outcome.SCORED, risk_score=bad, **values, **numbers)
