from __future__ import annotations

import os
from dataclasses import replace
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.data.columns import Problems, read_money, read_time
from offline.data.readers import read_transactions
from offline.data.table import Labels, TransactionTable, format_minor
from offline.data.writers import write_table
from offline.simulation.simulator import Simulation, simulate
from stream.errors import ConfigError, DataError
from stream.events.decode import decode_transaction
from stream.events.fields import parse_event_time
from stream.events.mapping import TimeFormat
from stream.features.spec import MISSING

MAPPING = """
[columns]
transaction_id = "id"
user_id = "who"
event_time = "when"
amount = "much"
[constants]
currency = "EUR"
channel = "card"
transaction_type = "purchase"
"""


def same(left: TransactionTable, right: TransactionTable) -> None:
    names = [name for name, _ in left._columns()]
    assert names == [name for name, _ in right._columns()]
    for (name, a), (_, b) in zip(left._columns(), right._columns(), strict=True):
        assert a.tolist() == b.tolist(), name


def read_mapped(folder: Path, text: str, extra: str = "") -> TransactionTable:
    (folder / "map.toml").write_text(MAPPING + extra)
    (folder / "data.csv").write_text(text)
    return read_transactions(folder / "data.csv", mapping=folder / "map.toml")


def money(values: pa.ChunkedArray, units: int) -> tuple[list[int], dict]:
    problems = Problems("file")
    minor_units = np.full(len(values), units, dtype=np.int64)
    minor = read_money(values, "pre_balance", "B", problems, minor_units=minor_units, missing=MISSING)
    return minor.tolist(), problems.by_row


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_file_form_brings_back_the_same_table(tmp_path, suffix):
    table = simulate(Simulation(transactions=300, seed=3, users=20))
    attributes = {
        "score": np.where(np.arange(300) % 3 == 0, np.nan, 0.25),
        "region": np.array(["n", None, "s"] * 100, object),
    }
    columns = {name: getattr(table, name) for name in TransactionTable.__dataclass_fields__}
    table = TransactionTable(**(columns | {"attributes": attributes}))
    path = tmp_path / f"x.{suffix}"
    write_table(table, path)
    back = read_transactions(path)
    assert not back.invalid
    assert back.attributes.keys() == attributes.keys()
    np.testing.assert_array_equal(back.attributes["score"], attributes["score"])
    same(
        TransactionTable(**(columns | {"attributes": {"region": attributes["region"]}})),
        TransactionTable(
            **({n: getattr(back, n) for n in columns} | {"attributes": {"region": back.attributes["region"]}})
        ),
    )


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"x\.xlsx"):
        write_table(simulate(Simulation(transactions=100)), tmp_path / "x.xlsx")
    (tmp_path / "x.xlsx").touch()
    with pytest.raises(DataError, match=r"\.parquet"):
        read_transactions(tmp_path / "x.xlsx")


def test_records_are_what_the_stream_decodes():
    table = simulate(Simulation(transactions=200, seed=5))
    for row, (key, value) in enumerate(table.to_records()):
        transaction, unknown = decode_transaction(value)
        assert unknown == 0
        assert key == transaction.user_id.encode()
        assert transaction.amount_minor == table.amount_minor[row]
        assert transaction.post_balance_minor == table.post_balance_minor[row]
        assert transaction.event_time_ms == table.event_time_ms[row]


def test_take_moves_the_invalid_rows_along(tmp_path):
    table = read_mapped(
        tmp_path,
        "id,who,when,much\n1,a,2026-01-01T00:00:00Z,1\n2,b,2026-01-01T00:00:00Z,x\n3,c,2026-01-01T00:00:00Z,3\n",
    )
    assert list(table.invalid) == [1]
    assert list(table.take(np.array([2, 1])).invalid) == [1]
    assert list(table.take(np.array([False, True, True])).invalid) == [0]
    assert list(table.slice(1, 3).invalid) == [0]
    assert [key for key, _ in table.to_records()] == [b"a", b"c"]
    assert table.valid.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ("1,a,2026-01-01T00:00:00Z,-99999999999999.00", "amount", "1e15"),
        ("1,a,2026-01-01T00:00:00Z,1.234", "amount", "more decimals"),
        ("1,a,2026-01-01T00:00:00Z,1e3", "amount", "plain decimal"),
        ("1,a,2026-01-01T00:00:00Z,", "amount", "is required"),
        ("1,a,2026-01-01T00:00:00Z,99999999999999.00", "amount", "1e15"),
        ("1,,2026-01-01T00:00:00Z,1", "user_id", "is required"),
        (f"{'x' * 129},a,2026-01-01T00:00:00Z,1", "transaction_id", "at most 128"),
        ("1,a,2026-02-31T00:00:00Z,1", "event_time", "is not a time of the form"),
        ("1,a,1969-12-31T00:00:00Z,1", "event_time", "1970"),
        ("1,a,,1", "event_time", "is required"),
    ],
)
def test_a_bad_cell_names_row_column_and_reason(tmp_path, row, field, reason):
    table = read_mapped(tmp_path, f"id,who,when,much\n0,z,2026-01-01T00:00:00Z,1\n{row}\n")
    assert list(table.invalid) == [1]
    error = table.invalid[1]
    column = {"amount": "much", "user_id": "who", "transaction_id": "id", "event_time": "when"}[field]
    assert error.field == field
    assert reason in error.reason
    assert f"row 2, column {column}" in error.reason
    assert table.amount_minor[1] == 0
    assert table.user_id[1] == ""


def test_a_file_without_one_good_row_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no row is a valid transaction"):
        read_mapped(tmp_path, "id,who,when,much\n1,a,soon,1\n")


def test_a_missing_column_names_file_and_column(tmp_path):
    with pytest.raises(DataError, match=r"data\.csv: column much is missing"):
        read_mapped(tmp_path, "id,who,when\n1,a,2026-01-01T00:00:00Z\n")
    (tmp_path / "plain.csv").write_text("transaction_id,user_id\n1,2\n")
    with pytest.raises(DataError, match=r"plain\.csv: column event_time is missing"):
        read_transactions(tmp_path / "plain.csv")


def test_naive_times_need_a_zone(tmp_path):
    text = "id,who,when,much\n1,a,2026-07-01 12:00:00,1\n"
    with pytest.raises(DataError, match="declare their zone"):
        read_mapped(tmp_path, text)
    table = read_mapped(tmp_path, text, '[time]\nzone = "Europe/Brussels"')
    assert table.event_time_ms[0] == parse_event_time("2026-07-01T10:00:00Z")


@pytest.mark.parametrize(
    ("how", "cells"),
    [
        ({"format": "epoch_s"}, pa.array([1_767_225_600])),
        ({"format": "epoch_s"}, pa.array(["1767225600.000"])),
        ({"format": "epoch_ms"}, pa.array([1_767_225_600_000])),
        ({"format": "%d.%m.%Y %H:%M", "zone": "UTC"}, pa.array(["01.01.2026 00:00"])),
        ({"format": "%d.%m.%Y %H:%M %z"}, pa.array(["01.01.2026 01:00 +0100"])),
        ({"format": "offset", "unit": "days", "origin": "2025-12-31T00:00:00Z"}, pa.array([1])),
        ({"format": "offset", "unit": "seconds", "origin": "2025-12-31T00:00:00Z"}, pa.array([86_400.0])),
        ({"zone": "UTC"}, pa.array([np.datetime64("2026-01-01", "ns")])),
        ({}, pa.array([np.datetime64("2026-01-01", "us")]).cast(pa.timestamp("us", tz="Asia/Tokyo"))),
        ({"zone": "UTC"}, pa.array(["2026-01-01"])),
    ],
)
def test_time_formats(how, cells):
    problems = Problems("file")
    times = read_time(pa.chunked_array([cells]), "event_time", "T", problems, how=TimeFormat(**how))
    assert not problems.by_row
    assert times.tolist() == [1_767_225_600_000]


@given(st.integers(-(10**15), 10**15), st.sampled_from([1, 100, 1000, 10_000]))
def test_money_texts_are_exact(minor, units):
    values, problems = money(pa.chunked_array([pa.array([format_minor(minor, units)])]), units)
    assert not problems
    assert values == [minor]


@given(st.floats(-1e12, 1e12), st.sampled_from([1, 100, 1000]))
def test_money_floats_round_their_shortest_decimal_half_to_even(value, units):
    values, problems = money(pa.chunked_array([pa.array([value])]), units)
    assert not problems
    assert values == [int((Decimal(repr(value)) * units).to_integral_value(ROUND_HALF_EVEN))]


def test_money_floats_at_the_half():
    assert money(pa.chunked_array([pa.array([0.125, 0.135, 1.005, 2.675, None])]), 100)[0] == [
        12,
        14,
        100,
        268,
        MISSING,
    ]


def test_labels_and_their_times(tmp_path):
    text = "id,who,when,much,y\n1,a,2026-01-01T00:00:00Z,1,0\n2,a,2026-01-01T00:00:00Z,1,1\n3,a,2026-01-01T00:00:00Z,1,\n"
    table = read_mapped(tmp_path, text, "[label]\ncolumn = 'y'\ndelay_days = 2")
    assert table.is_fraud.tolist() == [0, 1, -1]
    assert (table.label_time_ms - table.event_time_ms).tolist() == [2 * 86_400_000] * 3
    with pytest.raises(DataError, match="row 1, column y: 'maybe'"):
        read_mapped(
            tmp_path, "id,who,when,much,y\n1,a,2026-01-01T00:00:00Z,1,maybe\n", "[label]\ncolumn = 'y'"
        )


def test_json_lines_keep_bad_lines_and_read_labels_beside(tmp_path):
    good = {"transaction_id": "1", "user_id": "u", "event_time": 1000, "amount": 1.5, "currency": "EUR",
            "channel": "c", "transaction_type": "t"}  # fmt: skip
    lines = [
        good | {"is_fraud": True, "label_time": 5000},
        good | {"amount": "1-"},
        good | {"transaction_id": "3"},
    ]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(line) for line in lines) + b"\n\nnot json\n")
    label = {"transaction_id": "3", "user_id": "u", "is_fraud": False, "event_time": 1000, "label_time": 9000}
    (tmp_path / "x.labels.jsonl").write_bytes(orjson.dumps(label))
    table = read_transactions(path)
    assert len(table) == 4
    assert [(row, error.field) for row, error in table.invalid.items()] == [(1, "amount"), (3, "$")]
    assert "line 5" in table.invalid[3].reason
    assert table.is_fraud.tolist() == [1, -1, 0, -1]
    assert table.label_time_ms[[0, 2]].tolist() == [5000, 9000]
    assert table.amount_minor.tolist() == [150, 0, 150, 0]


LINE = {"user_id": "u", "event_time": 1000, "amount": 1.5, "currency": "EUR", "channel": "c",
        "transaction_type": "t"}  # fmt: skip


def read_labelled(folder, lines, labels):
    """Read transactions, and labels beside them as pairs of transaction, fraud and time."""
    path = folder / "x.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(LINE | line) for line in lines))
    (folder / "x.labels.jsonl").write_bytes(
        b"\n".join(
            orjson.dumps(
                {"transaction_id": name, "user_id": "u", "is_fraud": fraud, "event_time": 1000,
                 "label_time": time}
            )
            for name, fraud, time in labels
        )
    )  # fmt: skip
    return read_transactions(path)


def labels_of(table):
    labels = table.labels()
    return list(zip(labels.row.tolist(), labels.is_fraud.tolist(), labels.time_ms.tolist(), strict=True))


def test_every_label_of_a_transaction_is_kept_and_the_last_of_its_times_is_the_truth(tmp_path):
    lines = [{"transaction_id": name} for name in "123"]
    lines[2] |= {"is_fraud": True, "label_time": 5000}
    told = [("1", True, 7000), ("2", False, 8000), ("1", False, 9000), ("1", True, 8000), ("3", False, 5000),
            ("9", True, 1)]  # fmt: skip
    table = read_labelled(tmp_path, lines, told)
    assert labels_of(table) == [
        (2, 1, 5000), (0, 1, 7000), (1, 0, 8000), (0, 0, 9000), (0, 1, 8000), (2, 0, 5000)
    ]  # fmt: skip
    assert table.is_fraud.tolist() == [0, 0, 0]
    assert table.label_time_ms.tolist() == [9000, 8000, 5000]
    # Where no row has two, the columns say it all.
    assert read_labelled(tmp_path, lines, told[:2]).label_history is None


def test_labels_without_a_time_give_way_to_those_with_one(tmp_path):
    lines = [{"transaction_id": name, "is_fraud": True} for name in "12"]
    table = read_labelled(tmp_path, lines, [("2", True, 7000), ("2", False, 9000)])
    assert sorted(labels_of(table)) == [(0, 1, 1000), (1, 0, 9000), (1, 1, 7000)]
    assert table.label_time_ms.tolist() == [1000, 9000]


def test_a_label_is_of_the_transaction_and_not_of_its_repetition(tmp_path):
    table = read_labelled(tmp_path, [{"transaction_id": name} for name in "121"], [("1", True, 7000)])
    assert table.is_fraud.tolist() == [1, -1, -1]


@given(
    labels=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 9)), max_size=12),
    chosen=st.lists(st.integers(-5, 4), max_size=8),
)
def test_labels_go_with_their_rows(labels, chosen):
    whole = simulate(Simulation(transactions=100, users=5)).slice(0, 5)
    bare = replace(whole, is_fraud=None, label_time_ms=None)
    columns = np.array(labels, np.int64).reshape(-1, 3)
    table = bare.with_labels(Labels(columns[:, 0], columns[:, 1].astype(np.int8), columns[:, 2]))
    assert labels_of(table) == labels or table.label_history is None
    each = [[label[1:] for label in labels if label[0] == row] for row in range(5)]
    for row, mine in enumerate(each):
        latest = max((time for _, time in mine), default=None)
        if mine:
            assert table.label_time_ms[row] == latest
            assert table.is_fraud[row] == [fraud for fraud, time in mine if time == latest][-1]
        else:
            assert not labels or table.is_fraud[row] == -1
    taken = table.take(chosen)
    assert sorted(labels_of(taken)) == sorted(
        (at, *one) for at, row in enumerate(chosen) for one in each[row]
    )
    for at, row in enumerate(chosen):
        assert [one[1:] for one in labels_of(taken) if one[0] == at] == each[row]
    assert labels_of(table.slice(1, 3)) == [(row - 1, *one) for row in (1, 2) for one in each[row]]


def test_whole_floats_are_identifiers_without_a_point(tmp_path):
    columns = {"id": [1.0, 2.0], "who": [7.0, 8.0], "when": ["2026-01-01T00:00:00Z"] * 2, "much": [1.1, 2.2]}
    pa_parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    (tmp_path / "map.toml").write_text(MAPPING)
    table = read_transactions(tmp_path / "x.parquet", mapping=tmp_path / "map.toml")
    assert table.transaction_id.tolist() == ["1", "2"]
    assert table.amount_minor.tolist() == [110, 220]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_kind_of_text_column_is_read(tmp_path, kind):
    columns = {"id": ["1"], "who": ["7"], "when": ["2026-01-01T00:00:00Z"], "much": ["1.10"]}
    pa_parquet.write_table(
        pa.table({name: pa.array(cells).cast(kind) for name, cells in columns.items()}),
        tmp_path / "x.parquet",
    )
    (tmp_path / "map.toml").write_text(MAPPING)
    table = read_transactions(tmp_path / "x.parquet", mapping=tmp_path / "map.toml")
    assert (table.amount_minor[0], table.event_time_ms[0]) == (110, 1_767_225_600_000)


def test_a_parquet_amount_with_more_decimals_than_the_currency_is_read_where_they_are_zeros(tmp_path):
    """A column of decimals has one scale; yen stand in it beside dinars."""
    columns = {
        "transaction_id": ["1", "2", "3"], "user_id": ["u"] * 3, "event_time": [1000] * 3, "channel": ["c"] * 3,
        "transaction_type": ["t"] * 3, "currency": ["JPY", "KWD", "EUR"],
        "amount": pa.array([Decimal("5.000"), Decimal("5.125"), Decimal("5.125")], pa.decimal128(20, 3)),
    }  # fmt: skip
    pa_parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    table = read_transactions(tmp_path / "x.parquet")
    assert table.amount_minor.tolist() == [5, 5125, 0]
    assert list(table.invalid) == [2]


def test_an_empty_file_and_a_column_twice(tmp_path):
    assert len(read_mapped(tmp_path, "id,who,when,much\n")) == 0
    with pytest.raises(DataError, match="column who appears more than once"):
        read_mapped(tmp_path, "id,who,when,much,who\n")
    with pytest.raises(DataError, match="no header"):
        read_mapped(tmp_path, "")


def test_the_handbook_file_reads_whole():
    path = os.environ.get("HANDBOOK_PARQUET")
    if path is None:
        pytest.skip("HANDBOOK_PARQUET does not name the handbook's Parquet file; its authors publish it")
    table = read_transactions(Path(path), dataset="handbook")
    assert not table.invalid
    assert set(np.unique(table.is_fraud).tolist()) == {0, 1}
    assert not table.attributes
