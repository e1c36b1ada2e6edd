"""What cannot be processed: a dead letter with its reason, and no harm to any other record."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.events.decode import MAX_RECORD_BYTES
from stream.events.fields import parse_event_time
from stream.events.models import DeadLetterHeader, Outcome
from stream.events.records import ConsumerRecord
from stream.features.windows import records as layout
from stream.pipeline.effects import PipelineConfig
from stream.pipeline.times import EventTimeLimits
from stream.pipeline.transactions import TransactionPipeline
from support.bundles import made_bundle
from support.histories import Memory
from support.pipelines import FEATURES, NOW, SCHEMAS, batch, parsed, reason_of, record, run, transaction

if TYPE_CHECKING:
    from stream.scoring.bundle import Bundle

# --- dead letters --------------------------------------------------------------------------------------

BAD: dict[str, tuple[object, bytes | None, str, str]] = {
    "another user's key": (transaction(), b"u2", "key", "must be the user_id"),
    "no key": (transaction(), None, "key", "must be the user_id"),
    "far in the future": (transaction(event_time=NOW + 300_001), b"u1", "event_time", "ahead of the clock"),
    "no JSON": (b'{"transaction_id": ', b"u1", "$", "is not valid JSON"),
    "not UTF-8": (b'{"transaction_id": "\xff"}', b"u1", "$", "is not valid JSON"),
    "half a surrogate": (
        json.dumps(transaction()).encode().replace(b'"u1"', b'"\\ud800"'),
        b"u1",
        "$",
        "is not valid JSON",
    ),
    "an array": (b"[]", b"u1", "$", "must be a JSON object"),
    "nothing": (b"", b"u1", "$", "is not valid JSON"),
    "a tombstone": (None, b"u1", "$", "has no value"),
    "too large": (transaction(memo="x" * MAX_RECORD_BYTES), b"u1", "$", "more than the 65536 allowed"),
    "deeply nested": (b"[" * 60_000, b"u1", "$", "is not valid JSON"),
    "a name twice": (b'{"transaction_id": "a", "transaction_id": "b"}', b"u1", "$", "is not valid JSON"),
    "no amount": (transaction(amount=None), b"u1", "amount", "is required"),
    "a negative amount too large": (
        transaction(amount="-10000000000000.01"),
        b"u1",
        "amount",
        "is beyond 1e15 minor units",
    ),
    "too many decimals": (transaction(amount="0.001"), b"u1", "amount", "has more decimals than EUR allows"),
    "an amount that is no number": (transaction(amount="NaN"), b"u1", "amount", "plain decimal"),
    "a bare NaN": (json.dumps(transaction(amount=math.nan)).encode(), b"u1", "$", "is not valid JSON"),
    "an amount too large": (
        transaction(amount="10000000000000.01"),
        b"u1",
        "amount",
        "is beyond 1e15 minor units",
    ),
    "a naive time": (transaction(event_time="2026-01-01T00:00:00"), b"u1", "event_time", "with an offset"),
    "a number for a text": (transaction(channel=7), b"u1", "channel", "valid string"),
    "an unknown currency": (transaction(currency="XXY"), b"u1", "currency", "ISO 4217"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_a_dead_letter_and_harms_nobody(name: str, bundle: Bundle) -> None:
    value, key, field, reason = BAD[name]
    headers = (("trace", b"\xff\x00"), ("empty", b""), ("trace", b"again"))
    bad = record(11, value, key, headers)
    neighbours = [record(10, transaction(1)), record(12, transaction(2))]
    memory, twin = Memory(), Memory()
    effects = run([neighbours[0], bad, neighbours[1]], bundle, memory=memory)
    alone = run(neighbours, bundle, memory=twin)
    (letter,) = effects.dead_letters
    assert (letter.key, letter.value) == (bad.key, bad.value)
    assert letter.headers[: len(headers)] == headers
    assert [key for key, _ in letter.headers[len(headers) :]] == [header.value for header in DeadLetterHeader]
    told = reason_of(letter)
    assert told[DeadLetterHeader.FIELD] == field
    assert reason in told[DeadLetterHeader.REASON]
    assert told[DeadLetterHeader.EXCEPTION] == "InvalidRecordError"
    assert told[DeadLetterHeader.TOPIC] == "transactions"
    assert (told[DeadLetterHeader.PARTITION], told[DeadLetterHeader.OFFSET]) == ("3", "11")
    assert all("\n" not in text and len(text) < 500 for text in told.values())
    documented = json.loads((SCHEMAS / "dead-letter-headers.json").read_text(encoding="utf-8"))["headers"]
    assert set(told) == set(documented)
    assert effects.decisions == alone.decisions
    assert effects.alerts == alone.alerts
    assert memory == twin
    assert effects.outcomes == {Outcome.SCORED: 2, Outcome.REJECTED: 1}
    assert [name for name, _ in effects.rejected] == [field]


@pytest.mark.parametrize("part", ["key", "value", "header"])
def test_a_record_too_large_to_be_sent_again_is_cut(part: str, bundle: Bundle) -> None:
    """A broker measures records after compression, so that what came in may not go out again."""
    large = b"x" * 5_000_000
    received = ConsumerRecord(
        7,
        NOW,
        large if part == "key" else b"u1",
        large if part == "value" else b"{",
        (("own", large if part == "header" else b"y"),),
    )
    (letter,) = run([received], bundle).dead_letters
    size = len(letter.key or b"") + len(letter.value or b"") + sum(len(n) + len(v) for n, v in letter.headers)
    assert size < 1_010_000
    assert (received.key or b"").startswith(letter.key or b"")
    assert (received.value or b"").startswith(letter.value or b"")
    told = reason_of(letter)
    assert re.search(r"; cut to \d+ of 50000\d\d bytes", told[DeadLetterHeader.REASON])
    assert told[DeadLetterHeader.OFFSET] == "7"


def test_a_dead_letter_says_when_the_record_was_refused(bundle: Bundle) -> None:
    """As docs/reference/schemas/dead-letter-headers.json says: RFC 3339 in UTC."""
    (letter,) = run([record(0, b"{")], bundle).dead_letters
    assert parse_event_time(reason_of(letter)[DeadLetterHeader.TIMESTAMP]) == NOW


def test_the_limits_are_where_they_are_said_to_be(bundle: Bundle) -> None:
    padding = MAX_RECORD_BYTES - len(json.dumps(transaction(x="")))
    within = [
        record(0, transaction(x="x" * padding)),
        record(1, transaction(1, "u2", event_time=NOW + 300_000), b"u2"),
        record(2, transaction(2, amount="10000000000000")),
        record(3, transaction(3, amount=0)),
    ]
    assert len(within[0].value or b"") == MAX_RECORD_BYTES
    assert run(within, bundle).outcomes == {Outcome.SCORED: 4}
    config = PipelineConfig(max_record_bytes=2_000, times=EventTimeLimits(max_future_ms=0))
    assert run([record(0, transaction(memo="x" * 1_024))], bundle, config).outcomes == {Outcome.SCORED: 1}
    assert run([record(0, transaction(x="x" * 2_000))], bundle, config).outcomes == {Outcome.REJECTED: 1}
    assert run([record(0, transaction(event_time=NOW + 1))], bundle, config).outcomes == {Outcome.REJECTED: 1}


good = transaction(attributes={"age": 7, "device": "ios"}, pre_balance="1.00", ip="127.0.0.1", country="DE")


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([10**400, -1, "", "12.34"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@cache
def pipeline_of_attributes() -> TransactionPipeline:
    return TransactionPipeline(made_bundle(("age",), {"device": ("ios",)}), FEATURES)


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            junk.map(lambda value: json.dumps(value).encode()),
            st.tuples(st.sampled_from(sorted(good)), junk).map(
                lambda change: json.dumps(good | {change[0]: change[1]}).encode()
            ),
            st.tuples(st.integers(0, 200), st.integers(0, 255)).map(
                lambda at: bytes(
                    [*json.dumps(good).encode()[: at[0]], at[1], *json.dumps(good).encode()[at[0] + 1 :]]
                )
            ),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_comes_is_scored_or_a_dead_letter(values: list[bytes]) -> None:
    """One of a kind for every record, never an exception: an exception would stop the worker for good."""
    records = [record(at, value) for at, value in enumerate(values)]
    effects = pipeline_of_attributes().process(batch(records), Memory(), NOW)
    letters = [reason_of(message) for message in effects.dead_letters]
    offsets = [json.loads(message.value or b"")["source_offset"] for message in effects.decisions]
    offsets += [int(told[DeadLetterHeader.OFFSET]) for told in letters]
    assert sorted(offsets) == list(range(len(records)))
    assert all("\n" not in text for told in letters for text in told.values())
    assert sum(effects.outcomes.values()) == len(records)


# --- state ---------------------------------------------------------------------------------------------


def test_state_that_cannot_be_used_is_the_user_s_dead_letters(bundle: Bundle) -> None:
    memory = Memory()
    users = ["good", "victim", "other"]
    first = [
        record(at, transaction(at, user), user.encode())
        for at, user in enumerate(user for user in users for _ in "ab")
    ]
    run(first, bundle, memory=memory)
    key = layout.head_key(b"victim")
    memory[key] = memory[key][:-1] + bytes([memory[key][-1] ^ 1])
    damaged = dict(memory)
    more = [
        record(10 + at, transaction(10 + at, user), user.encode())
        for at, user in enumerate([*users, "victim"])
    ]
    effects = run(more, bundle, memory=memory)
    assert effects.outcomes == {Outcome.SCORED: 2, Outcome.REJECTED: 2}
    assert [body["user_id"] for body in parsed(effects.decisions)] == ["good", "other"]
    for letter, offset in zip(effects.dead_letters, (11, 13), strict=True):
        assert (letter.key, letter.value) == (b"victim", more[offset - 10].value)
        told = reason_of(letter)
        assert told[DeadLetterHeader.EXCEPTION] == "StateError"
        assert told[DeadLetterHeader.FIELD] == "$"
        assert told[DeadLetterHeader.OFFSET] == str(offset)
        assert "'victim'" in told[DeadLetterHeader.REASON]
        assert f"offset {offset}" in told[DeadLetterHeader.REASON]
        assert "corrupt" in told[DeadLetterHeader.REASON]
    assert memory[key] == damaged[key]
    assert memory[layout.head_key(b"good")] != damaged[layout.head_key(b"good")]
