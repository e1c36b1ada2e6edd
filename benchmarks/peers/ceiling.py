"""The in-process ceiling: no Kafka at all.

Records in memory, rounds as large as the worker's, the same pipeline and the worker's own store; alerts and
decisions are encoded and thrown away. One thread. Prints what it measured, as one line of JSON.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import psutil

from benchmarks.local_store import LocalStore, PartitionReader
from benchmarks.peers.common import Job, pipeline_of, source_of
from stream.events.records import ConsumerRecord
from stream.pipeline.effects import Batch
from stream.settings import RocksDBSettings

__all__ = ["rounds_of"]


def rounds_of(job: Job) -> list[list[Batch]]:
    """Return the workload's transactions as rounds of batches of each partition."""
    sources = [source_of(job, partition) for partition in range(job.partitions)]
    rounds: list[list[Batch]] = []
    offsets = [0] * job.partitions
    parts: list[list[ConsumerRecord]] = [[] for _ in sources]
    count = 0
    for line in (Path(job.data) / "transactions.bin").read_bytes().splitlines():
        user, _, value = line.partition(b" ")
        partition = int(user) % job.partitions
        parts[partition].append(ConsumerRecord(offsets[partition], 0, b"U%07d" % int(user), value))
        offsets[partition] += 1
        count += 1
        if count == job.round_records:
            rounds.append(
                [
                    Batch(job.source, number, sources[number], part)
                    for number, part in enumerate(parts)
                    if part
                ]
            )
            parts, count = [[] for _ in sources], 0
    return rounds


def run(job: Job) -> None:
    """Process everything, or for the job's seconds, and print transactions, seconds and processor time."""
    pipeline = pipeline_of(job)
    store = LocalStore(Path(job.state), RocksDBSettings())
    readers = [PartitionReader(store, partition) for partition in range(job.partitions)]
    rounds = rounds_of(job)
    skipped = len(rounds) // 10
    done = alerts = state_bytes = 0
    begun, cpu = time.perf_counter(), time.process_time()
    for number, batches in enumerate(rounds):
        if number == skipped:
            done = alerts = state_bytes = 0
            begun, cpu = time.perf_counter(), time.process_time()
        own = [readers[batch.partition] for batch in batches]
        all_effects = pipeline.process_all(batches, own, time.time_ns() // 1_000_000)
        for batch, effects in zip(batches, all_effects, strict=True):
            store.write(batch.partition, effects.writes, batch.records[-1].offset)
            done += len(batch.records)
            alerts += len(effects.alerts)
            state_bytes += sum(len(key) + len(value or b"") for key, value in effects.writes)
        if number > skipped and time.perf_counter() - begun > job.seconds > 0:
            break
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    rss = psutil.Process(os.getpid()).memory_info().rss / 2**20
    store.close()
    found = {"transactions": done, "seconds": seconds, "cpu_seconds": cpu, "rss_mib": rss}
    print(json.dumps(found | {"alerts": alerts, "state_bytes": state_bytes}))


if __name__ == "__main__":
    run(Job.from_command())
