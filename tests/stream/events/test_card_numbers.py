"""Card numbers are found by scheme and Luhn check, and masked wherever they stand."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import InvalidRecordError
from stream.events.card_numbers import CardNumbers, is_card_number, mask
from stream.events.decode import decode_row
from support.pipelines import record, transaction

KEY = b"k" * 32

#: The card schemes' published test numbers.
NUMBERS = [
    "4111111111111111", "4012888888881881", "4222222222222", "5555555555554444", "5105105105105100",
    "2223003122003222", "378282246310005", "371449635398431", "30569309025904", "38520000023237",
    "6011111111111117", "3530111333300000", "6200000000000005", "6304000000000000", "4111 1111 1111 1111",
    "4111-1111-1111-1111", "3782 822463 10005",
]  # fmt: skip


def luhn_holds(digits: str) -> bool:
    """The check digit as ISO/IEC 7812-1 describes it."""
    total = 0
    for place, digit in enumerate(digits[::-1]):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_of_the_schemes_are_found(number: str) -> None:
    assert is_card_number(number)
    digits = re.sub("[ -]", "", number)
    last = str((int(digits[-1]) + 1) % 10)
    assert not is_card_number(digits[:-1] + last)


@pytest.mark.parametrize(
    "text",
    [
        "", "u-1", "1769860800000", "1769860800000000", "41111111111111111111", "4111  1111 1111 1111", "4111_1111_1111_1111",
        " 4111111111111111", "card-4111111111111111", "٤١١١١١١١١١١١١١١١", "0000000000000000", "9111111111111111",
    ],
)  # fmt: skip
def test_other_ids_are_not(text: str) -> None:
    assert not is_card_number(text)


@given(st.from_regex(r"4[0-9]{15}|5[1-5][0-9]{14}|3[47][0-9]{13}|4[0-9]{12}", fullmatch=True))
def test_the_check_digit_decides(digits: str) -> None:
    assert is_card_number(digits) == (digits.isascii() and luhn_holds(digits))


@given(st.text(), st.sampled_from(NUMBERS), st.text())
def test_no_number_is_left_in_a_text(before: str, number: str, after: str) -> None:
    text = f"{before}|{number}|{after}".encode(errors="replace")
    masked = mask(text)
    assert number.encode() not in masked
    digits = re.sub("[ -]", "", number).encode()
    assert digits[:6] + b"*" * (len(digits) - 10) + digits[-4:] in masked
    assert mask(masked) == masked


@given(st.binary())
def test_bytes_without_a_number_stay_as_they_are(data: bytes) -> None:
    if not re.search(rb"\d(?:[ -]?\d){12}", data):
        assert mask(data) == data


def test_policies() -> None:
    row = decode_row(json.dumps(transaction(1, NUMBERS[0], card_id=NUMBERS[-2])).encode())[0]
    with pytest.raises(InvalidRecordError, match="is a card number") as refused:
        CardNumbers("refuse").row(row)
    assert NUMBERS[0] not in str(refused.value)
    assert CardNumbers("allow").row(row) == row
    hashed = CardNumbers("hmac", KEY).row(row)
    spelt = decode_row(json.dumps(transaction(1, "4111 1111 1111 1111")).encode())[0]
    assert hashed.user_id == CardNumbers("hmac", KEY).row(spelt).user_id
    assert re.fullmatch("pan-[0-9a-f]{32}", hashed.user_id)
    assert hashed.user_id != CardNumbers("hmac", b"j" * 32).row(row).user_id
    assert (hashed.transaction_id, hashed.merchant_id) == (row.transaction_id, row.merchant_id)
    assert hashed.card_id == hashed.user_id  # two spellings of one number


@given(st.integers(0, 2**32))
def test_the_check_of_a_batch_misses_no_row(seed: int) -> None:
    rng = random.Random(seed)
    body = transaction(rng.randrange(99))
    field = rng.choice(["transaction_id", "user_id", "merchant_id", "card_id", "device_id"])
    number = rng.choice(NUMBERS)
    rows = [decode_row(json.dumps(transaction(at)).encode())[0] for at in range(5)]
    assert not CardNumbers().may_be_in(rows)
    rows.insert(rng.randrange(6), decode_row(json.dumps(body | {field: number}).encode())[0])
    assert CardNumbers().may_be_in(rows)
    assert not CardNumbers("allow").may_be_in(rows)


def test_a_record_is_replaced_with_its_key_and_value() -> None:
    body = transaction(3, NUMBERS[0], memo="paid by card", merchant_id=NUMBERS[1])
    raw = record(0, body, NUMBERS[0].encode())
    row, replaced = CardNumbers("hmac", KEY).record(decode_row(raw.value)[0], raw)
    assert mask(replaced.value or b"") == replaced.value
    assert replaced.key == row.user_id.encode()
    assert decode_row(replaced.value)[0] == row


@pytest.mark.parametrize(
    "value",
    [
        json.dumps(transaction(3, NUMBERS[0], memo=f"card {NUMBERS[1]}")).encode(),
        json.dumps(transaction(3, NUMBERS[0])).replace('"t3"', f'"{NUMBERS[0]} "').encode(),
    ],
)
def test_a_record_with_a_number_elsewhere_is_refused(value: bytes) -> None:
    raw = record(0, value, NUMBERS[0].encode())
    with pytest.raises(InvalidRecordError, match="card number"):
        CardNumbers("hmac", KEY).record(decode_row(value)[0], raw)
