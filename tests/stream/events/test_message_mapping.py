"""A mapping makes the same transactions of messages as of files, and says what is wrong with a member."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offline.data.readers import read_transactions
from stream.errors import ConfigError, DataError, InvalidRecordError
from stream.events.decode import decode_row
from stream.events.mapping import parse_mapping
from stream.events.message_mapping import MessageMapping

if TYPE_CHECKING:
    from pathlib import Path

MAPPING = """
[columns]
transaction_id = "ID"
user_id = "payer"
event_time = "when"
amount = "sum"
merchant_id = "shop"
pre_balance = "before"
[constants]
currency = "EUR"
channel = "card"
transaction_type = "purchase"
[time]
{time}
[attributes]
numeric = {{ velocity = "V" }}
categorical = {{ region = "R" }}
"""
TIMES = {
    "iso": 'format = "iso"\nzone = "Europe/Brussels"',
    "seconds": 'format = "epoch_s"',
    "milliseconds": 'format = "epoch_ms"',
    "days": 'format = "offset"\nunit = "days"\norigin = "2020-01-01T00:00:00Z"',
    "printed": 'format = "%d.%m.%Y %H:%M:%S"\nzone = "America/New_York"',
}
COLUMNS = ("ID", "payer", "when", "sum", "shop", "before", "V", "R")

whens = {
    "iso": st.one_of(
        st.datetimes().map(lambda moment: moment.isoformat()),
        st.datetimes().map(lambda moment: moment.isoformat() + "+02:00"),
        st.just("2026-03-29T02:30:00"),
        st.just("yesterday"),
    ),
    "seconds": st.one_of(st.integers(0, 4 * 10**9).map(str), st.just("1.5"), st.just("0.001"), st.just("x")),
    "milliseconds": st.one_of(st.integers(0, 10**13).map(str), st.just("-1")),
    "days": st.one_of(st.integers(0, 9_000).map(str), st.just("0.25")),
    "printed": st.one_of(
        st.datetimes()
        .filter(lambda moment: moment.year >= 1000)
        .map(lambda moment: moment.strftime("%d.%m.%Y %H:%M:%S")),
        st.just("32.01.2026 00:00:00"),
    ),
}
texts = st.one_of(st.just(""), st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=12))
amounts = st.one_of(
    st.integers(-(10**7), 10**7).map(lambda minor: f"{minor / 100:.2f}"),
    st.sampled_from(["", "0.1", "12.345", "1e3", "NaN", "100000000000000.00", "7"]),
)
numbers = st.sampled_from(["", "1", "2.5", "-3", "many", "1e3"])


def mapping(kind: str) -> MessageMapping:
    return MessageMapping(parse_mapping(MAPPING.format(time=TIMES[kind]), "test"))


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(sorted(TIMES)), st.data())
def test_a_file_and_messages_of_the_same_cells_give_the_same_transactions(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    cells = st.tuples(
        st.integers(1, 99).map(str), texts, whens[kind], amounts, texts, amounts, numbers, texts
    )
    rows = [
        (
            "good",
            "u",
            {"iso": "2026-01-01T00:00:00Z", "printed": "01.01.2026 00:00:00"}.get(kind, "9000"),
            "1",
            "",
            "",
            "",
            "",
        )
    ]
    rows += data.draw(st.lists(cells, min_size=1, max_size=6))
    path = tmp_path / "file.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    (tmp_path / "mapping.toml").write_text(MAPPING.format(time=TIMES[kind]))
    table = read_transactions(path, mapping=tmp_path / "mapping.toml")
    messages = mapping(kind)
    records = dict(zip(table.valid.nonzero()[0].tolist(), table.to_records(), strict=True))
    for index, row in enumerate(rows):
        message = {name: cell for name, cell in zip(COLUMNS, row, strict=True) if cell}
        try:
            found, _ = messages.decode(json.dumps(message).encode(), 65_536)
        except InvalidRecordError as error:
            assert index in table.invalid, (row, error)
            continue
        assert index in records, (row, table.invalid.get(index))
        assert found == decode_row(records[index][1])[0]


def one(message: dict[str, Any], kind: str = "iso") -> Any:
    good = {"ID": "1", "payer": "u", "when": "2026-01-31T12:00:00Z", "sum": "49.90"}
    body = {name: value for name, value in (good | message).items() if value is not None}
    return mapping(kind).decode(json.dumps(body).encode(), 65_536)[0]


def test_values_keep_their_exact_form() -> None:
    row = one({"ID": 17, "payer": 4.50, "sum": 49.9, "V": 2, "R": True, "else": "ignored"})
    assert (row.transaction_id, row.user_id, row.amount_minor) == ("17", "4.5", 4_990)
    assert row.attributes == {"velocity": 2.0, "region": "true"}
    assert (row.currency if hasattr(row, "currency") else "EUR", row.channel) == ("EUR", "card")


def test_a_dotted_name_is_a_member_of_a_member_unless_there_is_one_of_that_name() -> None:
    text = MAPPING.format(time=TIMES["iso"]).replace('"payer"', '"payer.account.id"')
    nested = MessageMapping(parse_mapping(text, "test"))
    base = {"ID": "1", "when": "2026-01-31T12:00:00Z", "sum": "1"}

    def user(payer: dict[str, Any]) -> str:
        return nested.decode(json.dumps(base | payer).encode(), 65_536)[0].user_id

    assert user({"payer": {"account": {"id": "u7"}}}) == "u7"
    assert user({"payer.account.id": "flat", "payer": {"account": {"id": "u7"}}}) == "flat"
    for missing in ({}, {"payer": "x"}, {"payer": {"account": None}}, {"payer": {"account": {"id": None}}}):
        with pytest.raises(InvalidRecordError, match="user_id: is required"):
            user(missing)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"when": "yesterday"}, r"event_time: is not a time of the form ISO 8601 \(member when\)"),
        ({"when": {}}, r"event_time: must be a text or a number \(member when\)"),
        ({"when": "0001-01-01T00:00:00Z"}, r"event_time: must lie in the years 1970 to 9999 \(member when\)"),
        ({"payer": ["u"]}, r"user_id: must be a text or a number \(member payer\)"),
        ({"V": "many"}, r"attributes: must be a number \(member V\)"),
        ({"V": "9" * 60}, r"attributes: must be a number \(member V\)"),
        ({"payer": None}, "user_id: is required"),
        ({"sum": "a lot"}, "amount"),
        ({"sum": [1]}, "amount"),
    ],
)
def test_the_reason_names_the_member(message: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRecordError, match=says):
        one(message)


def test_times_without_an_offset_need_a_zone() -> None:
    text = MAPPING.format(time='format = "iso"')
    plain = MessageMapping(parse_mapping(text, "test"))
    with pytest.raises(InvalidRecordError, match="declares no zone"):
        plain.decode(b'{"ID": "1", "payer": "u", "when": "2026-01-31T12:00:00", "sum": "1"}', 65_536)
    with pytest.raises(ConfigError, match="declare the zone"):
        MessageMapping(parse_mapping(MAPPING.format(time='format = "%d.%m.%Y"'), "test"))


@pytest.mark.parametrize("text", ["", "[columns]\nuser = 'x'", "= 3"])
def test_a_bad_mapping_is_one_error(text: str) -> None:
    with pytest.raises(DataError, match="mapping test"):
        parse_mapping(text, "test")
