"""Transactions and labels: strict where they come in, refused by the name of a field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import InvalidRecordError
from stream.events.decode import MAX_RECORD_BYTES, decode_label, decode_transaction
from stream.events.models import Transaction
from support.events import LABEL, NOON, TRANSACTION, Raw, refusal, to_json, transaction

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
