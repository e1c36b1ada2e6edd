"""Each seam of ``stream.runtime.faust_adapter.consumer`` is still needed: upstream still does what it says there.

A test named ``test_upstream_…`` that fails means that Faust has changed, and that the seam may go.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faust
import pytest
import rocksdict
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.structs import ConsumerRecord
from faust.assignor.client_assignment import ClientAssignment, ClientMetadata
from faust.assignor.partition_assignor import PartitionAssignor
from faust.stores import rocksdb
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from rocksdict import DbClosedError

from stream.runtime.faust_adapter.app import PassThroughSchema, StreamApp
from stream.runtime.faust_adapter.assignor import Assignor
from stream.runtime.faust_adapter.consumer import BatchConsumer, BatchTransport
from stream.runtime.faust_adapter.store import HistoryTable, RocksDBStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

TOPIC = "transactions"
TPS = [TP(TOPIC, 0), TP(TOPIC, 1)]


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    return asyncio.run


def make_app(folder: Path, kind: type[faust.App] = faust.App, **changes: Any) -> Any:
    options = {
        "broker": "kafka://127.0.0.1:1",
        "store": "rocksdb://",
        "datadir": str(folder),
        "autodiscover": False,
        "web_enabled": False,
        "topic_disable_leader": True,
        "topic_allow_declare": False,
        "stream_wait_empty": True,
        "table_standby_replicas": 0,
    } | changes
    return kind("seams", **options)


def record(partition: int, offset: int) -> ConsumerRecord:
    key, value = f"k{offset}".encode(), f"v{offset}".encode()
    return ConsumerRecord(TOPIC, partition, offset, 1_000 + offset, 0, key, value, None, 2, 2, ())


FETCHED = {TPS[0]: [record(0, at) for at in range(5)], TPS[1]: [record(1, at) for at in range(3)]}


def make_consumer(
    app: Any,
    transport: type,
    fetched: dict[TP, list[ConsumerRecord]],
    buffered: list[dict[TP, list[ConsumerRecord]]] | None = None,
) -> Any:
    """Return the app's consumer of the given transport, whose next fetch gives these records.

    ``buffered`` is what the client has beyond them, a poll's worth each.
    """
    app.transport = transport(app.conf.broker_consumer, app)

    class Fetching(app.transport.Consumer):  # type: ignore[misc, name-defined]
        async def _wait_next_records(self, timeout: float) -> Any:  # noqa: ARG002, ASYNC109
            return fetched, set(fetched)

        async def _getmany(self, active_partitions: Any, timeout: float) -> Any:  # noqa: ARG002, ASYNC109
            return buffered.pop(0) if buffered else {}

        def highwater(self, tp: TP) -> int:  # noqa: ARG002
            return 100

    app.transport.Consumer = Fetching
    consumer = app.consumer
    if transport is BatchTransport:  # as after a seek to where the fetch begins
        consumer._next = {tp: batch[0].offset for tp, batch in fetched.items()}
    consumer.flow_active = True
    app.flow_control.resume()
    consumer.scheduler = (
        app.transport.SchedulingStrategy()
        if hasattr(app.transport, "SchedulingStrategy")
        else consumer.scheduler
    )
    return consumer


async def messages(consumer: Any) -> list[tuple[TP, Any]]:
    return [pair async for pair in consumer.getmany(timeout=1.0)]


async def batches(consumer: Any) -> list[tuple[TP, list[Any]]]:
    """Return what a fetch hands on of the source, by partition."""
    return [item for _, message in await messages(consumer) for item in message.value.items()]


async def begun_stream(app: Any, consumer: Any) -> tuple[Any, Any]:
    """Return an acking stream over the topic and its channel, with the fetched messages in it."""
    topic = app.topic(TOPIC, schema=PassThroughSchema(allow_empty=True))
    app.topics._acking_topics.add(TOPIC)
    stream = app.stream(topic)
    for _, message in await messages(consumer):
        message.incref()
        await stream.channel.put(app.create_event(message.key, message.value, message.headers, message))
    return stream, topic


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


async def a_while() -> None:
    for _ in range(20):
        await asyncio.sleep(0.005)


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

        consumer._seek = seek
        consumer._next = {}
        assert await offsets() == []  # nobody has said yet where it begins
        consumer._next = {TPS[0]: 1}
        consumer._unread.clear()
        assert await offsets() == []
        assert sought == []
        # It is fetched again and still begins at 3: the gap is the log's own.
        assert await offsets() == [3, 4, 5]
        assert sought == [(TPS[0], 1)]
        # Fetched a second time around a seek: each record once.
        assert await offsets() == []
        fetched[TPS[0]] = [record(0, at) for at in range(4, 8)]
        assert await offsets() == [6, 7]
        assert sought == [(TPS[0], 1), (TPS[0], 6)]

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


# --- 2. the store --------------------------------------------------------------------------------------


def upstream_store(folder: Path) -> Any:
    app = make_app(folder)
    table = app.Table("history", key_type=bytes, value_type=bytes, partitions=2)
    folder.joinpath(app.conf.tabledir).mkdir(parents=True, exist_ok=True)
    return table.data


def our_store(folder: Path) -> RocksDBStore:
    app = make_app(folder, StreamApp, Table=HistoryTable)
    table = app.Table("history", key_type=bytes, value_type=bytes, partitions=2)
    app.conf.tabledir.mkdir(parents=True, exist_ok=True)
    assert isinstance(table.data, RocksDBStore)
    return table.data


def test_upstream_cannot_write_outside_of_an_event(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(AssertionError):
            upstream_store(tmp_path)[b"key"] = b"value"

    run(main())


def test_upstream_writes_state_and_offset_apart(run: Any, tmp_path: Path) -> None:
    """#193, #502: killed between the two, the store says it is older than it is, and applies events twice."""

    async def main() -> None:
        app = make_app(tmp_path)
        table = app.Table("history", key_type=bytes, value_type=bytes, partitions=2)
        app.conf.tabledir.mkdir(parents=True, exist_ok=True)
        consumer = make_consumer(app, driver.Transport, {TPS[1]: [record(1, 7)]})
        stream, _ = await begun_stream(app, consumer)
        async for _ in stream.events():
            table.data[b"key"] = b"value"
            break
        changelog = TP(table.changelog_topic_name, 1)
        assert table.data._db_for_partition(1).get(b"key") == b"value"
        assert table.data.persisted_offset(changelog) is None

    run(main())


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_faust_seams import our_store
store = our_store(Path(sys.argv[1]))
for number in range(1, 1_000):
    store.write(1, [(b"a", b"%d" % number), (b"b", b"%d" % number), (b"gone", None)], number)
    if number == 500:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_ours_writes_state_and_offset_together(run: Any, tmp_path: Path) -> None:
    """Also where the process is killed: what one batch wrote is there as a whole."""
    program = KILLED.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[2])])
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL

    async def main() -> None:
        store = our_store(tmp_path)
        assert store.read(1, [b"a", b"b", b"gone"]) == [b"500", b"500", None]
        assert store.persisted_offset(TP("seams-history-changelog", 1)) == 500
        assert store.read(0, [b"a"]) == [None]
        store.write(1, [(b"a", None)], -1)
        assert store.read(1, [b"a", b"b"]) == [None, b"500"]
        assert store.persisted_offset(TP("seams-history-changelog", 1)) == 500

    run(main())


def changelog_tps(store: Any) -> set[TP]:
    return {TP(store.table.changelog_topic_name, at) for at in range(2)}


def test_upstream_leaves_databases_open(run: Any, tmp_path: Path) -> None:
    """Whoever still holds one, holds the lock: it is left to the garbage collector."""

    async def main() -> None:
        store = upstream_store(tmp_path)
        held = [store._db_for_partition(0), store._db_for_partition(1)]
        store.revoke_partitions(store.table, {TP(store.table.changelog_topic_name, 0)})
        await store.stop()
        for database in held:
            assert database.get(b"key") is None  # open
        with pytest.raises(Exception, match=r"[Ll]ock"):
            rocksdict.Rdict(str(store.partition_path(0)), options=rocksdict.Options(raw_mode=True))

    run(main())


@pytest.mark.parametrize("how", ["revoke", "stop"])
def test_ours_closes_databases_that_are_given_up(run: Any, tmp_path: Path, how: str) -> None:
    async def main() -> None:
        store = our_store(tmp_path)
        held = [store.database(0), store.database(1)]
        if how == "revoke":
            store.revoke_partitions(store.table, changelog_tps(store) | {TP("another-topic", 0)})
        else:
            await store.stop()
        for database in held:
            with pytest.raises(DbClosedError):
                database.get(b"key")
        rocksdict.Rdict(str(store.partition_path(0)), options=rocksdict.Options(raw_mode=True)).close()

    run(main())


def test_upstream_gives_every_partition_a_large_cache(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        options = upstream_store(tmp_path).rocksdb_options
        assert options.block_cache_size >= 1 << 30

    run(main())


# --- 3. a stop waits for the batch under way and nothing else ------------------------------------------


def test_upstream_waits_for_what_is_never_acknowledged(run: Any, tmp_path: Path) -> None:
    """#527: as long as it is asked."""

    async def main() -> None:
        app = make_app(tmp_path)
        consumer = make_consumer(app, driver.Transport, {TPS[0]: [record(0, 0)]})
        ((_, message),) = await messages(consumer)
        consumer.track_message(message)
        rounds: list[float] = []

        async def wait_for_ack(timeout: float) -> None:  # noqa: ASYNC109
            rounds.append(timeout)
            if len(rounds) == 50:
                consumer._stopped.set()

        async def commit(*_: Any, **__: Any) -> bool:
            return False

        consumer._wait_for_ack = wait_for_ack
        consumer.commit = commit
        await consumer.wait_empty()
        assert len(rounds) == 50

    run(main())


def test_ours_waits_for_the_batch_under_way_and_commits(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        app = make_app(tmp_path, StreamApp)
        consumer = make_consumer(app, BatchTransport, FETCHED)
        for _, message in await messages(consumer):
            consumer.track_message(message)
        steps: list[str] = []

        async def drain() -> None:
            steps.append("drain")

        async def commit(*_: Any, **__: Any) -> bool:
            steps.append("commit")
            return True

        app.hooks.drain, consumer.commit = drain, commit
        await app._consumer_wait_empty(consumer, app.log)
        assert steps == ["drain", "commit"]

    run(main())


# --- 4. how long a fetch waits --------------------------------------------------------------------------


def test_upstream_lets_an_empty_fetch_wait_and_ours_as_long_as_the_app_says(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        waits = []
        ours = {"fetch_max_wait_ms": 7}
        for kind, transport, options in (
            (faust.App, driver.Transport, {}),
            (StreamApp, BatchTransport, ours),
        ):
            app = make_app(tmp_path, kind, **options)
            consumer = make_consumer(app, transport, {})
            client = consumer._thread._create_worker_consumer(app.transport)
            waits.append(client._fetch_max_wait_ms)
        assert waits == [1500, 7]

    run(main())


# --- 5. the table --------------------------------------------------------------------------------------


def test_upstream_chooses_a_store_by_its_url_alone(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        assert type(upstream_store(tmp_path)) is rocksdb.Store
        assert type(our_store(tmp_path)) is RocksDBStore

    run(main())


def changelog_event(app: Any, consumer: Any, partition: int, records: list[ConsumerRecord]) -> Any:
    message = consumer._to_message(TP("seams-history-changelog", partition), records[-1])
    message.key, message.value = None, records
    return app.create_event(None, records, (), message)


def restored(numbers: range, value: bytes | None = b"v") -> list[ConsumerRecord]:
    topic = "seams-history-changelog"
    return [ConsumerRecord(topic, 1, at, 0, 0, b"k%d" % at, value, None, 2, 1, ()) for at in numbers]


def test_upstream_restores_records_and_not_batches(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        store = upstream_store(tmp_path)
        app = store.table.app
        consumer = make_consumer(app, driver.Transport, {})
        event = changelog_event(app, consumer, 1, restored(range(3)))
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever RocksDB says of a list
            store.apply_changelog_batch([event], None, None)

    run(main())


def test_ours_restores_fetched_batches(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        store = our_store(tmp_path)
        app = store.table.app
        told: list[int] = []
        app.hooks.on_recovered = told.append
        consumer = make_consumer(app, BatchTransport, {})
        batches = [restored(range(5)), restored(range(2), None)]
        for at, one in enumerate(batches[1]):
            batches[1][at] = ConsumerRecord(**{**one.__dict__, "offset": 5 + at})
        store.apply_changelog_batch(
            [changelog_event(app, consumer, 1, batch) for batch in batches], None, None
        )
        assert store.read(1, [b"k%d" % at for at in range(5)]) == [None, None, b"v", b"v", b"v"]
        assert store.persisted_offset(TP("seams-history-changelog", 1)) == 6
        assert told == [5, 2]

    run(main())


@pytest.mark.parametrize("allowed", [True, False])
def test_upstream_declares_topics_unless_told_not_to(run: Any, tmp_path: Path, allowed: bool) -> None:
    async def main() -> None:
        app = make_app(tmp_path, topic_allow_declare=allowed)
        asked: list[str] = []

        class Producer(driver.Producer):  # type: ignore[misc]
            async def create_topic(self, topic: str, *_: Any, **__: Any) -> None:
                asked.append(topic)

            async def send(self, *_: Any, **__: Any) -> None:
                raise NotImplementedError

        app.producer = Producer(app.transport)
        app.producer.maybe_start = app.producer._started.wait
        app.producer._started.set()
        await app.Table("history", partitions=2).changelog_topic.declare()
        assert asked == (["seams-history-changelog"] if allowed else [])

    run(main())


# --- the schema ----------------------------------------------------------------------------------------


def test_upstream_decodes_what_it_hands_on_and_ours_does_not(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        app = make_app(tmp_path, StreamApp)
        consumer = make_consumer(app, BatchTransport, FETCHED)
        ((_, message),) = await messages(consumer)
        ours = PassThroughSchema(allow_empty=True).compile(app)
        event = await ours(message)
        assert event.value == FETCHED
        assert event.message is message
        theirs = app.topic(TOPIC).schema.compile(app, on_key_decode_error=None, on_value_decode_error=None)
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever RocksDB says of a list
            await theirs(message, propagate=True)

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
        await a_while()
        assert fetching.done() == rebalancing
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


# --- 9. an assignment with a former address of this worker -----------------------------------------------


def assignment_of(url: str) -> ConsumerProtocolMemberAssignment:
    told = ClientMetadata(
        assignment=ClientAssignment(actives={}, standbys={}),
        url=url,
        changelog_distribution={url: {"changelog": [0]}},
        external_topic_distribution={},
        topic_groups={},
    )
    return ConsumerProtocolMemberAssignment(4, [], zlib.compress(told.dumps()))


def test_upstream_dies_of_a_former_address(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        assignor = PartitionAssignor(make_app(tmp_path, canonical_url="http://here:2"))
        with pytest.raises(AssertionError):
            assignor.on_assignment(assignment_of("http://here:1"))

    run(main())


def test_ours_takes_it_and_tells_its_own_when_it_joins(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        assignor = Assignor(make_app(tmp_path, canonical_url="http://here:2"))
        assignor.on_assignment(assignment_of("http://here:1"))
        assert assignor.table_metadata("changelog") == {"http://here:1": {"changelog": [0]}}
        assert ClientMetadata.loads(assignor.metadata({TOPIC}).user_data).url == "http://here:2"

    run(main())
