"""Growth of the cost of a transaction with the users, with their history, and with the number of workers.

Users and history are measured in process, on the in-process ceiling. Kafka's part depends on neither, except
through the bytes of state, which also go to the changelog and are reported. Workers are measured on Kafka, by
their CPU time.
"""

from __future__ import annotations

import shutil
import statistics
from typing import TYPE_CHECKING, Any, Final

from benchmarks.cluster import with_headers
from benchmarks.contest import Rate, measure, workers
from benchmarks.throughput import fill_source, run_ceiling
from benchmarks.workload import PARTITIONS, Workload, WorkloadSpec
from stream.kafka.admin import create_topics
from stream.kafka.topics import changelog_topic

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.cluster import Cluster

__all__ = ["growth", "worker_counts"]

#: Name -> users, events a user. Histories of 3,000 events take 140 KB each: as many users as of the long ones
#: have the short ones too, so that a round meets as many of them twice.
_CASES: Final = {
    "100,000 users, 30 events each": (100_000, 30),
    "1,000,000 users, 30 events each": (1_000_000, 30),
    "4,000 users, 30 events each": (4_000, 30),
    "4,000 users, 3,000 events each": (4_000, 3_000),
}
_QUICK: Final = {
    "100,000 users, 30 events each": (100_000, 30),
    "400,000 users, 30 events each": (400_000, 30),
    "1,000 users, 30 events each": (1_000, 30),
    "1,000 users, 3,000 events each": (1_000, 3_000),
}


def growth(
    base: Workload, folder: Path, rounds: int, say: Callable[[str], None], *, quick: bool = False
) -> dict[str, Any]:
    """Return the cost by users and by history, the cases in turns; one model for all."""
    cases = {}
    for name, (users, events) in (_QUICK if quick else _CASES).items():
        say(f"preparing {name}")
        spec = WorkloadSpec(users=users, events=events, transactions=base.spec.transactions)
        cases[name] = base if spec == base.spec else Workload.prepare(spec, bundle=base.bundle)
    for workload in cases.values():
        _read(workload.state)
    found: dict[str, list[tuple[Rate, float]]] = {name: [] for name in cases}
    for number in range(rounds):
        for name, workload in cases.items():
            found[name].append(run_ceiling(workload, folder, 4.0, base.bundle))
            rate, size = found[name][-1]
            say(f"round {number + 1}: {name}: {rate.cpu_micros:.1f} us CPU, {size:,.0f} bytes of state")
    names = list(cases)

    def ratio(name: str, other: str) -> float:
        pairs = zip(found[name], found[other], strict=True)
        return statistics.median(item.seconds / item.transactions / (two.seconds / two.transactions)
                                 for (item, _), (two, _) in pairs)  # fmt: skip

    return {
        "cases": {
            name: {
                "micros": statistics.median(1e6 / rate.per_second for rate, _ in measured),
                "cpu_micros": statistics.median(rate.cpu_micros for rate, _ in measured),
                "state_bytes": statistics.median(size for _, size in measured),
                "rss_mib": statistics.median(rate.rss_mib for rate, _ in measured),
            }
            for name, measured in found.items()
        },
        "users_ratio": ratio(names[1], names[0]),
        "history_ratio": ratio(names[3], names[2]),
    }


def _read(folder: Path) -> None:
    """Read a store once: whether the system still has its files in memory is not what is compared."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()


def worker_counts(
    cluster: Cluster, workload: Workload, folder: Path, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return the processor time of a transaction with one worker and with one for each partition."""
    found: dict[int, list[Rate]] = {1: [], PARTITIONS: []}
    for number in range(rounds):
        for count, rates in found.items():
            rates.append(_run(cluster, workload, folder, count))
            say(f"round {number + 1}: {count} workers: {rates[-1].cpu_micros:.1f} us CPU per transaction")
    pairs = zip(found[PARTITIONS], found[1], strict=True)
    return {
        "cpu_micros": {
            str(count): statistics.median(rate.cpu_micros for rate in rates) for count, rates in found.items()
        },
        "per_second": {
            str(count): statistics.median(rate.per_second for rate in rates) for count, rates in found.items()
        },
        "workers_ratio": statistics.median(many.cpu_micros / pair.cpu_micros for many, pair in pairs),
    }


def _run(cluster: Cluster, workload: Workload, folder: Path, count: int) -> Rate:
    """Run so many workers of one group.

    They join on an empty topic, or the first would have done its share before the last is ready; the records
    come when all are.
    """
    source = fill_source(cluster, workload, empty=True)
    settings = cluster.settings(folder, workload.bundle, source)
    create_topics(settings)
    cluster.fill(changelog_topic(settings), with_headers(workload.records()))
    decisions = settings.topics.decisions
    try:
        with workers(settings, folder, count) as children:
            cluster.fill(source, with_headers(workload.transactions))
            return measure(children, lambda: sum(cluster.ends(decisions)), workload.spec.transactions)
    finally:
        shutil.rmtree(settings.state_dir, ignore_errors=True)
        cluster.delete_like(settings.app_id.removeprefix("bench-"))
        cluster.delete([source])
