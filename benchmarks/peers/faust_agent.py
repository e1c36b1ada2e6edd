"""A plain Faust agent: one event at a time, a ``Table`` in RocksDB with its changelog, sends for the outputs.

As Faust's documentation writes it, on stock faust-streaming. Chosen in its favour: uvloop, raw serializers
(no codec between the records' bytes and the core), the rocksdict driver, sends that are not awaited for their
acknowledgement, a linger of 5 ms so that the producer fills batches, and one process as the worker is one.
"""

from __future__ import annotations

import mode.loop

mode.loop.use("uvloop")

import time  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import faust  # noqa: E402

from benchmarks.peers.common import Job, pipeline_of, source_of  # noqa: E402
from stream.events.records import ConsumerRecord  # noqa: E402
from stream.pipeline.effects import Batch  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence


class _TableReader:
    """Reads a user's records from the table, in the partition of the event under way."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._table.get(key) for key in keys]


def build(job: Job) -> faust.App:
    """Return the app."""
    pipeline = pipeline_of(job)
    app = faust.App(
        job.group,
        broker=f"kafka://{job.bootstrap_servers}",
        store="rocksdb://",
        datadir=job.state,
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_partitions=job.partitions,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        producer_linger=0.005,
        producer_linger_ms=5,
        producer_max_batch_size=262_144,
        broker_max_poll_records=2_000,
    )
    raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    source = app.topic(job.source, **raw)
    alerts, decisions = app.topic(job.alerts, **raw), app.topic(job.decisions, **raw)
    table = app.Table(
        "history",
        key_type=bytes,
        value_type=bytes,
        partitions=job.partitions,
        options={"driver": "rocksdict"},
    )
    reader = _TableReader(table)
    sources = [source_of(job, partition) for partition in range(job.partitions)]

    @app.agent(source)
    async def score(stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            partition = message.partition
            record = ConsumerRecord(message.offset, int(message.timestamp * 1000), message.key, message.value)
            batch = Batch(message.topic, partition, sources[partition], [record])
            effects = pipeline.process(batch, reader, time.time_ns() // 1_000_000)
            for alert in effects.alerts:
                await alerts.send(key=alert.key, value=alert.value, partition=partition)
            for decision in effects.decisions:
                await decisions.send(key=decision.key, value=decision.value, partition=partition)
            for key, value in effects.writes:
                if value is None:
                    table.pop(key, None)
                else:
                    table[key] = value

    return app


if __name__ == "__main__":
    faust.Worker(build(Job.from_command()), loglevel="warning").execute_from_commandline()
