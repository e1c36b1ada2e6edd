"""Money and times: exact inside, in every form that is accepted, and refused in every other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stream.events.currencies import MINOR_UNIT_DECIMALS
from stream.events.fields import MAX_AMOUNT_MINOR, format_event_time, parse_event_time
from stream.events.models import Transaction
from support.events import LAST, NOON, TRANSACTION, Raw, refusal, transaction

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
        (Raw("-0.01"), "EUR", -1),
        ("-1", "EUR", -100),
        ("-1000000000000000", "JPY", -MAX_AMOUNT_MINOR),
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
        (Raw("0.001"), "EUR", "more decimals than EUR"),
        (Raw("0.5"), "JPY", "more decimals than JPY"),
        ("0.0001", "BHD", "more decimals than BHD"),
        # More than 28 digits: the default decimal context would round them away.
        ("100000000.00000000000000000001", "EUR", "more decimals than EUR"),
        (Raw("1.0000000000000000000000000000000000001"), "EUR", "more decimals than EUR"),
        (Raw("10000000000000.01"), "EUR", "beyond 1e15"),
        (Raw("-10000000000000.01"), "EUR", "beyond 1e15"),
        (Raw("1000000000000001"), "JPY", "out of range"),
        ("1000000000000001", "JPY", "beyond 1e15"),
        (Raw("1e30"), "EUR", "beyond 1e15"),
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
