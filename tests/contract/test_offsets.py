"""``riskstream offsets reset``: never under a running worker, said before it is done, and understood by the next."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from stream.cli.commands.offsets import offsets
from stream.errors import BrokerError, TopicMismatchError
from stream.kafka.offsets import Move, move_offsets, plan_moves
from support.oracle import Event
from support.streams import until
from support.traffic import START, sent

if TYPE_CHECKING:
    from collections.abc import Callable

    from stream.settings import Settings
    from support.streams import Stream

pytestmark = pytest.mark.kafka


@pytest.fixture
def broker(kafka_broker: Any) -> Any:
    """Only Apache Kafka has groups that can be described."""
    return kafka_broker


def run(settings: Settings, *arguments: str) -> tuple[list[str], BaseException | None]:
    result = CliRunner().invoke(offsets, ["reset", *arguments], env=settings.child_environment())
    return result.stdout.splitlines(), result.exception


def committed(settings: Settings) -> list[int | None]:
    return [move.committed for move in plan_moves(settings, "latest")]


def test_a_group_at_rest_is_moved_and_workers_recognise_what_comes_again(
    make_stream: Callable[..., Stream],
) -> None:
    stream = make_stream(topics={"partitions": 2})
    settings = stream.settings
    worker = stream.start()
    places = stream.produce(
        sent(f"user-{at % 7}", Event(f"t-{at}", START + at, 100, None)) for at in range(60)
    )
    stream.wait_answered()
    lines, error = run(settings, "--to", "earliest")
    assert isinstance(error, BrokerError)
    assert "has 1 members: stop all workers" in str(error)
    assert lines == []
    assert worker.stop() == 0
    ends = [sum(partition == number for partition, _ in places) for number in range(2)]
    assert committed(settings) == ends

    topic = settings.topics.transactions
    lines, error = run(settings, "--to", "earliest", "--dry-run")
    expected = [
        f"{topic} [{number}]: {ends[number]} -> 0, {ends[number]} records again" for number in range(2)
    ]
    assert (lines, error) == ([*expected, "Nothing was changed."], None)
    assert committed(settings) == ends
    lines, error = run(settings, "--to", "earliest")
    assert (lines, error) == ([*expected, "Moved 2 of 2 partitions."], None)
    assert committed(settings) == [0, 0]

    second = stream.start()
    until(lambda: second.metric("riskstream_replayed_records_total") == 60, "not all are read again")
    assert "was recreated" not in second.log
    assert second.stop() == 0
    assert all(len(deliveries) == 1 for deliveries in stream.decisions().values())

    later = stream.produce([sent("user-1", Event("skipped", START + 100, 100, None))])
    lines, error = run(settings, "--to", "2100-01-01T00:00:00Z")
    assert error is None
    assert [line.rpartition(", ")[2] for line in lines[:2]] == [
        "1 records skipped" if number == later[0][0] else "no change" for number in range(2)
    ]
    assert committed(settings) == [move.end for move in plan_moves(settings, 0)]


def test_lost_offsets_are_not_passed_over_in_silence(make_stream: Callable[..., Stream]) -> None:
    """As after an unclean election: the group has committed more than the partition has."""
    stream = make_stream(topics={"partitions": 1})
    settings = stream.settings
    stream.produce(sent("user", Event(f"t-{at}", START + at, 100, None)) for at in range(10))
    topic = settings.topics.transactions
    assert committed(settings) == [None]
    with contextlib.closing(stream):
        move_offsets(settings, [Move(topic, 0, None, 25, 0, 10)])
    for arguments in (("--to", "latest"), ("--to", "earliest")):
        lines, error = run(settings, *arguments)
        assert isinstance(error, TopicMismatchError)
        assert "copy the transactions to a new topic" in str(error)
        assert lines[0].endswith("; offsets 10 to 24 were committed and are lost")
        assert committed(settings) == [25]
    lines, error = run(settings, "--to", "latest", "--allow-reused")
    assert (lines[-1], error) == ("Moved 1 of 1 partitions.", None)
    assert lines[0].startswith(f"{topic} [0]: 25 -> 10, no change")
    assert committed(settings) == [10]


def test_a_target_that_is_none_is_refused() -> None:
    result = CliRunner().invoke(offsets, ["reset", "--to", "yesterday"])
    assert result.exit_code == 2
