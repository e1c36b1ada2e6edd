"""The cores of the worker's threads.

The threads share one interpreter lock: no two of them compute at once, and on two cores each handover moves a
thread's data from one core's caches to the other's, behind the work of other programs there. On one core they
take turns in place. RocksDB's own threads need no lock; a flush on the worker's core would only delay it.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stream.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

__all__ = ["pin_to_core", "pin_to_cores", "unpinned"]


#: Where the process may run, once it keeps to a part of that.
_everywhere: set[int] = set()


def pin_to_core(core: int) -> None:
    """Keep the process to a core.

    Raises
    ------
    ConfigError
        The process may not run there, or the system does not let choose.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if core not in allowed:
        there = ", ".join(map(str, sorted(allowed))) or "none, because this system does not support pinning"
        raise ConfigError(
            f"RISKSTREAM_CORE: {core} is not one of the cores that this process may use: {there}"
        )
    pin_to_cores({core})


def pin_to_cores(cores: AbstractSet[int]) -> None:
    """Keep the process's threads, and the threads that they start from now on, to some of its cores."""
    _everywhere.update(os.sched_getaffinity(0))
    for thread in Path("/proc/self/task").iterdir():  # libraries have started some when they were imported
        os.sched_setaffinity(int(thread.name), cores)


@contextmanager
def unpinned() -> Iterator[None]:
    """Let threads and processes that are started meanwhile run wherever the process may."""
    if not _everywhere:
        yield
        return
    own = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):  # the system has taken cores away since: then they stay here
        os.sched_setaffinity(0, _everywhere)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)
