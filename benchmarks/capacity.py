"""A calculation, not a measurement: the resources that a load needs, from benchmark results.

``python -m benchmarks.capacity`` prints the table of docs/how-to/capacity.md. The inputs are below, each with
the command that measures it; pass the values of your own machine with ``--worker-rate`` and similar options.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields

#: The loads of the table: transactions a second, users.
LOADS = ((100, 100_000), (1_000, 1_000_000), (10_000, 5_000_000), (50_000, 20_000_000))

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Figures:
    """What the reckoning rests on.

    Attributes
    ----------
    worker_rate
        Transactions a second of one worker that has the machine to itself and the broker
        (``riskstream bench throughput``).
    state_bytes
        Of a user on disk (``python -m benchmarks.windows``: bytes written for a user of 100 events).
    changelog_bytes
        Written for a transaction (``riskstream bench cost``: bytes of state a transaction).
    source_bytes, decision_bytes, alert_bytes
        Of a record with its key (``riskstream bench``; an alert from a demo's).
    alert_share
        Alerts of a transaction.
    python_mib, caches_mib
        A worker's memory: Python and its libraries; block cache, write buffers, long histories (settings).
    use
        How much of a worker is planned with, so that a lost one's share fits beside the others' own.
    replicas, days
        Of Kafka's topics.
    """

    worker_rate: float = 30_000
    state_bytes: float = 1_100
    changelog_bytes: float = 1_146
    source_bytes: float = 252
    decision_bytes: float = 347
    alert_bytes: float = 900
    alert_share: float = 0.02
    python_mib: float = 300
    caches_mib: float = 640
    use: float = 0.7
    replicas: int = 3
    days: float = 7


@dataclass(frozen=True)
class Capacity:
    """What one load needs."""

    workers: int
    partitions: int
    worker_memory: float
    worker_disk: float
    changelog_rate: float
    changelog_size: float
    topics_size: float


def reckon(rate: float, users: int, figures: Figures) -> Capacity:
    """Return what ``rate`` transactions a second of ``users`` users need, without Kafka's own overhead."""
    workers = max(2, math.ceil(rate / (figures.use * figures.worker_rate)))
    record = figures.source_bytes + figures.decision_bytes + figures.alert_share * figures.alert_bytes
    state = users * figures.state_bytes
    return Capacity(
        workers=workers,
        # Fixed once there is state: room for four times the workers.
        partitions=max(4, 1 << math.ceil(math.log2(4 * workers))),
        worker_memory=(figures.python_mib + figures.caches_mib) * MIB,
        # Twice what is live: compactions write the new beside the old.
        worker_disk=2 * state / workers,
        changelog_rate=rate * figures.changelog_bytes * figures.replicas,
        # Compacted when half of it is stale.
        changelog_size=2 * state * figures.replicas,
        topics_size=rate * 86_400 * figures.days * record * figures.replicas,
    )


def size(value: float) -> str:
    """Return bytes in the unit that leaves a short number."""
    for unit, name in ((1 << 40, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")):
        if value >= unit:
            return f"{value / unit:,.3g} {name}" if value < 1000 * unit else f"{value / unit:,.0f} {name}"
    return f"{value:,.0f} B"


def table(figures: Figures) -> str:
    """Return the table as Markdown."""
    heads = ("transactions/s", "users", "workers", "partitions", "worker's memory", "worker's disk")
    heads += ("changelog, written", "changelog, kept", "other topics")
    lines = [f"| {' | '.join(heads)} |", "|" + "---:|" * len(heads)]
    for rate, users in LOADS:
        found = reckon(rate, users, figures)
        lines.append(
            f"| {rate:,} | {users:,} | {found.workers} | {found.partitions} | {size(found.worker_memory)} "
            f"| {size(found.worker_disk)} | {size(found.changelog_rate)}/s | {size(found.changelog_size)} "
            f"| {size(found.topics_size)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for field in fields(Figures):
        default = field.default
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(default), default=default)
    print(table(Figures(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
