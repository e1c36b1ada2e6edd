"""Event times against the clock: what is rejected, why, and when the clock is the one that is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stream.errors import ClockError
from stream.events.models import Outcome
from stream.pipeline.effects import PipelineConfig
from stream.pipeline.times import MIN_EVENT_TIME_MS, EventTimeLimits
from stream.pipeline.transactions import TransactionPipeline
from support.histories import Memory
from support.pipelines import NOW, batch, reason_of, record, run, transaction

if TYPE_CHECKING:
    from stream.events.records import ConsumerRecord
    from stream.scoring.bundle import Bundle

MINUTE = 60_000


def test_epoch_seconds_are_rejected_and_called_so(bundle: Bundle) -> None:
    effects = run([record(0, transaction(event_time=(NOW - 1_000) // 1000))], bundle)
    assert effects.outcomes == {Outcome.REJECTED: 1}
    reason = reason_of(effects.dead_letters[0])["riskstream.errors.reason"]
    assert reason.startswith("is 1970-01-21T")
    assert "before 2000-01-01T00:00:00.000Z" in reason
    assert "as epoch seconds it is 2026-09-21T" in reason


@pytest.mark.parametrize(
    ("time_ms", "outcome"), [(MIN_EVENT_TIME_MS, Outcome.SCORED), (MIN_EVENT_TIME_MS - 1, Outcome.REJECTED)]
)
def test_the_earliest_time_is_accepted(bundle: Bundle, time_ms: int, outcome: Outcome) -> None:
    assert run([record(0, transaction(event_time=time_ms))], bundle).outcomes == {outcome: 1}
    shifted = PipelineConfig(times=EventTimeLimits(min_ms=0))
    assert run([record(0, transaction(event_time=0))], bundle, shifted).outcomes == {Outcome.SCORED: 1}


def future(count: int, *, agreed: bool) -> list[ConsumerRecord]:
    """Return transactions an hour ahead of the clock; Kafka's timestamps may agree with them."""
    made = [record(at, transaction(at, event_time=NOW + 60 * MINUTE)) for at in range(count)]
    return [item._replace(timestamp_ms=NOW + 60 * MINUTE) for item in made] if agreed else made


def test_a_clock_that_is_behind_ends_the_worker(bundle: Bundle) -> None:
    pipeline = TransactionPipeline(bundle, PipelineConfig())
    *accused, last = future(20, agreed=True)
    for item in accused:
        pipeline.process(batch([item]), Memory(), NOW)
    with pytest.raises(ClockError, match="20 of the last 20 transactions are in its future"):
        pipeline.process(batch([last]), Memory(), NOW)


def test_producers_with_a_wrong_clock_do_not(bundle: Bundle) -> None:
    pipeline = TransactionPipeline(bundle, PipelineConfig())
    effects = pipeline.process(batch(future(100, agreed=False)), Memory(), NOW)
    assert effects.outcomes == {Outcome.REJECTED: 100}
    # A minority, whatever its timestamps say.
    good = [record(at, transaction(at, event_time=NOW)) for at in range(100)]
    for _ in range(5):
        effects = pipeline.process(batch([*good, *future(90, agreed=True)]), Memory(), NOW)
        assert effects.outcomes[Outcome.REJECTED] == 90
