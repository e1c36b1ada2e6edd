"""Recovery: a worker with an empty state folder restores 100,000 users from the changelog.

The changelog contains three records per user, as between two compactions.
"""

from __future__ import annotations

import shutil
import statistics
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from benchmarks.cluster import with_headers
from benchmarks.contest import worker
from benchmarks.throughput import fill_source, watch_recovery
from stream.kafka.admin import create_topics
from stream.kafka.topics import changelog_topic

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.cluster import Cluster
    from benchmarks.workload import Workload

__all__ = ["recovery"]

_GENERATIONS = 3


def recovery(
    cluster: Cluster, workload: Workload, folder: Path, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return the rounds and the median of records a second."""
    source = fill_source(cluster, workload, empty=True)
    settings = cluster.settings(folder, workload.bundle, source)
    create_topics(settings)
    everything = chain.from_iterable(workload.records() for _ in range(_GENERATIONS))
    count = cluster.fill(changelog_topic(settings), with_headers(everything))
    found = []
    for number in range(rounds):
        with worker(settings, folder / "worker.log") as child:
            found.append(watch_recovery(child, count))
        shutil.rmtree(settings.state_dir)
        say(f"round {number + 1}: {found[-1].per_second:,.0f} records/s")
    cluster.delete_like(settings.app_id.removeprefix("bench-"))
    cluster.delete([source])
    return {
        "rounds": [asdict(item) for item in found],
        "records": count,
        "per_second": statistics.median(item.per_second for item in found),
    }
