"""Throughput: one worker process and its peers on the same filled topic, in turns, round by round.

1. Every contestant starts with the same state (100,000 users of 30 events): restored from its own changelog,
   or copied as RocksDB files if it has no changelog or needs half a minute to restore it (plain Faust).
2. It reads the same transactions from the beginning, in a separate consumer group.
3. The rate counts decisions acknowledged by the broker, from a tenth to nine tenths of the transactions.

Each round does the same work, and within a round the contestants run one after the other on the same machine.
Ratios are computed within each round; the result is their median over the rounds.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable  # noqa: TC003 - a dataclass resolves it
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.cluster import with_headers
from benchmarks.contest import ROOT, Child, Rate, measure, spawn, worker
from benchmarks.local_store import link_folder
from benchmarks.peers.common import Job
from benchmarks.peers.environments import interpreter
from benchmarks.workload import PARTITIONS
from stream.errors import RiskStreamError
from stream.kafka.admin import create_topics
from stream.kafka.topics import changelog_topic
from stream.runtime.cpu_affinity import unpinned
from stream.settings import KafkaSettings

if TYPE_CHECKING:
    from benchmarks.cluster import Cluster
    from benchmarks.workload import Workload

__all__ = [
    "CONTESTANTS",
    "Recovery",
    "fill_source",
    "run_ceiling",
    "run_worker_round",
    "throughput",
    "watch_recovery",
]

#: Changelog headers that Quix Streams reads on recovery.
_QUIX_HEADERS: Final = {"__column_family__": b"default", "__processed_tp_offsets__": b"null"}


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a worker's restore went.

    Attributes
    ----------
    seconds:
        From the last look at the metrics that saw nothing restored to the first that saw all of it.
    """

    records: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Return records a second."""
        return self.records / self.seconds


def fill_source(cluster: Cluster, workload: Workload, *, empty: bool = False) -> str:
    """Return a topic with the workload's transactions, or none of them."""
    topic = f"transactions-{uuid.uuid4().hex[:8]}"
    cluster.create(topic)
    if not empty:
        cluster.fill(topic, with_headers(workload.transactions))
    return topic


def watch_recovery(child: Any, records: int) -> Recovery:
    """Watch a worker that has just been started until its state is back."""
    before = time.monotonic()
    while True:
        child.check()
        found, now = child.metric("riskstream_recovered_records_total"), time.monotonic()
        if not found:
            before = now
        if found >= records:
            return Recovery(records, now - before)
        time.sleep(0.05)


def _measured(cluster: Cluster, child: Child, alerts: str, decisions: str, workload: Workload) -> Rate:
    rate = measure([child], lambda: sum(cluster.ends(decisions)), workload.spec.transactions)
    return replace(rate, alert_share=sum(cluster.ends(alerts)) / sum(cluster.ends(decisions)))


def run_worker_round(
    cluster: Cluster, workload: Workload, source: str, folder: Path
) -> tuple[Rate, Recovery]:
    """Run ``riskstream worker`` for one round."""
    settings = cluster.settings(folder, workload.bundle, source)
    create_topics(settings)
    count = cluster.fill(changelog_topic(settings), with_headers(workload.records()))
    topics = settings.topics
    try:
        with worker(settings, folder / "worker.log") as child:
            recovery = watch_recovery(child, count)
            rate = _measured(cluster, child, topics.alerts, topics.decisions, workload)
    finally:
        shutil.rmtree(settings.state_dir, ignore_errors=True)
        cluster.delete_like(settings.app_id.removeprefix("bench-"))
    return rate, recovery


def _peer_job(cluster: Cluster, workload: Workload, source: str, folder: Path) -> Job:
    unique = uuid.uuid4().hex[:8]
    return Job(
        bootstrap_servers=cluster.address,
        source=source,
        alerts=f"alerts-{unique}",
        decisions=f"decisions-{unique}",
        group=f"peer-{unique}",
        partitions=PARTITIONS,
        bundle=str(workload.bundle),
        state=str(folder / unique),
        round_records=KafkaSettings().max_poll_records,
    )


def _run_peer(peer: str, cluster: Cluster, workload: Workload, source: str, folder: Path) -> Rate:
    job = _peer_job(cluster, workload, source, folder)
    for topic in (job.alerts, job.decisions):
        cluster.create(topic)
    if peer == "faust_agent":
        changelog = f"{job.group}-history-changelog"
        cluster.create(changelog, compacted=True)
        tables = Path(job.state) / "v1" / "tables"
        tables.mkdir(parents=True)
        for partition in range(PARTITIONS):
            link_folder(workload.state / f"{partition}.db", tables / f"history-{partition}.db")
    elif peer == "quix":
        changelog = f"changelog__{job.group}--{source}--default"
        cluster.create(changelog, compacted=True)
        suffixed = ((index, key[:-6] + b"|" + key[-6:], value) for index, key, value in workload.records())
        cluster.fill(changelog, with_headers(suffixed, _QUIX_HEADERS))
    else:
        link_folder(workload.state, Path(job.state))
    command = [str(interpreter(peer)), "-m", f"benchmarks.peers.{peer}", job.to_argument()]
    if peer == "faust_agent":
        command += ["worker"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        with spawn(command, environment, folder / f"{peer}.log") as child:
            return _measured(cluster, child, job.alerts, job.decisions, workload)
    finally:
        shutil.rmtree(job.state, ignore_errors=True)
        cluster.delete_like(job.group.removeprefix("peer-"))


def run_ceiling(
    workload: Workload, folder: Path, seconds: float = 8.0, bundle: Path | None = None
) -> tuple[Rate, float]:
    """Run the in-process ceiling in a process of its own; returns the bytes of state a transaction too."""
    state = folder / "ceiling"
    link_folder(workload.state, state)
    job = Job(
        "", "transactions", "", "", "", PARTITIONS, str(bundle or workload.bundle), str(state),
        KafkaSettings().max_poll_records, str(workload.folder), seconds,
    )  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.peers.ceiling", job.to_argument()]
    try:
        with unpinned():
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    except subprocess.CalledProcessError as error:
        raise RiskStreamError(f"the in-process ceiling exited with status {error.returncode}") from error
    finally:
        shutil.rmtree(state, ignore_errors=True)
    found = json.loads(done.stdout)
    share = found["alerts"] / found["transactions"]
    rate = Rate(found["transactions"], found["seconds"], found["cpu_seconds"], found["rss_mib"], share)
    return rate, found["state_bytes"] / found["transactions"]


def _peer(name: str) -> Callable[[Cluster, Workload, str, Path], Rate]:
    return lambda cluster, workload, source, folder: _run_peer(name, cluster, workload, source, folder)


#: Name -> how to run a round of it.
CONTESTANTS: Final[dict[str, Callable[[Any, Any, str, Path], Any]]] = {
    "riskstream worker": run_worker_round,
    "plain Faust agent": _peer("faust_agent"),
    "Quix Streams": _peer("quix"),
    "bare loop, no changelog": _peer("bare"),
    "in-process ceiling": lambda _cluster, workload, _source, folder: run_ceiling(workload, folder)[0],
}


def throughput(
    cluster: Cluster,
    workload: Workload,
    folder: Path,
    rounds: int,
    names: list[str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run the contestants in turns; returns every round's figures, medians and ratios."""
    for name in names:
        if name in _PEER_MODULES:
            interpreter(_PEER_MODULES[name])
    source = fill_source(cluster, workload)
    found: dict[str, list[Rate]] = {name: [] for name in names}
    recoveries: list[Recovery] = []
    for number in range(rounds):
        # Another one begins each round, so that nobody always follows the same neighbour.
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            result = CONTESTANTS[name](cluster, workload, source, folder)
            if isinstance(result, tuple):
                result, recovery = result
                recoveries.append(recovery)
            found[name].append(result)
            say(f"round {number + 1}: {name}: {result.per_second:,.0f}/s, {result.cpu_micros:.1f} us CPU")
    cluster.delete([source])
    return {
        "rounds": {name: [asdict(rate) for rate in rates] for name, rates in found.items()},
        "median": {name: _medians(rates) for name, rates in found.items()},
        "ratio": {
            name: statistics.median(
                own.per_second / other.per_second
                for own, other in zip(found["riskstream worker"], rates, strict=True)
            )
            for name, rates in found.items()
            if name != "riskstream worker" and "riskstream worker" in found
        },
        "recovery": [asdict(item) for item in recoveries],
    }


_PEER_MODULES: Final = {
    "plain Faust agent": "faust_agent",
    "Quix Streams": "quix",
    "bare loop, no changelog": "bare",
}


def _medians(rates: list[Rate]) -> dict[str, float]:
    return {
        "per_second": statistics.median(rate.per_second for rate in rates),
        "cpu_micros": statistics.median(rate.cpu_micros for rate in rates),
        "rss_mib": statistics.median(rate.rss_mib for rate in rates),
        "alert_share": statistics.median(rate.alert_share for rate in rates),
    }
