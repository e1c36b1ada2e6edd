"""The resident memory of a process that holds a million users: ``python -m benchmarks.windows --memory``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.local_store import LocalStore
from benchmarks.windows_users import MANY, PARTITIONS, START_MS, Names, Timed, Users, take_events
from stream.events.fields import MS_PER_DAY
from stream.features.windows import records as layout
from stream.features.windows.arrays import CHUNK
from stream.settings import RocksDBSettings
from stream.state.store import MemoryStore

_MEMORY_TARGET_MIB: Final = 1_536


@dataclass(slots=True)
class _Watch:
    """Samples this process's resident memory, the peak by phase, in the background."""

    phase: str = "start"
    peaks: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[int]] = field(default_factory=dict)

    def run(self) -> None:
        process = psutil.Process()
        while True:
            now = process.memory_info().rss
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), now)
            self.samples.setdefault(self.phase, []).append(now)
            time.sleep(0.05)


def _status() -> dict[str, int]:
    """Return the parts of the resident memory in MiB, as Linux tells them."""
    source = Path("/proc/self/status")
    parts = {}
    if source.is_file():
        for line in source.read_text(encoding="utf-8").splitlines():
            name, _, rest = line.partition(":")
            if name in {"VmRSS", "RssAnon", "RssFile"}:
                parts[name] = int(rest.split()[0]) // 1024
    return parts


def _rocksdb_mib(store: LocalStore) -> dict[str, int]:
    """Return what RocksDB says of its memory, in MiB; the cache is shared by all partitions."""
    databases = [store.database(partition) for partition in range(PARTITIONS)]

    def total(name: str) -> int:
        return sum(int(db.property_int_value(f"rocksdb.{name}") or 0) for db in databases) >> 20

    return {
        "block_cache": int(databases[0].property_int_value("rocksdb.block-cache-usage") or 0) >> 20,
        "block_cache_pinned": int(databases[0].property_int_value("rocksdb.block-cache-pinned-usage") or 0)
        >> 20,
        "memtables": total("size-all-mem-tables"),
        "table_readers": total("estimate-table-readers-mem"),
        "files_on_disk": total("total-sst-files-size"),
    }


def memory_child(folder: Path, users: int, steady_seconds: float) -> dict[str, Any]:
    """Fill a store with users of 30 events each, then go on at random; returns where the memory went."""
    watch = _Watch()
    threading.Thread(target=watch.run, daemon=True).start()
    import stream.runtime.worker  # noqa: F401, PLC0415 - so that a worker's imports are in the figure

    imported = _status()
    store = LocalStore(folder, RocksDBSettings())
    random = np.random.default_rng(1)
    names = [Names(partition, len(range(partition, users, PARTITIONS))) for partition in range(PARTITIONS)]
    parts = [Users(own, np.full(len(own), START_MS), MS_PER_DAY, MANY, random) for own in names]
    warm = MemoryStore()
    everything = Users([b"warm"], np.array([START_MS]), MS_PER_DAY, MANY, random)
    for _ in range(3):
        warm.write(take_events(everything.events(np.zeros(3 * CHUNK, np.int64)), warm).writes)
    time.sleep(0.2)
    before = _status()
    watch.phase = "fill"
    begun = time.perf_counter()
    for partition, part in enumerate(parts):
        for first in range(0, len(part.names), 1000):
            chosen = np.repeat(np.arange(first, min(first + 1000, len(part.names))), 30)
            result = take_events(part.events(chosen), Timed(store, partition))
            store.write(partition, result.writes, part.offset)
    filled = _rocksdb_mib(store)
    filling = time.perf_counter() - begun
    watch.phase = "steady"
    events = 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < steady_seconds:
        for partition, part in enumerate(parts):
            chosen = random.integers(len(part.names), size=500)
            result = take_events(part.events(chosen), Timed(store, partition))
            store.write(partition, result.writes, part.offset)
            events += 500
    seconds = time.perf_counter() - begun
    after, rocks = _status(), _rocksdb_mib(store)
    steady = watch.samples["steady"]
    store.close()
    time.sleep(0.2)
    return {
        "users": users,
        "head_bytes": 8 * layout.MAX_HEAD_WORDS,
        "fill_seconds": round(filling, 1),
        "steady_events_per_second": round(events / seconds),
        "peak_mib": {phase: peak >> 20 for phase, peak in watch.peaks.items()},
        "steady_mib": int(statistics.median(steady[len(steady) // 2 :])) >> 20,
        "imported_mib": imported,
        "before_mib": before,
        "after_mib": after,
        "rocksdb_after_fill_mib": filled,
        "rocksdb_after_steady_mib": rocks,
        "closed_mib": _status(),
    }


def memory(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Run :func:`memory_child` in a process of its own."""
    users, seconds = (100_000, 10) if quick else (1_000_000, 45)
    command = [
        sys.executable,
        "-m",
        "benchmarks.windows",
        "--memory-child",
        str(folder),
        str(users),
        str(seconds),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def print_memory(found: dict[str, Any]) -> None:
    """Print what :func:`memory` found."""
    settings = RocksDBSettings()
    peak = max(found["peak_mib"].values())
    print(f"\n4. Memory with {found['users']:,} users of 30 events each, {PARTITIONS} partitions")
    print(
        f"   block cache {settings.block_cache_mib} MiB, write buffers {settings.write_buffer_mib} MiB; "
        f"filled in {found['fill_seconds']:.0f} s, then {found['steady_events_per_second']:,} events/s\n"
    )
    for phase, value in found["peak_mib"].items():
        print(f"   peak in {phase:<8}{value:>7,} MiB")
    print(f"   steady (median){found['steady_mib']:>9,} MiB")
    for name in ("imported", "before", "after", "closed"):
        print(f"   {name:<16}{found[f'{name}_mib']}")
    print(f"   RocksDB after filling: {found['rocksdb_after_fill_mib']}")
    print(f"   RocksDB at the end:    {found['rocksdb_after_steady_mib']}")
    verdict = "met" if peak < _MEMORY_TARGET_MIB else "MISSED"
    print(f"   peak {peak:,} MiB, target {_MEMORY_TARGET_MIB:,}: {verdict}")
