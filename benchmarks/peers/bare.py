"""A bare confluent-kafka loop with rocksdict and no changelog: an upper reference, not a product.

It loses its state with its disk, and does nothing about rebalances. Batches as the worker has them: one
``consume`` of up to a round's records, one call of the pipeline over its partitions, one write batch each.
Alerts and decisions go out before the state is written, and are flushed before the offsets are committed.
librdkafka takes and sends in threads of its own, beside this one.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rocksdict
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.peers.common import Job, pipeline_of, source_of
from stream.events.records import ConsumerRecord
from stream.pipeline.effects import Batch
from stream.settings import RocksDBSettings

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Partition:
    """One partition's database, with the worker's options."""

    def __init__(self, path: Path, cache: Any, buffers: Any) -> None:
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)  # noqa: FBT003
        options.set_write_buffer_size(32 << 20)
        options.set_write_buffer_manager(buffers)
        table = rocksdict.BlockBasedOptions()
        table.set_block_cache(cache)
        table.set_cache_index_and_filter_blocks(True)
        table.set_bloom_filter(10, False)  # noqa: FBT003
        options.set_block_based_table_factory(table)
        self._database = rocksdict.Rdict(str(path), options=options)

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        values: Sequence[bytes | None] = self._database.get(list(keys)) if keys else []
        return values

    def write(self, writes: Sequence[tuple[bytes, bytes | None]]) -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in writes:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        self._database.write(batch)


def _open(job: Job) -> list[_Partition]:
    settings = RocksDBSettings()
    cache = rocksdict.Cache(settings.block_cache_mib << 20)
    buffers = rocksdict.WriteBufferManager(settings.write_buffer_mib << 20, False)  # noqa: FBT003
    return [_Partition(Path(job.state) / f"{number}.db", cache, buffers) for number in range(job.partitions)]


def run(job: Job) -> None:
    """Process until ended."""
    pipeline = pipeline_of(job)
    stores = _open(job)
    sources = [source_of(job, partition) for partition in range(job.partitions)]
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "group.id": job.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 20,
            "queued.min.messages": 20_000,
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "enable.idempotence": True,
            "linger.ms": 0,
            "batch.size": 900_000,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    consumer.assign([TopicPartition(job.source, partition, 0) for partition in range(job.partitions)])
    while True:
        messages = consumer.consume(job.round_records, timeout=0.02)
        records: dict[int, list[ConsumerRecord]] = {}
        for message in messages:
            if message.error() is None:
                records.setdefault(message.partition(), []).append(
                    ConsumerRecord(message.offset(), message.timestamp()[1], message.key(), message.value())
                )
        if not records:
            continue
        batches = [Batch(job.source, number, sources[number], part) for number, part in records.items()]
        readers = [stores[batch.partition] for batch in batches]
        all_effects = pipeline.process_all(batches, readers, time.time_ns() // 1_000_000)
        for batch, effects in zip(batches, all_effects, strict=True):
            for topic, outputs in ((job.alerts, effects.alerts), (job.decisions, effects.decisions)):
                for output in outputs:
                    producer.produce(topic, output.value, output.key, partition=batch.partition)
        producer.flush()
        for batch, effects in zip(batches, all_effects, strict=True):
            stores[batch.partition].write(effects.writes)
        last = [
            TopicPartition(job.source, batch.partition, batch.records[-1].offset + 1) for batch in batches
        ]
        consumer.commit(offsets=last, asynchronous=True)


if __name__ == "__main__":
    run(Job.from_command())
