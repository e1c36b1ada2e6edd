"""CPU cores of the processes: the worker has a dedicated core, as ``RISKSTREAM_CORE`` assigns it.

A deployment runs broker, generator and consumer on other machines. Here they would preempt the worker in the
middle of a round, so they stay off its core. Peers may use every core.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["ALL", "WORKER", "describe"]

#: The cores that this process may use when it starts; none where the system does not let choose.
ALL: Final[frozenset[int]] = (
    frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
)

#: The worker's core; None where there is no other.
WORKER: Final[int | None] = min(ALL) if len(ALL) > 1 else None


def describe(core: int | None) -> str:
    """Return a line with the cores of each process."""
    if core is None:
        return "cores     all processes share all cores"
    others = ", ".join(map(str, sorted(ALL - {core})))
    return (
        f"cores     the worker's threads on {core}, RocksDB's and peers on all; "
        f"broker, generator and consumer on {others}"
    )
