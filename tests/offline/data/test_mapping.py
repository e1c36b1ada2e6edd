from __future__ import annotations

import pytest

from offline.data.mapping import shipped_mapping, shipped_mappings
from stream.errors import DataError
from stream.events.mapping import parse_mapping

GOOD = """
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


def test_shipped_mappings_are_valid():
    assert shipped_mappings() == ("bank-ledger", "handbook")
    for name in shipped_mappings():
        assert shipped_mapping(name).label is not None


def test_handbook_never_reads_the_scenario():
    mapping = shipped_mapping("handbook")
    assert "TX_FRAUD_SCENARIO" in mapping.never
    assert "TX_FRAUD_SCENARIO" not in mapping.used_columns()


def test_bank_ledger_reads_balances():
    used = shipped_mapping("bank-ledger").used_columns()
    assert {"trans_id", "trans_time", "pre_balance", "post_balance", "trans_type", "label"} <= set(used)


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("[surprise]\nx = 1", "surprise: unknown key"),
        ("[time]\nformatt = 'iso'", "time.formatt: unknown key"),
        ("[time]\nformat = 'whenever'", "time: format must be"),
        ("[time]\nzone = 'Mars/Olympus'", "IANA"),
        ("[time]\nformat = 'offset'", "requires unit and origin"),
        ("[label]\ncolumn = 'much'", "column much contains the label"),
        ("[label]\ncolumn = 'y'\n[attributes]\nnumeric = { leak = 'y' }", "column y contains the label"),
        ("[label]\ncolumn = 'y'\ndelay_days = 1\ntime_column = 't'", "exclude each other"),
        ("[attributes.numeric]\na = 'x'\n[attributes.categorical]\na = 'x'", "both numeric and categorical"),
        ("not toml", "is not TOML"),
    ],
)
def test_a_wrong_key_is_named(addition, expected):
    with pytest.raises(DataError, match=expected) as raised:
        parse_mapping(GOOD + addition, "mine.toml")
    assert "mine.toml" in str(raised.value)


def test_an_unknown_field_is_named():
    with pytest.raises(DataError, match="amuont"):
        parse_mapping(GOOD.replace("[constants]", "amuont = 'x'\n[constants]"), "mine.toml")


def test_a_missing_field_is_named():
    with pytest.raises(DataError, match="channel is required: name it in columns or constants"):
        parse_mapping(GOOD.replace('channel = "card"', ""), "mine.toml")


def test_a_forbidden_column_is_refused():
    with pytest.raises(DataError, match="column much is listed in never"):
        parse_mapping("never = ['much']\n" + GOOD, "mine.toml")


def test_an_unknown_dataset_lists_those_there_are():
    with pytest.raises(DataError, match="bank-ledger, handbook"):
        shipped_mapping("other")
