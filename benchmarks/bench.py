"""The measurements of ``riskstream bench`` on one broker, and their output."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import cores
from benchmarks.cluster import BROKER_SETTINGS, Cluster, running
from benchmarks.cost import growth, worker_counts
from benchmarks.entity_join import entity_join
from benchmarks.environment import describe, environment
from benchmarks.latency import closed_loop, median_of, open_loop, started
from benchmarks.recovery import recovery
from benchmarks.report import tables, text, write_markdown
from benchmarks.requests import hostile_requests
from benchmarks.stages import stages
from benchmarks.throughput import CONTESTANTS, throughput
from benchmarks.workload import PARTITIONS, Workload, WorkloadSpec
from stream.kafka.local.apache import KAFKA_VERSION
from stream.runtime.cpu_affinity import pin_to_cores

__all__ = ["PARTS", "Options", "run"]

#: What can be measured, in the order in which it is.
PARTS: Final = ("throughput", "latency", "recovery", "cost", "entity-join", "requests", "stages")
_WORKER: Final = "riskstream worker"
_STEADY_RATE: Final = 2_000.0
_BUSY_SHARE: Final = 0.7
#: Kafka's own default since 4.0. At the lower rate the generator sends what is due each millisecond; here
#: that would be a thousand requests a second, of a producer and a broker that share two cores with the
#: worker.
_BUSY_LINGER_MS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure.

    Attributes
    ----------
    contestants:
        Of the throughput; empty for all.
    busy_rate:
        Transactions a second of the busy latency; without it, 70 % of the measured throughput.
    shared_cores:
        Whether the worker shares its core with broker, generator and consumer.
    markdown:
        Files to write the tables to; see :func:`benchmarks.report.write_markdown`.
    """

    broker: str = "kafka"
    rounds: int = 5
    quick: bool = False
    contestants: tuple[str, ...] = ()
    busy_rate: float | None = None
    shared_cores: bool = False
    json: Path | None = None
    markdown: tuple[Path, ...] = ()


def run(parts: tuple[str, ...], options: Options) -> None:
    """Measure the parts, print tables, and write what was asked for."""
    found: dict[str, Any] = {"environment": environment(), "quick": options.quick}
    core = None if options.shared_cores else cores.WORKER
    found["cores"] = {"all": sorted(cores.ALL), "worker": core}
    if core is not None:
        pin_to_cores(cores.ALL - {core})
    found["broker"] = {"kind": options.broker, "version": KAFKA_VERSION, "settings": BROKER_SETTINGS}
    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {line}", flush=True)

    lines = [*describe(found["environment"]), _broker_line(options), cores.describe(core)]
    print("\n".join(lines))
    say("preparing the workload")
    workload = Workload.prepare(WorkloadSpec())
    folder = Path(tempfile.mkdtemp(prefix="riskstream-bench-"))
    try:
        if set(parts) - {"stages"}:
            with running(options.broker, folder / "broker", core) as cluster:
                for part in parts:
                    if part in _ON_KAFKA:
                        found[part] = _ON_KAFKA[part](cluster, workload, folder, options, found, say)
        if "stages" in parts:
            say("stages")
            found["stages"] = stages(workload, folder, 4.0 if options.quick else 8.0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found["seconds"] = round(time.monotonic() - begun)
    for table in tables(found):
        print(text(table))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for path in options.markdown:
        write_markdown(path, found, lines)


def _broker_line(options: Options) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in BROKER_SETTINGS.items())
    kind = f"Apache Kafka {KAFKA_VERSION}, one node, {settings}" if options.broker == "kafka" else "embedded"
    return f"broker    {kind}; {PARTITIONS} partitions, acks=all"


def _throughput(
    cluster: Cluster, workload: Workload, folder: Path, options: Options, _found: Any, say: Any
) -> dict[str, Any]:
    names = list(options.contestants) or list(CONTESTANTS)
    return throughput(cluster, workload, folder, options.rounds, names, say)


def _latency(
    cluster: Cluster, workload: Workload, folder: Path, options: Options, found: Any, say: Any
) -> dict[str, Any]:
    seconds = 12.0 if options.quick else 35.0
    measured: dict[str, Any] = {}
    rate = options.busy_rate
    if rate is None and _WORKER in found.get("throughput", {}).get("median", {}):
        rate = _BUSY_SHARE * found["throughput"]["median"][_WORKER]["per_second"]
    with started(cluster, workload, folder) as (settings, _):
        say(f"latency at {_STEADY_RATE:,.0f}/s")
        measured["steady"] = open_loop(cluster, workload, settings, 0, _STEADY_RATE, seconds)
        if rate is not None:
            say(f"latency at {rate:,.0f}/s")
            first = int(_STEADY_RATE * seconds)
            measured["busy"] = open_loop(
                cluster, workload, settings, first, rate, seconds / 2, _BUSY_LINGER_MS
            )
    say("latency of single transactions")
    every = Workload.prepare(WorkloadSpec(transactions=5_000, alert_share=1.0))
    with started(cluster, every, folder) as (settings, _):
        rounds = [closed_loop(cluster, every, settings, 100 if options.quick else 500)]
        measured["idle"] = median_of(rounds)
    return measured


def _recovery(
    cluster: Cluster, workload: Workload, folder: Path, options: Options, _found: Any, say: Any
) -> dict[str, Any]:
    say("recovery")
    return recovery(cluster, workload, folder, options.rounds, say)


def _cost(
    cluster: Cluster, workload: Workload, folder: Path, options: Options, _found: Any, say: Any
) -> dict[str, Any]:
    say("cost")
    rounds = min(options.rounds, 3)
    return {
        "growth": growth(workload, folder, rounds, say, quick=options.quick),
        "workers": worker_counts(cluster, workload, folder, 1 if options.quick else 2, say),
    }


def _entity_join(
    cluster: Cluster, _workload: Workload, folder: Path, options: Options, found: Any, say: Any
) -> dict[str, Any]:
    say("entity join")
    # A round takes two minutes, which the whole of the bench has once only.
    alone = not any(part in found for part in _ON_KAFKA)
    return entity_join(cluster, folder, min(options.rounds, 3) if alone and not options.quick else 1, say)


def _requests(
    cluster: Cluster, workload: Workload, folder: Path, options: Options, _found: Any, say: Any
) -> dict[str, Any]:
    seconds, rounds = (10.0, 1) if options.quick else (15.0, min(options.rounds, 3))
    return hostile_requests(cluster, workload, folder, seconds, rounds, say)


_ON_KAFKA: Final = {
    "throughput": _throughput,
    "latency": _latency,
    "recovery": _recovery,
    "cost": _cost,
    "entity-join": _entity_join,
    "requests": _requests,
}
