"""The events: strict where they come in, exact inside, valid against their schemas where they go out."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from stream.errors import InvalidRecordError
from stream.events.currencies import MINOR_UNIT_DECIMALS
from stream.events.decode import MAX_RECORD_BYTES, decode_label, decode_transaction
from stream.events.fields import MAX_AMOUNT_MINOR, format_event_time, parse_event_time
from stream.events.models import Alert, Decision, Label, Outcome, Reason, RiskLevel, Transaction

NOON = 1_769_860_800_000  # 2026-01-31T12:00:00Z
LAST = 253_402_300_799_999

TRANSACTION: dict[str, Any] = {
    "transaction_id": "t-1",
    "user_id": "u-1",
    "event_time": "2026-01-31T12:00:00Z",
    "amount": 12.34,
    "currency": "EUR",
    "channel": "web",
    "transaction_type": "purchase",
}
LABEL: dict[str, Any] = {
    "transaction_id": "t-1",
    "user_id": "u-1",
    "is_fraud": True,
    "event_time": "2026-01-31T12:00:00Z",
    "label_time": "2026-02-03T08:00:00Z",
}


class Raw(str):
    """JSON text to put in as it is, for numbers that Python would write otherwise."""

    __slots__ = ()


def to_json(document: dict[str, Any]) -> bytes:
    members = (
        f"{json.dumps(name)}:{value if isinstance(value, Raw) else json.dumps(value)}"
        for name, value in document.items()
    )
    return ("{" + ",".join(members) + "}").encode("utf-8", "surrogatepass")


def transaction(**changes: Any) -> Transaction:
    return decode_transaction(to_json({**TRANSACTION, **changes}))[0]


def refusal(**changes: Any) -> InvalidRecordError:
    with pytest.raises(InvalidRecordError) as caught:
        transaction(**changes)
    return caught.value


def schema(name: str) -> Draft202012Validator:
    path = Path(__file__).resolve().parents[2] / "docs" / "reference" / "schemas" / name
    return Draft202012Validator(
        json.loads(path.read_text(encoding="utf-8")), format_checker=Draft202012Validator.FORMAT_CHECKER
    )


# --- the record as a whole -----------------------------------------------------------------------------


def test_the_least_and_the_most_that_a_producer_sends() -> None:
    least = transaction()
    assert (least.transaction_id, least.user_id, least.event_time_ms) == ("t-1", "u-1", NOON)
    assert (least.amount_minor, least.minor_units) == (1234, 100)
    assert least.pre_balance_minor is least.memo is least.attributes is None
    most = transaction(
        pre_balance=-1.5,
        post_balance="20.05",
        merchant_id="m",
        card_id="c",
        device_id="d",
        ip="2001:db8::1",
        country="DE",
        memo="für Miete",
        attributes={"age": 3, "score": 0.5, "tier": "gold"},
    )
    assert (most.pre_balance_minor, most.post_balance_minor) == (-150, 2005)
    assert most.attributes == {"age": 3.0, "score": 0.5, "tier": "gold"}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "no value"),
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": -Infinity}', "not valid JSON"),
        (b'{"a": 1, "a": 2}', "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b'{"memo": "\\ud800"}', "not valid JSON"),
        (b"[" * 50_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
@pytest.mark.parametrize("decode", [decode_transaction, decode_label])
def test_what_is_no_json_object_is_refused(decode: Any, raw: bytes | None, reason: str) -> None:
    with pytest.raises(InvalidRecordError, match=reason) as caught:
        decode(raw)
    assert caught.value.field == "$"


@pytest.mark.parametrize("decode", [decode_transaction, decode_label])
def test_the_size_limit_counts_bytes_and_includes_its_own_value(decode: Any) -> None:
    document = TRANSACTION if decode is decode_transaction else LABEL
    padded = to_json(document)
    padded += b" " * (MAX_RECORD_BYTES - len(padded))
    decode(padded)
    with pytest.raises(InvalidRecordError, match=f"{MAX_RECORD_BYTES + 1} bytes are more than") as caught:
        decode(padded + b" ")
    assert caught.value.field == "$"
    with pytest.raises(InvalidRecordError):
        decode(padded, max_bytes=1024)
    decode(padded + b" ", max_bytes=MAX_RECORD_BYTES + 1)


@pytest.mark.parametrize("unknown", [{}, {"x": 1}, {"x": None, "Amount": 1, "nested": {"deep": [1, {}]}}])
def test_unknown_fields_are_left_out_and_counted(unknown: dict[str, Any]) -> None:
    found, count = decode_transaction(to_json({**TRANSACTION, **unknown}))
    assert (found, count) == (transaction(), len(unknown))
    label, count = decode_label(to_json({**LABEL, **unknown}))
    assert (label, count) == (decode_label(to_json(LABEL))[0], len(unknown))


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    for decode in (decode_transaction, decode_label):
        with pytest.raises(InvalidRecordError):
            decode(raw)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(Transaction.model_fields)), JSON_VALUES)
def test_any_value_of_a_field_is_taken_or_refused_by_name(field: str, value: Any) -> None:
    try:
        transaction(**{field: value})
    except InvalidRecordError as error:
        refused = error
    else:
        return
    # Another currency may have fewer decimals than the amount.
    assert refused.field.split(".")[0] in {field, "$"} or (field, refused.field) == ("currency", "amount")
    assert "\n" not in refused.reason


# --- each field ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", sorted(TRANSACTION))
def test_a_required_field_is_required(field: str) -> None:
    document = {name: value for name, value in TRANSACTION.items() if name != field}
    with pytest.raises(InvalidRecordError, match="is required") as caught:
        decode_transaction(to_json(document))
    assert caught.value.field == field
    assert refusal(**{field: None}).field == field


@pytest.mark.parametrize("field", sorted(set(Transaction.model_fields) - set(TRANSACTION)))
def test_an_optional_field_may_be_null(field: str) -> None:
    assert getattr(transaction(**{field: None}), field) is None


@pytest.mark.parametrize(
    "field",
    ["transaction_id", "user_id", "channel", "transaction_type", "merchant_id", "card_id", "device_id"],
)
def test_identifiers_and_names(field: str) -> None:
    longest = 64 if field in {"channel", "transaction_type"} else 128
    for good in ("x", "ü" * longest, "with space"):
        assert getattr(transaction(**{field: good}), field) == good
    for bad in ("", "x" * (longest + 1), 1, 1.0, True, ["x"], {}):
        assert refusal(**{field: bad}).field == field


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("currency", ["EUR", "JPY", "BHD"], ["eur", "XXX", "EU", "", "EUR ", 978, ["EUR"]]),
        ("country", ["DE", "US"], ["de", "D", "DEU", "", "DE\n", 49]),
        (
            "ip",
            ["1.2.3.4", "::1", "2001:db8::1"],
            ["1.2.3", "1.2.3.4.5", "host", "", "1.2.3.4/8", 16_909_060],
        ),
        ("memo", ["", "x" * 1024], ["x" * 1025, 1, ["x"]]),
    ],
)
def test_other_texts(field: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        amount = Raw("1")
        assert getattr(transaction(amount=amount, **{field: value}), field) == value
    for value in bad:
        assert refusal(**{field: value}).field == field


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ([], "must be an object"),
        ("x", "must be an object"),
        ({"": 1}, "1 to 64 characters"),
        ({"x" * 65: 1}, "1 to 64 characters"),
        ({"a": "x" * 257}, "at most 256"),
        ({"a": True}, "numbers or texts"),
        ({"a": None}, "numbers or texts"),
        ({"a": [1]}, "numbers or texts"),
        ({"a": {}}, "numbers or texts"),
        ({str(at): at for at in range(65)}, "at most 64"),
        (Raw('{"a": 1e999}'), "must be finite"),
        (Raw('{"a": 1' + "0" * 400 + "}"), "must be finite"),
    ],
)
def test_attributes_are_refused(attributes: Any, reason: str) -> None:
    error = refusal(attributes=attributes)
    assert error.field == "attributes"
    assert reason in error.reason


def test_attributes_are_numbers_and_texts() -> None:
    many: dict[str, Any] = {str(at): at / 2 for at in range(62)}
    edge = {**many, "x" * 64: "y" * 256, "negative": Raw("-1e300")}
    raw = Raw(to_json(edge).decode())
    parsed = transaction(attributes=raw).attributes
    assert parsed == {**many, "x" * 64: "y" * 256, "negative": -1e300}
    assert all(type(parsed[str(at)]) is float for at in range(62))


# --- money ---------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(MINOR_UNIT_DECIMALS)), st.integers(0, MAX_AMOUNT_MINOR), st.booleans())
def test_every_amount_is_exact_as_number_and_as_text(currency: str, minor: int, as_text: bool) -> None:
    decimals = MINOR_UNIT_DECIMALS[currency]
    written = f"{Decimal(minor).scaleb(-decimals):.{decimals}f}"
    found = transaction(amount=written if as_text else Raw(written), currency=currency)
    assert found.amount_minor == minor
    assert found.minor_units == 10**decimals


@given(
    st.integers(-MAX_AMOUNT_MINOR, MAX_AMOUNT_MINOR),
    st.booleans(),
    st.sampled_from(["pre_balance", "post_balance"]),
)
def test_every_balance_is_exact_as_number_and_as_text(minor: int, as_text: bool, field: str) -> None:
    written = f"{Decimal(minor).scaleb(-2):.2f}"
    found = transaction(**{field: written if as_text else Raw(written)})
    assert getattr(found, f"{field}_minor") == minor


@pytest.mark.parametrize(
    ("amount", "currency", "minor"),
    [
        (Raw("0"), "EUR", 0),
        (Raw("-0.0"), "EUR", 0),
        (Raw("0.1"), "EUR", 10),
        (Raw("0.10000"), "EUR", 10),
        (Raw("1e2"), "EUR", 10_000),
        (Raw("1.5E+1"), "EUR", 1500),
        (Raw("9999999999999.99"), "EUR", 999_999_999_999_999),
        (Raw("10000000000000.00"), "EUR", MAX_AMOUNT_MINOR),
        (Raw("1000000000000000"), "JPY", MAX_AMOUNT_MINOR),
        ("1000000000000", "BHD", MAX_AMOUNT_MINOR),
        ("0.0001", "CLF", 1),
        ("007.50", "EUR", 750),
    ],
)
def test_amounts_that_are_taken(amount: Any, currency: str, minor: int) -> None:
    assert transaction(amount=amount, currency=currency).amount_minor == minor


@pytest.mark.parametrize(
    ("amount", "currency", "reason"),
    [
        (Raw("-0.01"), "EUR", "negative"),
        ("-1", "EUR", "negative"),
        (Raw("0.001"), "EUR", "more decimals than EUR"),
        (Raw("0.5"), "JPY", "more decimals than JPY"),
        ("0.0001", "BHD", "more decimals than BHD"),
        # More than 28 digits: the default decimal context would round them away.
        ("100000000.00000000000000000001", "EUR", "more decimals than EUR"),
        (Raw("1.0000000000000000000000000000000000001"), "EUR", "more decimals than EUR"),
        (Raw("10000000000000.01"), "EUR", "above 1e15"),
        (Raw("1000000000000001"), "JPY", "out of range"),
        ("1000000000000001", "JPY", "above 1e15"),
        (Raw("1e30"), "EUR", "above 1e15"),
        (Raw("1e300"), "EUR", "out of range"),
        (Raw("1e-300"), "EUR", "out of range"),
        ("1e2", "EUR", "plain decimal"),
        ("1,5", "EUR", "plain decimal"),
        ("+1", "EUR", "plain decimal"),
        (" 1", "EUR", "plain decimal"),
        ("1\n", "EUR", "plain decimal"),
        ("٣", "EUR", "plain decimal"),
        ("", "EUR", "plain decimal"),
        ("NaN", "EUR", "plain decimal"),
        ("Infinity", "EUR", "plain decimal"),
        (True, "EUR", "number"),
        ([1], "EUR", "number"),
        ({}, "EUR", "number"),
    ],
)
def test_amounts_that_are_refused(amount: Any, currency: str, reason: str) -> None:
    error = refusal(amount=amount, currency=currency)
    assert error.field == "amount"
    assert reason in error.reason


@pytest.mark.parametrize("field", ["pre_balance", "post_balance"])
def test_balances_that_are_refused(field: str) -> None:
    for bad in (Raw("0.001"), Raw("-10000000000000.01"), "10000000000000.01", "x", True, []):
        assert refusal(**{field: bad}).field == field


def test_money_that_python_code_gives_must_be_decimal() -> None:
    assert Transaction(**{**TRANSACTION, "amount": Decimal("12.34")}) == transaction()
    for bad in (12.34, Decimal("NaN"), Decimal("Infinity")):
        with pytest.raises(ValidationError):
            Transaction(**{**TRANSACTION, "amount": bad})


# --- times ---------------------------------------------------------------------------------------------


@given(st.integers(0, LAST))
def test_a_formatted_time_parses_to_the_same_millisecond(milliseconds: int) -> None:
    text = format_event_time(milliseconds)
    assert parse_event_time(text) == parse_event_time(milliseconds) == milliseconds
    assert text.endswith("Z")
    assert len(text) == 24


@given(st.integers(86_400_000, LAST - 86_400_000), st.integers(-1439, 1439))
def test_an_offset_changes_the_text_but_not_the_time(milliseconds: int, minutes: int) -> None:
    zone = timezone(timedelta(minutes=minutes))
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    assert parse_event_time(moment.astimezone(zone).isoformat()) == milliseconds


@pytest.mark.parametrize(
    ("value", "milliseconds"),
    [
        (NOON, NOON),
        (0, 0),
        (LAST, LAST),
        ("2026-01-31T12:00:00Z", NOON),
        ("2026-01-31t12:00:00z", NOON),
        ("2026-01-31 12:00:00Z", NOON),
        ("2026-01-31T13:30:00+01:30", NOON),
        ("2026-01-31T12:00:00.1Z", NOON + 100),
        ("2026-01-31T12:00:00.123456789Z", NOON + 123),
        ("2026-01-31T12:00:00.9999Z", NOON + 999),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000),
    ],
)
def test_times_that_are_taken(value: Any, milliseconds: int) -> None:
    assert transaction(event_time=value).event_time_ms == milliseconds


@pytest.mark.parametrize(
    "value",
    [
        "2026-01-31T12:00:00",
        "2026-01-31",
        "2026-01-31T12:00Z",
        "20260131T120000Z",
        "2026-W05-6T12:00:00Z",
        "2026-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-01-31T24:00:01Z",
        "2026-01-31T23:59:60Z",
        "2026-01-31T12:00:00+24:00",
        "2026-01-31T12:00:00+05:99",
        "2026-01-31T12:00:00.Z",
        "2026-01-31T12:00:00.1234567890Z",
        "2026-01-31T12:00:00Z\n",
        "1969-12-31T23:59:59.999Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "now",
        "",
        "1769860800000",
        -1,
        LAST + 1,
        1769860800000.0,
        True,
        ["2026-01-31T12:00:00Z"],
        {},
    ],
)
def test_times_that_are_refused(value: Any) -> None:
    assert refusal(event_time=value).field == "event_time"


# --- labels --------------------------------------------------------------------------------------------


def test_a_label() -> None:
    label, unknown = decode_label(to_json(LABEL))
    assert (label.transaction_id, label.user_id, label.is_fraud, unknown) == ("t-1", "u-1", True, 0)
    assert (label.event_time, label.label_time) == (NOON, 1_770_105_600_000)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("transaction_id", ["", 1, None, "x" * 129]),
        ("user_id", ["", 1, None, "x" * 129]),
        ("is_fraud", [0, 1, "true", None, 1.0]),
        ("event_time", ["yesterday", None, True, 1.5]),
        ("label_time", ["2026-01-31T12:00:00", None, -1]),
    ],
)
def test_a_wrong_label_is_refused_by_field(field: str, bad: list[Any]) -> None:
    for value in [..., *bad]:
        document = {**LABEL, field: value}
        if value is ...:
            del document[field]
        with pytest.raises(InvalidRecordError) as caught:
            decode_label(to_json(document))
        assert caught.value.field == field


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
        ("transaction.json", {**TRANSACTION, "amount": -1}),
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
