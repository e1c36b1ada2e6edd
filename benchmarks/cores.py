"""Which cores what runs on: the worker has one for itself, as ``RISKSTREAM_CORE`` gives it.

Broker, generator and consumer are other machines' in a deployment. Here they would take the core from the
worker in the middle of a round, so they keep off it. Peers may use every core.
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
    """Return in a line what runs where."""
    if core is None:
        return "cores     all share them"
    others = ", ".join(map(str, sorted(ALL - {core})))
    return (
        f"cores     the worker's threads on {core}, RocksDB's and peers on all; "
        f"broker, generator and consumer on {others}"
    )
