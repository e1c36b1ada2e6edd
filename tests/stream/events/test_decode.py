"""The plain lane of the decoder against the model: what it takes, the model takes too, as the same row."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import InvalidRecordError
from stream.events import decode as intake
from stream.events.decode import parse_object, validate_transaction
from stream.events.fields import format_event_time

ORDINARY = {
    "transaction_id": "t1",
    "user_id": "u1",
    "event_time": "2024-05-01T10:00:00.123Z",
    "amount": 12.10,
    "currency": "EUR",
    "channel": "online",
    "transaction_type": "purchase",
}

times = st.one_of(
    st.integers(-(10**15), 10**15),
    st.integers(0, 253_402_300_799_999).map(format_event_time),
    st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.isoformat().replace("+00:00", "Z")),
    st.from_regex(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{3})?Z", fullmatch=True),
    st.text(max_size=26),
)
money = st.one_of(
    st.integers(-(10**16), 10**16),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**14), max_value=10**14).map(
        str
    ),
    st.floats(allow_nan=False, allow_infinity=False),
    st.from_regex(r"-?\d{1,18}(\.\d{0,5})?", fullmatch=True),
    st.text(max_size=12),
    st.booleans(),
    st.none(),
)
texts = st.one_of(
    st.text(max_size=140), st.sampled_from(["", "x" * 64, "x" * 65, "x" * 128, "x" * 129]), st.integers()
)
values = {
    "transaction_id": texts,
    "user_id": texts,
    "event_time": times,
    "amount": money,
    "currency": st.sampled_from(["EUR", "JPY", "KWD", "CLF", "eur", "XXX", "", 5]),
    "channel": texts,
    "transaction_type": texts,
    "pre_balance": money,
    "post_balance": money,
    "merchant_id": st.one_of(st.none(), texts),
    "card_id": st.one_of(st.none(), texts),
    "device_id": st.one_of(st.none(), texts),
    "ip": st.one_of(
        st.none(), st.ip_addresses().map(str), st.from_regex(r"\d{1,3}(\.\d{1,3}){3}", fullmatch=True), texts
    ),
    "country": st.one_of(st.none(), st.sampled_from(["DE", "de", "DEU", "D1", "ÄÖ"]), texts),
    "memo": st.one_of(st.none(), texts),
    "attributes": st.one_of(
        st.none(),
        st.dictionaries(
            st.text(max_size=4),
            st.one_of(st.text(max_size=4), st.floats(allow_nan=False, allow_infinity=False)),
        ),
    ),
    "something_new": texts,
}
#: Names twice, nested and empty values, escapes: what a faster parser might pass over.
pieces = st.lists(
    st.tuples(
        st.sampled_from([*sorted(values), "amount", "event_time", ""]),
        st.sampled_from(
            [
                '"12.5"',
                "1",
                '""',
                "{}",
                '{"a": "b"}',
                "[]",
                '["x"]',
                "null",
                "true",
                '"\\""',
                '"\\u0041"',
                '"Ä"',
                "1e2",
            ]
        ),
    ),
    max_size=4,
)
changes = st.lists(st.sampled_from(sorted(values)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: values[name] for name in names})
)


def parsed(body: dict[str, object]) -> dict[str, object]:
    return parse_object(json.dumps(body).encode(), 1 << 20)


@given(changes)
def test_what_the_plain_lane_takes_the_model_takes_as_the_same_row(change: dict[str, object]) -> None:
    body = parsed({**ORDINARY, **change})
    row = intake._fast_row(body)
    if row is not None:
        assert row == intake.row_of(validate_transaction(body))


@given(changes)
def test_decode_row_says_of_every_record_what_the_model_says(change: dict[str, object]) -> None:
    raw = json.dumps({**ORDINARY, **change}).encode()
    try:
        expected = intake.row_of(validate_transaction(parse_object(raw, 1 << 20)))
    except InvalidRecordError as error:
        with pytest.raises(InvalidRecordError) as caught:
            intake.decode_row(raw)
        assert str(caught.value) == str(error)
    else:
        row, unknown = intake.decode_row(raw)
        assert row == expected
        assert unknown == int("something_new" in change)


def test_the_plain_lane_takes_ordinary_transactions() -> None:
    full = ORDINARY | {
        "amount": "12.1", "pre_balance": "-3.50", "post_balance": 7, "merchant_id": "m", "card_id": "c",
        "device_id": "d", "ip": "10.0.0.1", "country": "DE",
    }  # fmt: skip
    row = intake._fast_row(parsed(full))
    assert row is not None
    assert (row.amount_minor, row.pre_balance_minor, row.post_balance_minor) == (1210, -350, 700)
    assert row.event_time == int(datetime(2024, 5, 1, 10, tzinfo=UTC).timestamp()) * 1000 + 123


@given(pieces, st.booleans())
def test_a_text_that_is_put_together_is_decoded_as_the_model_says(
    extra: list[tuple[str, str]], in_front: bool
) -> None:
    ordinary = [(name, json.dumps(str(value))) for name, value in ORDINARY.items()]
    members = [*extra, *ordinary] if in_front else [*ordinary, *extra]
    raw = ("{" + " , ".join(f'"{name}" : {value}' for name, value in members) + "}").encode()
    try:
        expected = intake.row_of(validate_transaction(parse_object(raw, 1 << 20)))
    except InvalidRecordError as error:
        with pytest.raises(InvalidRecordError) as caught:
            intake.decode_row(raw)
        assert str(caught.value) == str(error)
    else:
        assert intake.decode_row(raw)[0] == expected


def test_names_given_twice_are_refused_by_the_fast_parser_too() -> None:
    for raw in (
        b'{"a":"1","a":"2"}',
        b'{"a":"1","a":2}',
        b'{"a":1,"a":"2"}',
        b'{"a":1,"a":1,"b":"x"}',
        b"{}",
        b"[]",
    ):
        assert not intake._texts(raw, 100)
    assert intake._texts(b'{"a":"1","b":"2"}', 100) == {"a": "1", "b": "2"}
