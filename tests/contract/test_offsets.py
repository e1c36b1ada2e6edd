"""``riskstream offsets reset``: never under a running worker, said before it is done, and understood by the next."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from stream.cli.commands.offsets import offsets
from stream.errors import BrokerError
from stream.kafka.local.apache import KafkaBroker
from stream.kafka.offsets import plan_moves
from support.oracle import Event
from support.streams import Stream, readable_line, until
from support.traffic import START, sent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stream.settings import Settings

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


def lose_log(data: Path, topic: str) -> None:
    """Remove a partition's records, as a restored backup of an empty disk does; the topic keeps its id."""
    [folder] = {path.parent for path in data.rglob(f"{topic}-0/*.log")}
    for path in folder.iterdir():
        if path.name != "partition.metadata":
            path.unlink()


@pytest.mark.parametrize("fewer", [True, False])
def test_offsets_that_went_back_are_resolved_and_new_records_are_no_replays(
    kafka_tools: None, bundle_folder: Path, tmp_path: Path, fewer: bool
) -> None:
    """The broker loses ten records. Those that follow have their offsets, and are decided all the same."""
    with KafkaBroker(data_dir=tmp_path / "broker") as broker:
        stream = Stream(broker, tmp_path, bundle_folder, topics={"partitions": 1})
        settings, topic = stream.settings, stream.settings.topics.transactions
        with contextlib.closing(stream):
            worker = stream.start()
            stream.produce(sent("user", Event(f"old-{at}", START + at, 100, None)) for at in range(10))
            stream.wait_answered()
            assert worker.stop() == 0
            broker.stop()
            lose_log(tmp_path / "broker", topic)
            broker.start()
            stream.sent.clear()
            new = [sent("user", Event(f"new-{at}", START + 100 + at, 100, None)) for at in range(5)]
            again = [sent("user", Event("old-3", START + 3, 100, None))]
            more = [sent("user", Event(f"more-{at}", START + 200 + at, 100, None)) for at in range(9)]
            stream.produce([*new, *again, *([] if fewer else more)])
            arguments: tuple[str, ...] = ("--reused",)
            if fewer:
                arguments = ()
                for _ in range(2):  # a restart does not help
                    ended = stream.start(ready=False)
                    assert ended.wait_end() == 4
                    line = readable_line(ended)
                    assert f"offsets of {topic} [0] went back from 10 to 0" in line
                    assert "'riskstream offsets reset --to earliest'" in line
            lines, error = run(settings, "--to", "earliest", *arguments)
            assert error is None
            assert ("; offsets 6 to 9 were committed and are lost: offsets begin anew" in lines[0]) == fewer
            stream.start()

            def outcomes() -> dict[str, str]:
                return {
                    body.json["transaction_id"]: body.json["outcome"] for body in stream.read("decisions")
                }

            wanted = [f"new-{at}" for at in range(5)]
            wanted += [] if fewer else [f"more-{at}" for at in range(9)]
            until(lambda: outcomes().keys() >= set(wanted), f"not decided: {wanted}")
            until(lambda: outcomes()["old-3"] == "duplicate", "the old transaction is no duplicate")
            assert {outcomes()[name] for name in wanted} == {"scored"}
            # A worker that starts later continues in the same incarnation.
            assert stream.workers[-1].stop() == 0
            last = stream.start()
            stream.produce([sent("user", Event("last", START + 300, 100, None))])
            until(lambda: outcomes().get("last") == "scored", "the last one is not decided")
            assert last.metric("riskstream_other_source_users_total") == 0


def test_a_target_that_is_none_is_refused() -> None:
    result = CliRunner().invoke(offsets, ["reset", "--to", "yesterday"])
    assert result.exit_code == 2
