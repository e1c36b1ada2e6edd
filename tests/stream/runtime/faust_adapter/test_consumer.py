"""The consumer: one message a fetch, offsets of finished work only, nothing skipped over a rebalance.

A test named ``test_upstream_…`` that fails means that Faust has changed, and that the override may go.
"""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import faust
import pytest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from stream.runtime.faust_adapter.app import StreamApp
from stream.runtime.faust_adapter.consumer import BatchConsumer, BatchTransport
from stream.runtime.faust_adapter.store import HistoryTable
from support.faust_apps import (
    FETCHED,
    TPS,
    batches,
    begun_stream,
    make_app,
    make_consumer,
    messages,
    record,
    restored,
)
from support.helpers import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from aiokafka.structs import ConsumerRecord


# --- 1. one event per fetched batch; a commit says what was done ---------------------------------------


def test_upstream_makes_a_message_of_every_record(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        consumer = make_consumer(make_app(tmp_path), driver.Transport, FETCHED)
        found = await messages(consumer)
        assert len(found) == 8
        assert {message.value for _, message in found} == {b"v0", b"v1", b"v2", b"v3", b"v4"}

    run(main())


def test_ours_makes_a_message_of_every_fetch(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        consumer = make_consumer(make_app(tmp_path, StreamApp), BatchTransport, FETCHED)
        assert isinstance(consumer, BatchConsumer)
        consumer._read_offset[TPS[0]] = 50  # upstream would drop what comes from before it
        ((tp, message),) = await messages(consumer)
        assert (tp, message.offset, message.key) == (TPS[0], 4, None)
        assert message.value == FETCHED
        assert consumer._read_offset[TPS[0]] is None

    run(main())


async def offset_after_a_failure(app: Any, consumer: Any) -> int | None:
    """Return what would be committed after an agent's code has failed at the first event."""
    stream, _ = await begun_stream(app, consumer)

    async def agent() -> None:
        async for event in stream.events():
            raise ZeroDivisionError(event)

    with pytest.raises(ZeroDivisionError):
        await agent()
    gc.collect()  # the generators that the failure left in the air come to their end
    for _ in range(100):
        await asyncio.sleep(0)
    offset: int | None = consumer._new_offset(TPS[0])
    return offset


def test_upstream_commits_an_event_whose_agent_failed(run: Any, tmp_path: Path) -> None:
    """#527, #315."""

    async def main() -> None:
        app = make_app(tmp_path)
        consumer = make_consumer(app, driver.Transport, {TPS[0]: [record(0, 0)]})
        assert await offset_after_a_failure(app, consumer) == 1

    run(main())


def test_ours_commits_what_was_done_and_nothing_else(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        app = make_app(tmp_path, StreamApp)
        consumer = make_consumer(app, BatchTransport, FETCHED)
        assert await offset_after_a_failure(app, consumer) is None
        consumer.done(TPS[0], 4, app.consumer_generation_id)
        assert consumer._new_offset(TPS[0]) == 5
        assert consumer._new_offset(TPS[1]) is None
        assert list(consumer._filter_tps_with_pending_acks()) == [TPS[0]]

    run(main())


def test_ours_forgets_what_a_rebalance_took_away(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        app = make_app(tmp_path, StreamApp)
        consumer = make_consumer(app, BatchTransport, FETCHED)
        consumer.done(TPS[0], 4, app.consumer_generation_id - 1)
        assert consumer._new_offset(TPS[0]) is None
        consumer.done(TPS[1], 2, app.consumer_generation_id)
        assert consumer._new_offset(TPS[1]) == 3
        await consumer.on_partitions_revoked({TPS[1]})
        assert consumer._new_offset(TPS[1]) is None

    run(main())


def test_upstream_commits_an_event_that_a_rebalance_took_away(run: Any, tmp_path: Path) -> None:
    """It is skipped, because its generation is over, and acknowledged all the same."""

    async def main() -> None:
        app = make_app(tmp_path)
        consumer = make_consumer(app, driver.Transport, {TPS[0]: [record(0, 0), record(0, 1)]})
        stream, _ = await begun_stream(app, consumer)
        app.consumer_generation_id += 1
        (message, _) = (m for _, m in await messages(consumer))
        message.offset = 2
        message.incref()
        await stream.channel.put(app.create_event(None, b"now", (), message))
        await stream.channel.put(app.create_event(None, b"next", (), message))
        events = stream.events().__aiter__()
        assert [(await anext(events)).value, (await anext(events)).value] == [b"now", b"next"]
        assert consumer._new_offset(TPS[0]) >= 2

    run(main())


def test_upstream_forgets_what_waits_when_the_flow_resumes(run: Any, tmp_path: Path) -> None:
    """After a recovery it resumes the partitions, seeks, and then the flow: what came meanwhile is gone."""

    async def main() -> None:
        app = make_app(tmp_path)
        consumer = make_consumer(app, driver.Transport, {TPS[0]: [record(0, 0), record(0, 1)]})
        stream, _ = await begun_stream(app, consumer)
        assert stream.channel.queue.qsize() == 2
        app.flow_control.resume()
        assert stream.channel.queue.empty()

    run(main())


def test_ours_hands_on_nothing_before_a_rebalance_is_through(run: Any, tmp_path: Path) -> None:
    """Nor does it wait with it in hand: recovery may need the fetches."""

    async def main() -> None:
        app = make_app(tmp_path, StreamApp)
        consumer = make_consumer(app, BatchTransport, FETCHED)
        sought: dict[TP, int] = {}

        async def seek(tp: TP, offset: int) -> None:
            sought[tp] = offset

        consumer._seek = seek
        app.rebalancing = True
        assert await messages(consumer) == []
        assert await messages(consumer) == []
        assert sought == {}
        app.rebalancing = False
        assert await batches(consumer) == list(FETCHED.items())
        assert sought == dict.fromkeys(TPS, 0)

    run(main())


@pytest.mark.parametrize("reason", ["flow stopped", "worker stopped"])
def test_ours_hands_on_nothing_while_nothing_flows(run: Any, tmp_path: Path, reason: str) -> None:
    async def main() -> None:
        consumer = make_consumer(make_app(tmp_path, StreamApp), BatchTransport, FETCHED)
        if reason == "flow stopped":
            consumer.stop_flow()
        else:
            consumer._stopped.set()
        assert await messages(consumer) == []

    run(main())


def test_ours_fetches_again_what_was_handed_to_nobody(run: Any, tmp_path: Path) -> None:
    """Whatever swallowed it; taken behind a gap, the state would pass what is missing for replayed."""

    async def main() -> None:
        fetched = {TPS[0]: [record(0, at) for at in range(3, 6)]}
        consumer = make_consumer(make_app(tmp_path, StreamApp), BatchTransport, fetched)
        sought: list[tuple[TP, int]] = []

        async def seek(tp: TP, offset: int) -> None:
            sought.append((tp, offset))

        async def offsets() -> list[int]:
            return [one.offset for _, records in await batches(consumer) for one in records]

        expired: list[tuple[str, int]] = []

        async def earliest(*tps: TP) -> dict[TP, int]:
            return dict.fromkeys(tps, 2)

        consumer._seek = seek
        consumer.earliest_offsets = earliest
        consumer.app.hooks.on_expired = lambda topic, count: expired.append((topic, count))
        consumer._next = {}
        assert await offsets() == []  # nobody has said yet where it begins
        consumer._next = {TPS[0]: 1}
        consumer._unread.clear()
        assert await offsets() == []
        assert sought == []
        # It is fetched again and still begins at 3: the gap is the log's own.
        assert await offsets() == [3, 4, 5]
        assert sought == [(TPS[0], 1)]
        assert expired == [(TPS[0].topic, 1)]  # offset 1; the log itself lacks offset 2
        # Fetched a second time around a seek: each record once.
        assert await offsets() == []
        fetched[TPS[0]] = [record(0, at) for at in range(4, 8)]
        assert await offsets() == [6, 7]
        assert sought == [(TPS[0], 1), (TPS[0], 6)]

    run(main())


def test_ours_follows_the_positions_of_fetches_after_the_last_seek_only(run: Any, tmp_path: Path) -> None:
    """A fetch that a rebalance overtook has the positions of before: to follow them would skip records."""

    async def main() -> None:
        tp = TPS[0]
        fetched: dict[TP, list[ConsumerRecord]] = {}
        consumer = make_consumer(make_app(tmp_path, StreamApp), BatchTransport, fetched)
        consumer._thread = SimpleNamespace(positions={tp: 9})
        consumer._next, consumer._start = {tp: 5}, {tp: 5}
        original = consumer._wait_next_records

        async def overtaken(timeout: float) -> Any:  # noqa: ASYNC109
            consumer._seeks += 2
            return await original(timeout)

        consumer._wait_next_records = overtaken
        assert await messages(consumer) == []
        assert (consumer._next, consumer._done) == ({tp: 5}, {})
        consumer._wait_next_records = original
        assert await messages(consumer) == []
        assert (consumer._next, consumer._done) == ({tp: 9}, {tp: 9})
        # What was delivered counts when it is done.
        fetched[tp] = [record(0, at) for at in range(9, 12)]
        consumer._thread.positions = {tp: 13}
        [(_, message)] = await messages(consumer)
        assert [item.offset for item in message.value[tp]] == [9, 10, 11]
        fetched.clear()
        await messages(consumer)
        assert consumer._done == {tp: 9}
        consumer._done[tp] = 12
        await messages(consumer)
        assert consumer._done == {tp: 13}

    run(main())


def test_ours_restores_state_while_the_streams_do_not_flow(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        app = make_app(tmp_path, StreamApp, Table=HistoryTable)
        table = app.Table("history", key_type=bytes, value_type=bytes, partitions=2)
        tp = TP(table.changelog_topic_name, 1)
        app.tables._changelogs[tp.topic] = table
        consumer = make_consumer(app, BatchTransport, {tp: restored(range(3))})
        app.rebalancing = True
        ((found, message),) = await messages(consumer)
        assert (found, len(message.value)) == (tp, 3)

    run(main())


def test_ours_seeks_again_what_a_restore_waits_for(run: Any, tmp_path: Path) -> None:
    """Once in hundreds of rebalances it waited for ever; whatever swallowed the records, they are there."""

    async def main() -> None:
        app = make_app(tmp_path, StreamApp, Table=HistoryTable)
        table = app.Table("history", key_type=bytes, value_type=bytes, partitions=2)
        tp, complete = (TP(table.changelog_topic_name, at) for at in range(2))
        app.tables._changelogs[tp.topic] = table
        fetched: dict[TP, list[ConsumerRecord]] = {}
        consumer = make_consumer(app, BatchTransport, fetched)
        sought: list[tuple[TP, int]] = []

        async def seek(tp: TP, offset: int) -> None:
            sought.append((tp, offset))

        consumer._seek = seek
        recovery = app.tables.recovery
        recovery.active_highwaters.update({tp: 9, complete: 4})
        recovery.active_offsets.update({tp: 6, complete: 4})
        app.rebalancing = recovery.in_recovery = True
        long_ago = float("-inf")
        await messages(consumer)
        assert sought == []  # not at once
        consumer._restored_at = long_ago
        await messages(consumer)
        assert sought == [(tp, 7)]
        consumer._restored_at = long_ago
        fetched[tp] = restored(range(7, 9))
        await messages(consumer)
        assert sought == [(tp, 7)]  # something came
        del fetched[tp]
        consumer._restored_at, app.rebalancing = long_ago, False
        await messages(consumer)
        assert sought == [(tp, 7)]  # nothing is restored

    run(main())


def test_ours_restores_all_that_was_fetched_of_a_changelog_at_once(run: Any, tmp_path: Path) -> None:
    """A record batch that a poll's most records cut would end recovery before its own end."""

    async def main() -> None:
        app = make_app(tmp_path, StreamApp, Table=HistoryTable)
        table = app.Table("history", key_type=bytes, value_type=bytes, partitions=2)
        tp = TP(table.changelog_topic_name, 1)
        app.tables._changelogs[tp.topic] = table
        buffered = [{tp: restored(range(3, 5))}, {tp: restored(range(5, 6))}]
        consumer = make_consumer(app, BatchTransport, {tp: restored(range(3))}, buffered)
        ((_, message),) = await messages(consumer)
        assert [entry.offset for entry in message.value] == list(range(6))
        assert message.offset == 5

    run(main())


def test_upstream_takes_the_partitions_of_full_streams_out_of_the_fetch(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        app = make_app(tmp_path)
        consumer = make_consumer(app, driver.Transport, {})
        consumer._set_active_tps(set(TPS))
        consumer.on_buffer_full(TPS[0])
        assert consumer._get_active_partitions() == {TPS[1]}

    run(main())


@pytest.mark.parametrize("rebalancing", [False, True])
def test_ours_fetches_nothing_until_there_is_room(run: Any, tmp_path: Path, rebalancing: bool) -> None:
    """Except in a rebalance, when recovery needs the fetches."""

    async def main() -> None:
        app = make_app(tmp_path, StreamApp)
        capacity = asyncio.Event()
        app.hooks.wait_for_capacity = capacity.wait
        app.rebalancing = rebalancing
        consumer = make_consumer(app, BatchTransport, FETCHED)
        fetching = asyncio.ensure_future(messages(consumer))
        if rebalancing:
            await asyncio.wait_for(fetching, PATIENCE_SECONDS)
            return
        for _ in range(100):  # nothing in it waits for anything but the room
            await asyncio.sleep(0)
        assert not fetching.done()
        capacity.set()
        await fetching

    run(main())


def test_a_partition_without_a_commit_begins_at_its_beginning(
    run: Callable[[Coroutine[Any, Any, Any]], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream seeks only where there is a commit: what was fetched during the rebalance would be lost."""
    sought: list[tuple[TP, int]] = []

    class Thread:
        async def seek_to_committed(self) -> dict[TP, int | None]:
            return {TPS[0]: 5, TPS[1]: None}

        async def committed(self, _tps: list[TP]) -> dict[TP, tuple[int, str]]:
            return {TPS[0]: (5, "this-topic")}

        async def earliest_offsets(self, *tps: TP) -> dict[TP, int]:
            return dict.fromkeys(tps, 2)

        def assignment(self) -> set[TP]:
            return set(TPS)

        def seek(self, tp: TP, offset: int) -> None:
            sought.append((tp, offset))

    async def positions(kind: type, transport: type) -> None:
        consumer = make_consumer(make_app(tmp_path, kind), transport, {})
        monkeypatch.setattr(consumer, "_thread", Thread())
        if isinstance(consumer.app, StreamApp):
            consumer.app.hooks.topic_ids = {tp.topic: "this-topic" for tp in TPS}
        sought.clear()
        await consumer.perform_seek()

    run(positions(faust.App, driver.Transport))
    assert sought == []
    run(positions(StreamApp, BatchTransport))
    assert sought == [(TPS[1], 2)]
