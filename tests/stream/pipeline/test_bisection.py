"""Unforeseen exceptions: every other record has the effects that it would have had without the record."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import InternalError, StateError
from stream.events.models import Outcome
from stream.pipeline import bisection
from stream.pipeline.bisection import MAX_INTERNAL_ERRORS, decide
from stream.pipeline.effects import Batch, BatchEffects
from stream.pipeline.transactions import TransactionPipeline
from support.histories import Memory
from support.pipelines import FEATURES, NOW, reason_of, record, transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.events.records import ConsumerRecord, ProducerRecord
    from stream.scoring.bundle import Bundle
    from stream.state.store import StateReader

POISON = "poison"


class Defective(TransactionPipeline):
    """Raises an exception of its own when it has decided a batch with a certain merchant in it."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, FEATURES)
        self.decided: dict[int, int] = {}

    def process_all(
        self, batches: Sequence[Batch], readers: Sequence[StateReader], now_ms: int
    ) -> list[BatchEffects]:
        effects = super().process_all(batches, readers, now_ms)
        for batch in batches:
            for item in batch.records:
                self.decided[item.offset] = self.decided.get(item.offset, 0) + 1
                if POISON.encode() in (item.value or b""):
                    raise ZeroDivisionError(POISON)
        return effects


def records_of(users: Sequence[int], poisoned: set[int]) -> list[ConsumerRecord]:
    return [
        record(
            at,
            transaction(at, user=f"u{user}", merchant_id=POISON if at in poisoned else "m"),
            f"u{user}".encode(),
        )
        for at, user in enumerate(users)
    ]


def split(records: list[ConsumerRecord], partitions: int) -> list[Batch]:
    return [
        Batch("transactions", at, 99, [item for item in records if sum(item.key or b"") % partitions == at])
        for at in range(partitions)
    ]


def messages(decided: list[tuple[Batch, BatchEffects]], name: str) -> dict[int, list[ProducerRecord]]:
    found: dict[int, list[ProducerRecord]] = {}
    for batch, effects in decided:
        found.setdefault(batch.partition, []).extend(getattr(effects, name))
    return {partition: records for partition, records in found.items() if records}


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
    st.data(),
    st.integers(1, 3),
)
def test_the_others_are_decided_as_without_the_record(
    bundle: Bundle, users: list[int], data: st.DataObject, partitions: int
) -> None:
    poisoned = data.draw(st.sets(st.integers(0, len(users) - 1), max_size=MAX_INTERNAL_ERRORS))
    records = records_of(users, poisoned)
    memories, expected_memories = ({at: Memory() for at in range(partitions)} for _ in range(2))
    batches = split(records, partitions)
    clean = [
        Batch(
            batch.topic, batch.partition, batch.source, [r for r in batch.records if r.offset not in poisoned]
        )
        for batch in batches
    ]
    pipeline = Defective(bundle)
    decided = decide(pipeline, batches, [memories[batch.partition] for batch in batches], NOW)
    expected = decide(
        TransactionPipeline(bundle, FEATURES),
        clean,
        [expected_memories[batch.partition] for batch in clean],
        NOW,
    )
    for name in ("alerts", "decisions"):
        assert messages(decided, name) == messages(expected, name)
    for of, into in ((decided, memories), (expected, expected_memories)):
        for batch, effects in of:
            into[batch.partition].write(effects.writes)
    assert {at: dict(memory) for at, memory in memories.items()} == {
        at: dict(memory) for at, memory in expected_memories.items()
    }
    dead = [(batch, letter) for batch, effects in decided for letter in effects.dead_letters]
    assert sorted(int(reason_of(letter)["__streams.errors.offset"]) for _, letter in dead) == sorted(poisoned)
    assert sum(effects.outcomes.get(Outcome.REJECTED, 0) for _, effects in decided) == len(poisoned)
    passes = math.ceil(math.log2(max(len(users), 2))) + 1
    assert max(pipeline.decided.values()) <= passes


def test_the_dead_letter_names_the_cause_and_carries_the_bytes(bundle: Bundle) -> None:
    records = records_of([0, 1, 2], {1})
    decided = decide(Defective(bundle), [Batch("transactions", 3, 99, records)], [Memory()], NOW)
    [letter] = [letter for _, effects in decided for letter in effects.dead_letters]
    assert (letter.key, letter.value) == (records[1].key, records[1].value)
    said = reason_of(letter)
    assert said["__streams.errors.exception"] == "ZeroDivisionError"
    assert "internal error at transactions [3], offset 1: ZeroDivisionError('poison')" in said.values()
    [(offset, error)] = [item for _, effects in decided for item in effects.internal_errors]
    assert offset == 1
    assert isinstance(error, ZeroDivisionError)


def test_a_fault_of_ours_does_not_empty_the_topic(bundle: Bundle) -> None:
    count = MAX_INTERNAL_ERRORS + 1
    records = records_of([0] * 50, set(range(count)))
    with pytest.raises(InternalError, match=rf"transactions \[3\] at offset {count - 1}: ZeroDivisionError"):
        decide(Defective(bundle), [Batch("transactions", 3, 99, records)], [Memory()], NOW)


def test_a_store_that_cannot_be_read_is_no_fault_of_a_record(bundle: Bundle) -> None:
    class Broken:
        def read(self, _: Sequence[bytes]) -> Any:
            raise StateError("the disk is gone")

    with pytest.raises(StateError, match="the disk is gone"):
        decide(TransactionPipeline(bundle, FEATURES), split(records_of([0, 1], set()), 1), [Broken()], NOW)


def test_without_an_exception_nothing_is_decided_twice(bundle: Bundle) -> None:
    pipeline = Defective(bundle)
    batches = split(records_of([0, 1, 2, 3], set()), 2)
    decided = decide(pipeline, batches, [Memory(), Memory()], NOW)
    assert [batch for batch, _ in decided] == batches
    assert set(pipeline.decided.values()) == {1}
    assert bisection.MAX_INTERNAL_ERRORS == 10
    assert np.isfinite(decided[0][1].scores).all()
