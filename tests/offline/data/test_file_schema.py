"""Cells of a file against the stream's schema: a row is valid where the same values make a valid record."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from hypothesis import example, given
from hypothesis import strategies as st

from offline.data.readers import read_transactions
from stream.errors import InvalidRecordError
from stream.events.decode import validate_transaction
from stream.events.fields import format_event_time
from stream.features.spec import MISSING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ORDINARY = {
    "transaction_id": "t1",
    "user_id": "u1",
    "event_time": "2024-05-01T10:00:00.123Z",
    "amount": "12.10",
    "currency": "EUR",
    "channel": "online",
    "transaction_type": "purchase",
    "pre_balance": "",
    "post_balance": "",
    "merchant_id": "",
    "card_id": "",
    "device_id": "",
    "ip": "",
    "country": "",
    "attributes.age": "",
    "attributes.shop": "",
}
#: What JSON and CSV both can say; a text with zeros in it is none for CSV.
texts = st.one_of(
    st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12),
    st.sampled_from(["x" * 64, "x" * 65, "x" * 128, "x" * 129, "Ä" * 128, " ", '"', "a,b"]),
)
money = st.one_of(
    st.from_regex(r"-?[0-9]{1,21}(\.[0-9]{0,5})?", fullmatch=True),
    st.sampled_from(
        ["1e3", "+1", " 1", "1_0", "NaN", "1.10", "0.005", "10000000000000", "10000000000000.01"]
    ),
)
cells = {
    "transaction_id": texts,
    "user_id": texts,
    "event_time": st.one_of(
        st.integers(0, 253_402_300_799_999).map(format_event_time),
        st.sampled_from(
            ["1969-12-31T23:59:59Z", "2024-02-30T00:00:00Z", "2024-05-01T10:00:00+02:00", "soon"]
        ),
    ),
    "amount": money,
    "currency": st.sampled_from(["EUR", "JPY", "KWD", "CLF", "eur", "XXX", ""]),
    "channel": texts,
    "transaction_type": texts,
    "pre_balance": money,
    "post_balance": money,
    "merchant_id": texts,
    "card_id": texts,
    "device_id": texts,
    "ip": st.one_of(
        st.ip_addresses().map(str),
        st.sampled_from(["1.2.3", "::1%eth0", "fe80::1%" + "x" * 45, "01.2.3.4", "host"]),
    ),
    "country": st.sampled_from(["DE", "de", "DEU", "D1", "ÄÖ", ""]),
    "attributes.age": st.one_of(st.floats(allow_nan=False).map(str), st.just("1e999")),
    "attributes.shop": st.one_of(texts, st.sampled_from(["x" * 256, "x" * 257])),
}
#: One changed cell in most rows, so that the fault has a name; all of them in some.
rows = st.one_of(
    st.sampled_from(sorted(cells)).flatmap(lambda name: st.fixed_dictionaries({name: cells[name]})),
    st.fixed_dictionaries(cells),
).map(lambda changed: ORDINARY | changed)


def record_of(row: dict[str, str]) -> dict[str, object]:
    """What a producer would send of a row: a cell without anything is a field that is not there."""
    body: dict[str, object] = {
        name: cell for name, cell in row.items() if cell and not name.startswith("attributes.")
    }
    attributes: dict[str, object] = {}
    if row["attributes.age"]:
        attributes["age"] = float(row["attributes.age"])
    if row["attributes.shop"]:
        attributes["shop"] = row["attributes.shop"]
    return body | ({"attributes": attributes} if attributes else {})


@given(st.lists(rows, max_size=6))
@example([ORDINARY | {"ip": "fe80::1%" + "x" * 45}])
@example([ORDINARY | {"attributes.shop": "x" * 257}])
def test_a_row_is_valid_where_its_record_is(
    tmp_path_factory: pytest.TempPathFactory, changed: list[dict[str, str]]
) -> None:
    # A sound row before them, so that the file is one, and a shop that is no number.
    given_rows = [ORDINARY | {"attributes.shop": "corner"}, *changed]
    table = read_transactions(_write(tmp_path_factory.getbasetemp() / "schema.csv", given_rows))
    for at, row in enumerate(given_rows):
        try:
            record = validate_transaction(record_of(row))
        except InvalidRecordError as error:
            assert at in table.invalid, f"{row}: {error}"
            if sum(row[name] != cell for name, cell in ORDINARY.items()) == 1:
                assert table.invalid[at].field.split(".")[0] == error.field.split(".")[0]
            continue
        assert at not in table.invalid, f"{row}: {table.invalid.get(at)}"
        for name in ("transaction_id", "user_id", "channel", "transaction_type", "currency"):
            assert getattr(table, name)[at] == getattr(record, name)
        for name in ("merchant_id", "card_id", "device_id", "ip", "country"):
            assert getattr(table, name)[at] == getattr(record, name)
        assert table.event_time_ms[at] == record.event_time_ms
        assert table.amount_minor[at] == record.amount_minor
        for name in ("pre_balance_minor", "post_balance_minor"):
            balance = getattr(record, name)
            assert getattr(table, name)[at] == (MISSING if balance is None else balance)


def _write(path: Path, lines: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ORDINARY)
        writer.writeheader()
        writer.writerows(lines)
    return path
