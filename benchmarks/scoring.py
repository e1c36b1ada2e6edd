"""Latency of ``POST /predict`` on workers: ``python -m benchmarks.scoring [--rate 200] [--rounds 3]``.

An open loop: each request is sent at a fixed due time, regardless of the requests before it, and its latency
counts from the due time. Client, workers, Apache Kafka and the producer of the concurrent stream share one
machine. Each request is for a random user. The output is the median over rounds; within a round, the cases
run one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
import numpy as np

from benchmarks.cluster import running, with_headers
from benchmarks.contest import ROOT, workers
from benchmarks.entity_join_workload import entity_join_workloads
from benchmarks.environment import describe, environment
from benchmarks.generator import Order
from benchmarks.workload import PARTITIONS, Workload, WorkloadSpec
from stream.kafka.admin import create_topics
from stream.kafka.partitioner import partition_of
from stream.kafka.topics import changelog_topic
from stream.settings import ScoringSettings
from stream.state.format import is_of_entity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cluster import Cluster

#: What is promised of single requests, in ms.
_TARGET_P99_MS: Final = 15.0
_WARM_SECONDS: Final = 3.0
_PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
_USER_BYTES: Final = len(b"U0000000")
_ADDRESS: Final = re.compile(r"scores on (http://\S+)/predict")


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of what.

    Attributes
    ----------
    events
        Of each user within the horizon.
    workers
        All asked through the first one, which hands on what is not its own.
    stream
        Transactions a second that go through the workers beside.
    batch
        Transactions of a request; there are as many fewer requests.
    merchants
        Whether the model has profiles of merchants, with the workload of
        :mod:`benchmarks.entity_join_workload`.
    """

    name: str
    events: int = 30
    workers: int = 1
    stream: int = 0
    batch: int = 1
    merchants: bool = False
    has_target: bool = False


CASES: Final = (
    Case("one worker, no stream", has_target=True),
    Case("one worker, 2,000 transactions/s through it", stream=2_000, has_target=True),
    Case("one worker, 1,000 events per user", events=1_000, has_target=True),
    Case("two workers, half of the requests forwarded", workers=2, has_target=True),
    Case("one worker, in batches of 20", batch=20),
    Case("two workers, model with merchant profiles", workers=2, merchants=True),
)


@contextmanager
def serving(cluster: Cluster, workload: Workload, folder: Path, count: int) -> Iterator[tuple[str, str]]:
    """Run workers with the workload's state; yields the first one's address and the source topic."""
    source = f"transactions-{time.monotonic_ns() % 10**9}"
    settings = cluster.settings(folder, workload.bundle, source)
    settings = settings.model_copy(update={"scoring": ScoringSettings(enabled=True, port=0)})
    create_topics(settings)
    placed = ((index(partition, key), key, value) for partition, key, value in workload.records())
    cluster.fill(changelog_topic(settings), with_headers(placed))
    try:
        with workers(settings, folder, count) as children:
            found = _ADDRESS.search(children[0].log)
            assert found is not None
            yield found[1], source
    finally:
        shutil.rmtree(settings.state_dir, ignore_errors=True)
        cluster.delete_like(settings.app_id.removeprefix("bench-"))
        cluster.delete([source])


def index(partition: int, key: bytes) -> int:
    """Return the partition of a record: an entity's as it is, a user's as producers choose it."""
    return partition if is_of_entity(key) else partition_of(key[:_USER_BYTES], PARTITIONS, "murmur2")


@contextmanager
def streaming(cluster: Cluster, source: str, workload: Workload, rate: int, seconds: float) -> Iterator[None]:
    """Let another process send transactions all the time, from the workload's middle on."""
    if not rate:
        yield
        return
    first = len(workload.transactions) // 2
    count = min(int(rate * (seconds + 10)), len(workload.transactions) - first)
    order = Order(cluster.address, source, str(workload.folder), first, count, rate, hashed=True)
    command = [sys.executable, "-m", "benchmarks.generator", order.to_argument()]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while not sum(cluster.ends(source)):
            time.sleep(0.1)
        yield
        if process.poll() is not None:
            sys.exit("the concurrent stream ended before the requests")
    finally:
        process.kill()
        process.wait()


async def open_loop(address: str, bodies: list[bytes], rate: float) -> list[float]:
    """Send the bodies at their times; returns the latencies in ms, without those of the warm-up."""
    waited: list[float] = []
    failed: list[str] = []
    connector = aiohttp.TCPConnector(limit=256, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector) as client:

        async def ask(body: bytes, due: float, counted: bool) -> None:  # noqa: FBT001
            try:
                async with client.post(f"{address}/predict", data=body) as response:
                    text = await response.read()
                    if response.status != 200:  # noqa: PLR2004
                        failed.append(text.decode())
            except aiohttp.ClientError as error:
                failed.append(repr(error))
            if counted:
                waited.append(1000 * (time.monotonic() - due))

        begun = time.monotonic() + 0.1
        async with asyncio.TaskGroup() as group:
            for number, body in enumerate(bodies):
                due = begun + number / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                group.create_task(ask(body, due, number >= _WARM_SECONDS * rate))
    if failed:
        sys.exit(f"{len(failed)} requests failed: {failed[0]}")
    return waited


def measure(cluster: Cluster, case: Case, rate: float, seconds: float, folder: Path) -> dict[str, float]:
    """Run one case for one round."""
    if case.merchants:
        workload = entity_join_workloads()["with merchants"]
    else:
        users = 100_000 if case.events < 1_000 else 2_000  # noqa: PLR2004
        workload = Workload.prepare(WorkloadSpec(users=users, events=case.events))
    requests = rate / case.batch
    count = int(requests * (seconds + _WARM_SECONDS))
    chosen = [value for _, _, value in workload.transactions[: count * case.batch]]
    bodies = chosen
    if case.batch > 1:
        bodies = [
            b"[" + b",".join(chosen[at : at + case.batch]) + b"]" for at in range(0, len(chosen), case.batch)
        ]
    with (
        serving(cluster, workload, folder, case.workers) as (address, source),
        streaming(cluster, source, workload, case.stream, seconds + _WARM_SECONDS),
    ):
        waited = asyncio.run(open_loop(address, bodies, requests))
    values = np.percentile(waited, _PERCENTILES).tolist()
    return dict(zip(("p50", "p90", "p99", "p99.9"), values, strict=True)) | {"max": max(waited)}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second (200)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="seconds per case, after the warm-up (20)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="run only the cases whose name contains this text")
    parser.add_argument("--json", type=Path, help="also write the results to this JSON file")
    chosen = parser.parse_args()
    around = environment()
    cases = [case for case in CASES if (chosen.only or "") in case.name]
    rounds: dict[str, list[dict[str, float]]] = {case.name: [] for case in cases}
    with tempfile.TemporaryDirectory() as made, running("kafka", Path(made) / "kafka") as cluster:
        for number in range(chosen.rounds):
            for case in cases:
                print(f"round {number + 1}: {case.name}", file=sys.stderr, flush=True)
                rounds[case.name].append(
                    measure(cluster, case, chosen.rate, chosen.seconds, Path(tempfile.mkdtemp(dir=made)))
                )
    found = {
        name: {figure: statistics.median(item[figure] for item in all_of) for figure in all_of[0]}
        for name, all_of in rounds.items()
    }
    print("\n".join(describe(around)))
    print(f"\nPOST /predict, {chosen.rate:g} transactions/s in an open loop, ms from a request's due time:\n")
    print("| | p50 | p90 | p99 | p99.9 | max | target: p99 ≤ 15 ms |\n|---|---:|---:|---:|---:|---:|---|")
    for case in cases:
        figures = found[case.name]
        verdict = ("met" if figures["p99"] <= _TARGET_P99_MS else "missed") if case.has_target else ""
        cells = " | ".join(f"{value:.1f}" for value in figures.values())
        print(f"| {case.name} | {cells} | {verdict} |")
    if chosen.json is not None:
        chosen.json.write_text(
            json.dumps({"environment": around, "rounds": rounds, "median": found}, indent=1)
        )


if __name__ == "__main__":
    main()
