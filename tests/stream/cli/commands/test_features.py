"""``riskstream features`` with profiles and a file of labels."""

from __future__ import annotations

import math

import orjson
import pyarrow.parquet as pa_parquet
import pytest
from click.testing import CliRunner

from stream.cli import _cli
from stream.events.fields import format_event_time

DAY_MS = 86_400_000
START_MS = 20_000 * DAY_MS
PROFILES = """
[[entities]]
entity = "merchant"
windows_days = [5]
aggregates = ["count"]
label_windows_days = [20]
label_aggregates = ["fraud_count", "label_count"]
label_recency = ["legitimate_since_fraud"]
label_delay_days = 2
label_horizon_days = 30

[[entities]]
entity = "user"
windows_days = [5]
aggregates = ["count"]
"""
FIELDS = {"amount": "5.00", "currency": "EUR", "channel": "c", "transaction_type": "t", "merchant_id": "m"}


def label(name, fraud, day):
    """Return what the bank said of a transaction, which is named by its user and day, on a day."""
    return {
        "transaction_id": name,
        "user_id": name[0],
        "is_fraud": fraud,
        "event_time": START_MS + int(name[1:]) * DAY_MS,
        "label_time": START_MS + day * DAY_MS,
    }


def write_lines(path, rows):
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def transactions(names):
    return [
        FIELDS
        | {
            "transaction_id": name,
            "user_id": name[0],
            "event_time": format_event_time(START_MS + int(name[1:]) * DAY_MS),
        }
        for name in names
    ]


@pytest.fixture
def run(tmp_path):
    """Return what runs the verb and gives its columns and output."""
    (tmp_path / "profiles.toml").write_text(PROFILES)

    def call(source, *options, profiles=True):
        chosen = ("--profiles", str(tmp_path / "profiles.toml"), "--label-delay", "1d") if profiles else ()
        output = tmp_path / "out.parquet"
        arguments = ["features", "--input", str(source), "--output", str(output), *chosen, *options]
        done = CliRunner().invoke(_cli, arguments)
        columns = pa_parquet.read_table(output).to_pydict() if done.exit_code == 0 else {}
        return columns, done

    return call


#: Transactions of one merchant, by user and day. b4 is on time for its own user, and more than the allowed
#: three days late for the merchant.
NAMES = ["a0", "a1", "a2", "a9", "b4", "c7", "a13", "a14", "a15", "a30"]
LABELS = [
    label("a0", True, 1),  # known on day 2, for the delay
    label("a1", False, 3),
    label("a2", True, 3),  # known on day 4
    label("b4", True, 7),  # never counts
    label("x1", True, 7),  # of nobody
    label("a9", False, 11),
    label("a0", False, 14),  # corrects the first on day 14
    label("a1", False, 3),  # again, changes nothing
    label("a2", False, 12),  # arrives before ...
    label("a2", True, 8),  # ... what it corrects
    label("c7", True, 38),  # later than 30 days after it
]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_labels_are_those_of_their_time(tmp_path, run, form):
    source = tmp_path / f"x.{form}"
    rows = transactions(NAMES)
    if form == "jsonl":
        write_lines(source, rows)
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        source.write_text("\n".join(lines))
    write_lines(tmp_path / "told.jsonl", LABELS)
    columns, done = run(source, "--labels", str(tmp_path / "told.jsonl"))
    assert done.exit_code == 0, done.output
    assert "10 rows (10 scored)" in done.output
    assert "; 1 labels refer to unknown transactions" in done.output
    found = {
        name: dict(zip(NAMES, columns[f"merchant_{name}"], strict=True))
        for name in ("count_5d", "fraud_count_20d", "label_count_20d", "legitimate_since_fraud")
    }
    assert all(math.isnan(values.pop("b4")) for values in found.values())
    assert columns["user_count_5d"] == [1, 2, 3, 1, 1, 1, 2, 2, 3, 1]
    # Of a0, a1, a2, a9, c7, a13, a14, a15 and a30.
    assert list(found["count_5d"].values()) == [1, 2, 3, 1, 1, 2, 2, 3, 1]
    # Known on day 2: a0 fraud; 3: a1; 4: a2 fraud; 8: a2 fraud anew; 11: a9; 12: a2 not; 14: a0 not.
    assert list(found["fraud_count_20d"].values()) == [0, 0, 1, 2, 2, 1, 0, 0, 0]
    assert list(found["label_count_20d"].values()) == [0, 0, 1, 3, 3, 4, 4, 4, 3]
    since = list(found["legitimate_since_fraud"].values())
    assert since[2:6] == [0, 0, 0, 3]
    assert all(map(math.isnan, [*since[:2], *since[6:]]))


def test_a_file_beside_is_read_and_corrected_by_the_option(tmp_path, run):
    source = tmp_path / "x.jsonl"
    write_lines(source, transactions(["a0", "a5", "a9"]))
    write_lines(tmp_path / "x.labels.jsonl", [label("a0", True, 3)])
    assert run(source)[0]["merchant_fraud_count_20d"] == [0, 1, 1]
    write_lines(tmp_path / "later.jsonl", [label("a0", False, 7)])
    columns, done = run(source, "--labels", str(tmp_path / "later.jsonl"))
    assert columns["merchant_fraud_count_20d"] == [0, 1, 0]
    assert "unknown" not in done.output


def test_without_profiles_there_are_none(tmp_path, run):
    source = tmp_path / "x.jsonl"
    write_lines(source, transactions(["a0", "a5"]))
    columns, done = run(source, profiles=False)
    assert done.output.endswith("2 rows (2 scored) and 44 features\n")
    assert len(columns) == 46
    columns, done = run(source, "--labels", str(source), profiles=False)
    assert done.exit_code == 2
    assert "--labels requires --profiles: only entity profiles use labels" in done.output


def test_what_is_no_label_is_named(tmp_path, run):
    source = tmp_path / "x.jsonl"
    write_lines(source, transactions(["a0", "a5"]))
    told = tmp_path / "told.jsonl"
    write_lines(told, [label("a0", True, 3), label("a5", "perhaps", 7)])
    _, done = run(source, "--labels", str(told))
    assert str(done.exception).startswith(f"{told}: line 2, is_fraud:")
    _, done = run(source, "--labels", str(tmp_path / "nowhere.jsonl"))
    assert "nowhere.jsonl cannot be read" in str(done.exception)


def test_an_entity_that_the_file_lacks_is_left_out(tmp_path, run):
    source = tmp_path / "x.jsonl"
    rows = transactions(["a0", "a5"])
    write_lines(source, [{name: row[name] for name in row if name != "merchant_id"} for row in rows])
    columns, done = run(source)
    assert "The file has no column for merchant: this profile is left out." in done.output
    assert len(columns) == 47
