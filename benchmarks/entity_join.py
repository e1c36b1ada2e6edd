"""The cost of the entity join: the same transactions, and models with profiles of no, one or three entities.

The models take turns, each in separate rounds: a worker restores its state from a changelog, decides the
transactions that are already in its topic, which gives throughput and CPU time, and then processes more of
them in an open loop, with each decision timed from its transaction's due time. Ratios are relative to the
model without entities, in the same round.
"""

from __future__ import annotations

import shutil
import statistics
import time
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from benchmarks.cluster import with_headers
from benchmarks.contest import Rate, worker
from benchmarks.entity_join_workload import VARIANTS, entity_join_workloads
from benchmarks.latency import open_loop
from stream.errors import RiskStreamError
from stream.kafka.admin import create_topics
from stream.kafka.topics import changelog_topic

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.cluster import Cluster
    from benchmarks.contest import Child
    from benchmarks.entity_join_workload import Variant
    from benchmarks.workload import Workload

__all__ = ["entity_join", "summary"]

#: Below what any of the models manages.
_RATE: Final = 400.0
#: The generator and the listener begin with a backlog of seconds.
_WARM_SECONDS: Final = 5.0
_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02
_PATIENCE_SECONDS: Final = 120.0
_FIGURES: Final = ("per_second", "cpu_micros", "p50", "p99")


def entity_join(cluster: Cluster, folder: Path, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return every round's figures, their medians and ratios."""
    works = entity_join_workloads()
    found: dict[str, list[dict[str, float]]] = {case.name: [] for case in VARIANTS}
    for number in range(rounds):
        # Another one begins each round, so that nobody always follows the same neighbour.
        turn = number % len(VARIANTS)
        for case in VARIANTS[turn:] + VARIANTS[:turn]:
            item = _round(cluster, case, works[case.name], folder)
            found[case.name].append(item)
            say(
                f"round {number + 1}: {case.name}: {item['per_second']:,.0f}/s, "
                f"{item['cpu_micros']:.1f} us CPU; "
                f"at {_RATE:,.0f}/s p50 {item['p50']:.1f} ms, p99 {item['p99']:.1f} ms"
            )
    return {"rate": _RATE, "entities": {case.name: _entities(case) for case in VARIANTS}, **summary(found)}


def summary(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the rounds, each figure's median, and the median of its ratio to the first model's round."""
    first = next(iter(rounds.values()))
    return {
        "rounds": rounds,
        "median": {
            name: {figure: statistics.median(item[figure] for item in ones) for figure in ones[0]}
            for name, ones in rounds.items()
        },
        "ratio": {
            name: {
                figure: statistics.median(
                    item[figure] / other[figure] for item, other in zip(ones, first, strict=True)
                )
                for figure in _FIGURES
            }
            for name, ones in rounds.items()
        },
    }


def _entities(case: Variant) -> list[str]:
    return [profile.entity for profile in case.profiles]


def _round(cluster: Cluster, case: Variant, work: Workload, folder: Path) -> dict[str, float]:
    source = f"transactions-{uuid.uuid4().hex[:8]}"
    cluster.create(source)
    cluster.fill(source, with_headers(work.transactions[: case.preloaded]))
    settings = cluster.settings(folder, work.bundle, source)
    create_topics(settings)
    cluster.fill(changelog_topic(settings), with_headers(work.records()))

    def decided() -> int:
        return sum(cluster.ends(settings.topics.decisions))

    try:
        with worker(settings, folder / "worker.log") as child:
            rate = _all_of_them(child, decided, case.preloaded)
            waited = open_loop(
                cluster,
                work,
                settings,
                case.preloaded,
                _RATE,
                _SECONDS,
                every=True,
                warm_seconds=_WARM_SECONDS,
            )
            alerts = sum(cluster.ends(settings.topics.alerts)) / decided()
    finally:
        shutil.rmtree(settings.state_dir, ignore_errors=True)
        cluster.delete_like(settings.app_id.removeprefix("bench-"))
        cluster.delete([source])
    figures = {"per_second": rate.per_second, "cpu_micros": rate.cpu_micros}
    figures |= {name: float(waited[name]) for name in ("p50", "p90", "p99", "max", "sent_p50", "sent_p99")}
    return asdict(rate) | {"alert_share": alerts} | figures


def _all_of_them(child: Child, decided: Callable[[], int], count: int) -> Rate:
    """Measure from the worker's readiness to the last decision.

    Not a part in the middle: transactions are taken some rounds before they are decided, so that what is
    decided in a part was paid for before it.
    """
    child.wait_ready()
    begun, cpu = time.monotonic(), child.cpu_seconds()
    while decided() < count:
        child.check()
        if time.monotonic() - begun > _PATIENCE_SECONDS:
            raise RiskStreamError("some transactions remained undecided after two minutes")
        time.sleep(_POLL_SECONDS)
    return Rate(count, time.monotonic() - begun, child.cpu_seconds() - cpu, child.rss_mib())
