"""Latency from a transaction's due time to the consumption of its alert.

Generator, worker and consumer are separate processes on the same machine and share its monotonic clock. The
benchmark keeps all samples, so percentiles are exact. 2 % of the transactions raise an alert; decisions leave
with the alerts and are fifty times as many, so at the lower rate they are timed, too, for the high
percentiles.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.cluster import with_headers
from benchmarks.contest import ROOT, worker
from benchmarks.generator import Order
from stream.errors import RiskStreamError
from stream.kafka.admin import create_topics
from stream.kafka.topics import changelog_topic
from stream.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.cluster import Cluster
    from benchmarks.contest import Child
    from benchmarks.workload import Workload
    from stream.settings import Settings

__all__ = ["closed_loop", "open_loop", "started"]

_ID: Final = re.compile(rb'"transaction_id":"T(\d+)"').search
_PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
#: Of an open loop's start: compilers and caches warm up, the broker's above all.
_WARM_SECONDS: Final = 5.0
_QUIET_SECONDS: Final = 5.0


@contextmanager
def started(
    cluster: Cluster, workload: Workload, folder: Path, scoring: dict[str, Any] | None = None
) -> Iterator[tuple[Settings, Child]]:
    """Run a worker with the workload's state on an empty source topic; ``scoring`` are its settings."""
    source = f"transactions-{folder.name[-8:]}-{time.monotonic_ns() % 10**8}"
    settings = cluster.settings(folder, workload.bundle, source)
    if scoring is not None:
        settings = settings.model_copy(update={"scoring": ScoringSettings(**scoring)})
    create_topics(settings)
    cluster.fill(changelog_topic(settings), with_headers(workload.records()))
    try:
        with worker(settings, folder / "worker.log") as child:
            child.wait_ready()
            yield settings, child
    finally:
        shutil.rmtree(settings.state_dir, ignore_errors=True)
        cluster.delete_like(settings.app_id.removeprefix("bench-"))
        cluster.delete([source])


def _consumer(cluster: Cluster, topic: str) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": cluster.address,
            "group.id": f"listener-{topic}",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 50,
        }
    )
    # From where the topic ends now: what came before belongs to an earlier measurement.
    ends = cluster.ends(topic)
    consumer.assign([TopicPartition(topic, partition, end) for partition, end in enumerate(ends)])
    return consumer


class _Listener:
    """Notes when records arrive, on a thread."""

    def __init__(self, cluster: Cluster, topic: str) -> None:
        self.arrived: list[tuple[int, float]] = []
        self.last = time.monotonic()
        self._consumer = _consumer(cluster, topic)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            message = self._consumer.poll(0.05)
            if message is None or message.error() is not None:
                continue
            now = time.monotonic()
            found = _ID(message.value() or b"")
            if found is not None:
                self.arrived.append((int(found.group(1)), now))
                self.last = now

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()


def open_loop(
    cluster: Cluster,
    workload: Workload,
    settings: Settings,
    first: int,
    rate: float,
    seconds: float,
    linger_ms: float = 0.0,
    *,
    every: bool = False,
    warm_seconds: float = _WARM_SECONDS,
) -> dict[str, Any]:
    """Send ``rate`` transactions a second for ``seconds``; returns the latencies in ms.

    Of alerts, or with ``every`` of all decisions; those of the first ``warm_seconds`` do not count.
    """
    count = min(int(rate * seconds), workload.spec.transactions - first)
    order = Order(
        cluster.address, settings.topics.transactions, str(workload.folder), first, count, rate, linger_ms
    )
    listener = _Listener(cluster, settings.topics.decisions if every else settings.topics.alerts)
    decisions = cluster.ends(settings.topics.decisions)
    command = [sys.executable, "-m", "benchmarks.generator", order.to_argument()]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RiskStreamError(f"the generator exited with status {done.returncode}")
    sent = json.loads(done.stdout)
    deadline = time.monotonic() + 120
    while sum(cluster.ends(settings.topics.decisions)) - sum(decisions) < count:
        if time.monotonic() > deadline:
            raise RiskStreamError("some transactions remained undecided after two minutes")
        time.sleep(0.1)
    # How many alerts there are is not known, so that their end is a pause.
    while len(listener.arrived) < count if every else time.monotonic() - listener.last < 1:
        if time.monotonic() > deadline:
            raise RiskStreamError("some decisions were not consumed after two minutes")
        time.sleep(0.1)
    listener.stop()
    due = sent["start"] + order.due_seconds()
    index, arrived = (
        np.array([item for item, _ in listener.arrived]) - first,
        np.array([at for _, at in listener.arrived]),
    )
    waited = 1000 * (arrived - due[index])
    counted = waited[due[index] > sent["start"] + warm_seconds]
    return _percentiles(counted) | {
        "rate": rate,
        "seconds": count / rate,
        "generator_late_ms": 1000 * sent["late_seconds"],
        # Until the broker had it: what the worker has no part in.
        "sent_p50": 1000 * sent["ack_p50"],
        "sent_p99": 1000 * sent["ack_p99"],
    }


def _percentiles(waited: Any) -> dict[str, float]:
    if not len(waited):
        raise RiskStreamError("no alert arrived after the warm-up; give it more seconds")
    values = np.percentile(waited, _PERCENTILES).tolist()
    named = dict(zip(("p50", "p90", "p99", "p99.9"), values, strict=True))
    return named | {"max": float(waited.max()), "alerts": len(waited)}


def closed_loop(cluster: Cluster, workload: Workload, settings: Settings, count: int) -> dict[str, Any]:
    """Send one transaction at a time, the next when the last one's alert has come."""
    consumer = _consumer(cluster, settings.topics.alerts)
    producer = Producer({"bootstrap.servers": cluster.address, "acks": "all", "linger.ms": 0})
    waited = []
    for number, (partition, key, value) in enumerate(workload.transactions[:count]):
        begun = time.monotonic()
        producer.produce(settings.topics.transactions, value, key, partition=partition)
        producer.poll(0)
        while True:
            message = consumer.poll(_QUIET_SECONDS)
            if message is None:
                raise RiskStreamError(f"no alert of transaction {number} in {_QUIET_SECONDS:g} s")
            found = _ID(message.value() or b"")
            if found is not None and int(found.group(1)) == number:
                break
        waited.append(1000 * (time.monotonic() - begun))
        producer.poll(0)
    consumer.close()
    return _percentiles(np.array(waited[count // 5 :]))


def median_of(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median of each figure over rounds."""
    return {name: statistics.median(item[name] for item in rounds) for name in rounds[0]}
