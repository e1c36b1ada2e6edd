"""The store and the table: state and offset in one write, batches restored, databases closed.

A test named ``test_upstream_…`` that fails means that Faust has changed, and that the override may go.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import rocksdict
from aiokafka.structs import ConsumerRecord
from faust.stores import rocksdb
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from rocksdict import DbClosedError

from stream.runtime.faust_adapter.consumer import BatchTransport
from stream.runtime.faust_adapter.store import RocksDBStore
from support.faust_apps import (
    TPS,
    begun_stream,
    make_app,
    make_consumer,
    our_store,
    record,
    restored,
    upstream_store,
)
from support.paths import SEARCH_PATH

if TYPE_CHECKING:
    from pathlib import Path


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
from support.paths import SEARCH_PATH
from support.faust_apps import our_store
store = our_store(Path(sys.argv[1]))
for number in range(1, 1_000):
    store.write(1, [(b"a", b"%d" % number), (b"b", b"%d" % number), (b"gone", None)], number)
    if number == 500:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_ours_writes_state_and_offset_together(run: Any, tmp_path: Path) -> None:
    """Also where the process is killed: what one batch wrote is there as a whole."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": SEARCH_PATH},
        check=False,
    )
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
