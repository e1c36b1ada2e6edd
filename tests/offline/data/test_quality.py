from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from offline.data.quality import check_quality
from offline.data.readers import read_transactions
from offline.simulation.simulator import Simulation, simulate
from stream.cli.commands.inspect import inspect
from stream.errors import DataError

DAY_MS = 86_400_000
HEADER = "transaction_id,user_id,event_time,amount,currency,channel,transaction_type,pre_balance,post_balance,is_fraud,label_time\n"
ROWS = (
    "a,u,2024-01-10T00:00:00Z,1.00,EUR,pos,purchase,5.00,4.00,0,2024-01-12T00:00:00Z",
    "b,u,2024-01-10T01:00:00Z,ten,EUR,pos,purchase,,,0,",
    "c,u,2024-01-10T02:00:00Z,1.001,EUR,pos,purchase,,,0,",
    "d,u,2024-01-10T03:00:00Z,2.001,EUR,pos,purchase,,,0,",
    "a,u,2024-01-10T00:00:00Z,1.00,EUR,pos,purchase,5.00,4.00,0,",
    "a,u,2024-01-10T00:00:00Z,9.00,EUR,pos,purchase,,,0,",
    "a,w,2024-01-11T00:00:00Z,1.00,EUR,pos,purchase,,,1,2024-01-01T00:00:00Z",
    "e,u,2024-01-09T23:00:00Z,0.00,EUR,pos,purchase,,,,",
    "f,u,2024-01-02T00:00:00Z,1.00,EUR,pos,purchase,5.00,3.00,0,",
    "g,v,2024-01-03T00:00:00Z,3.00,EUR,pos,purchase,,,0,",
)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "data.csv").write_text(HEADER + "\n".join(ROWS) + "\n")
    return tmp_path / "data.csv"


def test_every_fault_is_told_with_its_place_and_number(path):
    report = check_quality(read_transactions(path), allowed_lateness_ms=3 * DAY_MS)
    found = {
        (item["severity"], item["field"], item["what"]): (item["rows"], item["first_rows"])
        for item in report["findings"]
    }
    assert found == {
        ("error", "amount", "must be a plain decimal number such as 12.34"): (1, [2]),
        ("error", "amount", "has more decimals than the currency allows"): (2, [3, 4]),
        ("error", "transaction_id", "repeats an earlier row"): (1, [5]),
        ("error", "transaction_id", "repeats an earlier row, with another time or amount"): (1, [6]),
        ("warning", "transaction_id", "repeats an earlier row, of another user"): (1, [7]),
        ("error", "event_time", "lies more than the allowed 3 days behind the user's latest"): (1, [9]),
        ("warning", "event_time", "is older than the previous row of the same user"): (1, [8]),
        ("warning", "event_time", "is older than an earlier row (by up to 9.0 days)"): (3, [8, 9, 10]),
        ("warning", "is_fraud", "is unknown"): (1, [8]),
        ("warning", "label_time", "lies before the transaction itself"): (1, [7]),
        ("warning", "amount", "is zero"): (1, [8]),
        ("warning", "post_balance", "does not differ from the previous balance by the amount"): (1, [9]),
    }
    assert [item["severity"] for item in report["findings"]] == ["error"] * 5 + ["warning"] * 7
    assert {item["column"] for item in report["findings"] if item["field"] == "amount"} == {"amount", None}
    assert (report["rows"], report["valid_rows"]) == (10, 7)
    assert report["columns"]["amount"] == {
        "kind": "number",
        "missing": 0,
        "least": 0.0,
        "median": 1.0,
        "most": 9.0,
    }
    assert report["columns"]["user_id"] == {"kind": "text", "missing": 0, "distinct": 3}
    assert report["columns"]["is_fraud"] == {"kind": "label", "missing": 1, "frauds": 1, "legitimate": 5}


def test_negative_amounts_are_said_to_be_refunds(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text(HEADER + "a,u,2024-01-01T00:00:00Z,-2.00,EUR,pos,purchase,5.00,7.00,0,\n")
    [finding] = check_quality(read_transactions(path), allowed_lateness_ms=0)["findings"]
    assert (finding["severity"], finding["field"], finding["first_rows"]) == ("warning", "amount", [1])
    assert "refund" in finding["what"]


def test_sound_data_has_no_findings():
    table = simulate(Simulation(transactions=2_000, seed=1))
    assert check_quality(table, allowed_lateness_ms=0)["findings"] == []


def test_the_command_shows_it_and_is_strict_when_asked(path):
    report = path.with_suffix(".json")
    done = CliRunner().invoke(inspect, ["--data", str(path), "--json", str(report)])
    assert done.exit_code == 0, done.output
    assert "has more decimals than the currency allows" in done.output
    assert json.loads(report.read_bytes())["rows"] == 10
    strict = CliRunner().invoke(inspect, ["--data", str(path), "--strict"])
    assert isinstance(strict.exception, DataError)
    assert "6 errors" in str(strict.exception)
