"""The cost of exact windows: ``python -m benchmarks.windows [--quick] [--memory] [--json FILE]``.

1. *Flat cost*: time per event by the length of a user's history: state read from RocksDB, engine and
   kernel, state written to RocksDB, with the options of the worker's store, without decoding, scoring and
   Kafka.
2. *Bytes written per event*, once to RocksDB and once to the changelog.
3. *Offline rate*: the training path, events per second on one core.
4. *Memory* (``--memory``, alone): the resident memory of a process with a million users.

Each result of 1 and 3 is the median over rounds; within a round every case runs once, one after the other, so
that other load on the machine affects all cases equally. A warm-up round is discarded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence  # noqa: TC003 - a dataclass resolves it
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import psutil

from benchmarks.environment import describe, environment
from benchmarks.local_store import LocalStore
from offline.data.table import TransactionTable
from offline.features.build import build_features, fit_spec
from stream.events.fields import MS_PER_DAY
from stream.features.windows import records as layout
from stream.features.windows.arrays import CHUNK, OUT_SIZE, SCORED, SEGMENT
from stream.features.windows.cache import HistoryCache
from stream.features.windows.events import HistoryConfig, HistoryEvents, HistoryResult
from stream.features.windows.history import advance
from stream.settings import HistorySettings, RocksDBSettings
from stream.state.store import MemoryStore

if TYPE_CHECKING:
    import numpy.typing as npt

_MONTH_MS: Final = 30 * MS_PER_DAY
_START_MS: Final = 1_700_000_000_000
_SOURCE: Final = 7
_LATENESS_MS: Final = 3 * MS_PER_DAY
_CONFIG: Final = HistoryConfig(_LATENESS_MS)

_LENGTHS: Final = (10, 100, 1_000, 10_000, 50_000)
_FEW: Final = 20
_MANY: Final = 5_000
_BATCHES: Final = (1, 500)
#: Users of one case; fewer where their histories would not fit the disk cache.
_USERS: Final = 400
_USER_EVENTS: Final = 4_000_000
#: Copies of a grown user begin at these many places, so that they do not all seal at once.
_PHASES: Final = 8
#: Events between two of them: an eighth of a segment, and four events on in the head.
_PHASE_EVENTS: Final = 132
#: Two times all chunks of a segment: its record grows until it is full.
_CYCLE_EVENTS: Final = 2 * SEGMENT * CHUNK
_PARTITIONS: Final = 4

#: What is promised.
_FLAT_TARGET: Final = 3.0
_FLAT_LENGTH: Final = 10_000
_BYTES_TARGET: Final = 2_500
_OFFLINE_TARGET: Final = 500_000
_MEMORY_TARGET_MIB: Final = 1_536


@dataclass(slots=True)
class _Timed:
    """Reads a partition and adds up how long that takes."""

    store: LocalStore
    partition: int = 0
    seconds: float = 0.0

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        begun = time.perf_counter()
        values = self.store.read(self.partition, keys)
        self.seconds += time.perf_counter() - begun
        return values


@dataclass(frozen=True, slots=True)
class _Names:
    """The user ids of one partition, made when asked for: a million of them would weigh 60 MiB."""

    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> bytes:
        return b"user-%07d" % (self.first + _PARTITIONS * index)


@dataclass(slots=True)
class _Users:
    """Users whose events go on, each in order of time, ``gap_ms`` apart on average."""

    names: list[bytes] | _Names
    clock_ms: npt.NDArray[np.int64]
    gap_ms: int
    merchants: int
    random: np.random.Generator
    offset: int = 0

    def events(self, chosen: npt.NDArray[np.int64]) -> HistoryEvents:
        """Return the next event of each chosen user, one who is chosen twice having two."""
        count = len(chosen)
        gaps = 1 + self.random.exponential(self.gap_ms, count).astype(np.int64)
        times = np.empty(count, np.int64)
        for index, user in enumerate(chosen.tolist()):
            self.clock_ms[user] += gaps[index]
            times[index] = self.clock_ms[user]
        indexes, user = np.unique(chosen, return_inverse=True)
        first, self.offset = self.offset, self.offset + count
        return HistoryEvents(
            users=[self.names[position] for position in indexes.tolist()],
            user=user.astype(np.int64),
            time_ms=times,
            amount_minor=np.maximum(self.random.lognormal(8.0, 1.2, count), 1.0).astype(np.int64),
            merchant=_scattered(self.random.integers(self.merchants, size=count)),
            id_hash=self.random.integers(1, 2**63 - 1, count),
            minor_units=np.full(count, 100, np.int64),
            offset=np.arange(first, first + count),
            source=np.full(len(indexes), _SOURCE),
        )


def _scattered(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return 64-bit identities for small numbers, never 0."""
    with np.errstate(over="ignore"):
        mixed: npt.NDArray[np.int64] = (numbers + 1) * np.int64(0x1E3779B97F4A7C15)
    return mixed ^ (mixed >> 31)


def _take(events: HistoryEvents, reader: Any, cache: HistoryCache | None = None) -> HistoryResult:
    features = np.empty((len(events.user), OUT_SIZE))
    result = advance(events, _CONFIG, reader, features, cache=cache)
    if result.errors or (result.outcome != SCORED).any():
        msg = f"a generated event was not scored: {result.errors or np.bincount(result.outcome)}"
        raise RuntimeError(msg)
    return result


@dataclass(frozen=True, slots=True)
class _Phase:
    """A user's state at one place of the cycle of chunks."""

    records: dict[bytes, bytes]
    clock_ms: int
    offset: int


def _grow(length: int, merchants: int, phases: int = _PHASES) -> list[_Phase]:
    """Return one user's states with ``length`` events in 30 days (and what the lateness keeps beside)."""
    users = _Users(
        [b"grown"],
        np.array([_START_MS]),
        _MONTH_MS // length,
        merchants,
        np.random.default_rng(length + merchants),
    )
    memory = MemoryStore()

    def go_on(count: int) -> None:
        for begin in range(0, count, 512):
            chosen = np.zeros(min(512, count - begin), np.int64)
            memory.write(_take(users.events(chosen), memory).writes)

    go_on(length * 12 // 10 + CHUNK)
    found = []
    for _ in range(phases):
        go_on(_PHASE_EVENTS)
        found.append(_Phase(dict(memory), int(users.clock_ms[0]), users.offset))
    return found


def _suffixes(phase: _Phase) -> list[tuple[bytes, bytes]]:
    return [(key[len(b"grown") :], value) for key, value in phase.records.items()]


# --- 1. Flat cost ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Case:
    """Users of one history length and merchant variety, in a database of their own."""

    length: int
    merchants: int
    store: LocalStore
    users: _Users
    cache: HistoryCache


def _open_case(folder: Path, length: int, merchants: int) -> _Case:
    store = LocalStore(folder / f"{length}-{merchants}", RocksDBSettings())
    phases = _grow(length, merchants)
    records = [_suffixes(phase) for phase in phases]
    count = min(_USERS, _USER_EVENTS // length)
    names = [f"user-{number:06d}".encode() for number in range(count)]
    clock = np.empty(count, np.int64)
    for number, name in enumerate(names):
        phase = number % _PHASES
        clock[number] = phases[phase].clock_ms
        store.write(0, [(name + suffix, value) for suffix, value in records[phase]], -1)
    database = store.database(0)
    database.flush()
    database.compact_range(None, None)
    random = np.random.default_rng(length)
    offset = max(phase.offset for phase in phases)
    return _Case(
        length,
        merchants,
        store,
        _Users(names, clock, _MONTH_MS // length, merchants, random, offset),
        HistoryCache(HistorySettings().cache_mib << 20),
    )


def _flat_round(case: _Case, batch: int, batches: int) -> dict[str, float]:
    """Return microseconds per event of one round, whole and by part, and the users in a batch."""
    users = case.users
    work = [
        users.events(users.random.integers(len(users.names), size=batch).astype(np.int64))
        for _ in range(batches)
    ]
    reader = _Timed(case.store)
    advancing = writing = 0.0
    for events in work:
        begun = time.perf_counter()
        result = _take(events, reader, case.cache)
        done = time.perf_counter()
        case.store.write(0, result.writes, events.offset[-1])
        writing += time.perf_counter() - done
        advancing += done - begun
    scale = 1e6 / (batch * batches)
    return {
        "total": (advancing + writing) * scale,
        "read": reader.seconds * scale,
        "engine": (advancing - reader.seconds) * scale,
        "write": writing * scale,
        "users": sum(len(events.users) for events in work) / batches,
    }


def flat_cost(folder: Path, rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    """Measure the time per event by the history's length."""
    lengths = _LENGTHS[:4] if quick else _LENGTHS
    cases = [_open_case(folder, length, merchants) for merchants in (_FEW, _MANY) for length in lengths]
    found: dict[tuple[int, int, int], list[dict[str, float]]] = {}
    for number in range(rounds + 1):
        for batch in _BATCHES:
            batches = (100 if quick else 300) if batch == 1 else (2 if quick else 6)
            for case in cases:
                item = _flat_round(case, batch, batches)
                if number:
                    found.setdefault((batch, case.merchants, case.length), []).append(item)
    for case in cases:
        case.store.close()
    rows = []
    for (batch, merchants, length), measured in found.items():
        base = found[batch, merchants, lengths[0]]
        middle = {part: statistics.median(item[part] for item in measured) for part in measured[0]}
        ratios = [item["total"] / other["total"] for item, other in zip(measured, base, strict=True)]
        rows.append(
            {
                "batch": batch,
                "merchants": merchants,
                "length": length,
                "microseconds": round(middle["total"], 2),
                "lowest": round(min(item["total"] for item in measured), 2),
                "highest": round(max(item["total"] for item in measured), 2),
                "ratio": round(statistics.median(ratios), 2),
                "read_microseconds": round(middle["read"], 2),
                "engine_microseconds": round(middle["engine"], 2),
                "write_microseconds": round(middle["write"], 2),
                "users_per_batch": round(middle["users"]),
            }
        )
    return rows


def _print_flat(rows: list[dict[str, Any]]) -> None:
    print("\n1. Time per event: RocksDB read, engine and kernel, RocksDB write")
    print("   ratio: to the shortest history with the same batch and merchants; median over rounds\n")
    print(
        f"{'batch':>6}{'users':>7}{'merchants':>11}{'events/30d':>12}{'us/event':>11}"
        f"{'(low - high)':>20}{'ratio':>8}{'read':>7}{'engine':>8}{'write':>7}"
    )
    for row in rows:
        total = row["read_microseconds"] + row["engine_microseconds"] + row["write_microseconds"]
        shares = [row[f"{part}_microseconds"] / total for part in ("read", "engine", "write")]
        span = f"({row['lowest']:.1f} - {row['highest']:.1f})"
        print(
            f"{row['batch']:>6}{row['users_per_batch']:>7}{row['merchants']:>11,}{row['length']:>12,}"
            f"{row['microseconds']:>11.1f}{span:>20}{row['ratio']:>8.2f}"
            f"{shares[0]:>7.0%}{shares[1]:>8.0%}{shares[2]:>7.0%}"
        )
    for batch in _BATCHES:
        ratios = [row["ratio"] for row in rows if (row["batch"], row["length"]) == (batch, _FLAT_LENGTH)]
        verdict = "met" if max(ratios) <= _FLAT_TARGET else "MISSED"
        print(
            f"   {_FLAT_LENGTH:,} : {_LENGTHS[0]} in batches of {batch}: {max(ratios):.2f}, "
            f"target {_FLAT_TARGET:.0f}: {verdict}"
        )


# --- 2. Bytes written ------------------------------------------------------------------------------------


def bytes_written(*, quick: bool) -> list[dict[str, Any]]:
    """Measure the bytes of keys and values that each event changes, one event a batch: the worst case."""
    rows = []
    for merchants in (_FEW, _MANY):
        for length in _LENGTHS[:4] if quick else _LENGTHS:
            [phase] = _grow(length, merchants, phases=1)
            memory = MemoryStore(phase.records)
            users = _Users(
                [b"grown"],
                np.array([phase.clock_ms]),
                _MONTH_MS // length,
                merchants,
                np.random.default_rng(length),
                phase.offset,
            )
            sizes, counts = [], []
            for _ in range(_CYCLE_EVENTS):
                writes = _take(users.events(np.zeros(1, np.int64)), memory).writes
                memory.write(writes)
                sizes.append(sum(len(key) + len(value or b"") for key, value in writes))
                counts.append(len(writes))
            rows.append(
                {
                    "merchants": merchants,
                    "length": length,
                    "mean_bytes": round(statistics.fmean(sizes)),
                    "p99_bytes": round(float(np.percentile(sizes, 99))),
                    "highest_bytes": max(sizes),
                    "records": round(statistics.fmean(counts), 3),
                    "state_bytes": sum(len(key) + len(value) for key, value in memory.items()),
                }
            )
    return rows


def _print_bytes(rows: list[dict[str, Any]]) -> None:
    print("\n2. Bytes written per event (keys and values), once to RocksDB and once to the changelog")
    print(f"   one event a batch, over {_CYCLE_EVENTS:,} events of one user: two cycles of segments\n")
    print(
        f"{'merchants':>11}{'events/30d':>12}{'mean':>9}{'p99':>9}{'highest':>9}{'records':>9}{'state':>12}"
    )
    for row in rows:
        print(
            f"{row['merchants']:>11,}{row['length']:>12,}{row['mean_bytes']:>9,}{row['p99_bytes']:>9,}"
            f"{row['highest_bytes']:>9,}{row['records']:>9.3f}{row['state_bytes']:>12,}"
        )
    worst = max(row["mean_bytes"] for row in rows)
    verdict = "met" if worst <= _BYTES_TARGET else "MISSED"
    print(f"   highest mean {worst:,} bytes, target {_BYTES_TARGET:,}: {verdict}")


# --- 3. Offline rate -------------------------------------------------------------------------------------


def _table(users: int, events: int) -> TransactionTable:
    """Return sorted transactions of ``users``, each with ``events`` in 30 days."""
    random = np.random.default_rng(events)
    count = users * events
    user = random.integers(users, size=count)
    amount = np.maximum(random.lognormal(8.0, 1.2, count), 1.0).astype(np.int64)
    none = np.full(count, np.iinfo(np.int64).min)

    def texts(values: list[str]) -> npt.NDArray[np.object_]:
        return np.array(values, np.object_)

    return TransactionTable(
        transaction_id=texts([f"transaction-{row:09d}" for row in range(count)]),
        user_id=texts([f"user-{number:07d}" for number in user.tolist()]),
        channel=texts(["card"] * count),
        transaction_type=texts(["purchase"] * count),
        currency=texts(["EUR"] * count),
        event_time_ms=np.sort(_START_MS + random.integers(_MONTH_MS, size=count)),
        amount_minor=amount,
        minor_units=np.full(count, 100, np.int64),
        pre_balance_minor=none,
        post_balance_minor=none,
        merchant_id=texts([f"merchant-{number}" for number in random.integers(_MANY, size=count).tolist()]),
    )


def offline_rate(rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    """Measure ``build_features``: identities, kernel and vectors, from columns in memory to a matrix.

    In processor time: it is one thread, and what others do on the machine is not its rate.
    """
    count = 60_000 if quick else 600_000
    tables = {events: _table(count // events, events) for events in (30, 300)}
    found: dict[int, list[float]] = {events: [] for events in tables}
    for number in range(rounds + 1):
        for events, table in tables.items():
            spec = fit_spec(table, np.ones(len(table), np.bool_))
            begun = time.process_time()
            build_features(table, spec, allowed_lateness_ms=_LATENESS_MS)
            if number:
                found[events].append(len(table) / (time.process_time() - begun))
    return [
        {
            "events_per_user": events,
            "events": len(tables[events]),
            "events_per_second": round(statistics.median(rates)),
            "lowest": round(min(rates)),
            "highest": round(max(rates)),
        }
        for events, rates in found.items()
    ]


def _print_offline(rows: list[dict[str, Any]]) -> None:
    print("\n3. Offline: build_features over sorted history, events per second of CPU time\n")
    print(f"{'events/user':>12}{'events':>10}{'events/s':>12}{'(low - high)':>24}{'target':>10}")
    for row in rows:
        span = f"({row['lowest']:,} - {row['highest']:,})"
        verdict = "met" if row["events_per_second"] >= _OFFLINE_TARGET else "MISSED"
        print(
            f"{row['events_per_user']:>12}{row['events']:>10,}{row['events_per_second']:>12,}{span:>24}"
            f"{verdict:>10}"
        )


# --- 4. Memory -------------------------------------------------------------------------------------------


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
    databases = [store.database(partition) for partition in range(_PARTITIONS)]

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
    names = [_Names(partition, len(range(partition, users, _PARTITIONS))) for partition in range(_PARTITIONS)]
    parts = [_Users(own, np.full(len(own), _START_MS), MS_PER_DAY, _MANY, random) for own in names]
    warm = MemoryStore()
    everything = _Users([b"warm"], np.array([_START_MS]), MS_PER_DAY, _MANY, random)
    for _ in range(3):
        warm.write(_take(everything.events(np.zeros(3 * CHUNK, np.int64)), warm).writes)
    time.sleep(0.2)
    before = _status()
    watch.phase = "fill"
    begun = time.perf_counter()
    for partition, part in enumerate(parts):
        for first in range(0, len(part.names), 1000):
            chosen = np.repeat(np.arange(first, min(first + 1000, len(part.names))), 30)
            result = _take(part.events(chosen), _Timed(store, partition))
            store.write(partition, result.writes, part.offset)
    filled = _rocksdb_mib(store)
    filling = time.perf_counter() - begun
    watch.phase = "steady"
    events = 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < steady_seconds:
        for partition, part in enumerate(parts):
            chosen = random.integers(len(part.names), size=500)
            result = _take(part.events(chosen), _Timed(store, partition))
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


def _print_memory(found: dict[str, Any]) -> None:
    settings = RocksDBSettings()
    peak = max(found["peak_mib"].values())
    print(f"\n4. Memory with {found['users']:,} users of 30 events each, {_PARTITIONS} partitions")
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


def main() -> None:
    """Measure, print, and optionally write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.windows", description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results as JSON")
    parser.add_argument(
        "--quick", action="store_true", help="fewer and shorter rounds: a first impression, not a result"
    )
    parser.add_argument(
        "--memory", action="store_true", help="measure only the memory of a million users (minutes)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of measured rounds (default 5)")
    parser.add_argument(
        "--memory-child", nargs=3, metavar=("FOLDER", "USERS", "SECONDS"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.memory_child:
        child, users, seconds = options.memory_child
        print(json.dumps(memory_child(Path(child), int(users), float(seconds))))
        return
    found: dict[str, Any] = {"environment": environment(), "quick": options.quick}
    print("\n".join(describe(found["environment"])))
    folder = Path(tempfile.mkdtemp(prefix="riskstream-windows-"))
    try:
        if options.memory:
            found["memory"] = memory(folder, quick=options.quick)
            _print_memory(found["memory"])
        else:
            found["rounds"] = options.rounds
            found["flat_cost"] = flat_cost(folder, options.rounds, quick=options.quick)
            _print_flat(found["flat_cost"])
            found["bytes_written"] = bytes_written(quick=options.quick)
            _print_bytes(found["bytes_written"])
            found["offline_rate"] = offline_rate(options.rounds, quick=options.quick)
            _print_offline(found["offline_rate"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
