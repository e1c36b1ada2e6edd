"""The cost of exact windows: ``python -m benchmarks.windows [--quick] [--memory] [--json FILE]``.

1. *Flat cost*: time per event by the length of a user's history: state read from RocksDB, engine and
   kernel, state written to RocksDB, with the options of the worker's store. Decoding, scoring and Kafka
   are not in it.
2. *Bytes written per event*, once to RocksDB and once to the changelog.
3. *Offline rate*: the training path, events per second on one core.
4. *Order*: time per event of a busy user, of whose events some are late by milliseconds or a minute.
5. *Memory* (``--memory``, alone): the resident memory of a process that holds a million users.

Each figure of 1, 3 and 4 is the median over rounds; within a round every case runs once, one after the
other, so that whatever else the machine does hits all of them alike. A first round is thrown away.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.environment import describe, environment
from benchmarks.local_store import LocalStore
from benchmarks.windows_memory import memory, memory_child, print_memory
from benchmarks.windows_order import order_cost, print_order
from benchmarks.windows_users import LATENESS_MS, MANY, MONTH_MS, START_MS, Timed, Users, take_events
from offline.data.table import TransactionTable
from offline.features.build import build_features, fit_spec
from stream.features.windows.arrays import CHUNK, SEGMENT
from stream.features.windows.cache import HistoryCache
from stream.settings import HistorySettings, RocksDBSettings
from stream.state.store import MemoryStore

if TYPE_CHECKING:
    import numpy.typing as npt


_LENGTHS: Final = (10, 100, 1_000, 10_000, 50_000)

_FEW: Final = 20

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

#: What is promised.
_FLAT_TARGET: Final = 3.0

_FLAT_LENGTH: Final = 10_000

_BYTES_TARGET: Final = 2_500

_OFFLINE_TARGET: Final = 500_000


@dataclass(frozen=True, slots=True)
class _Phase:
    """A user's state at one place of the cycle of chunks."""

    records: dict[bytes, bytes]
    clock_ms: int
    offset: int


def _grow(length: int, merchants: int, phases: int = _PHASES) -> list[_Phase]:
    """Return one user's states with ``length`` events in 30 days (and what the lateness keeps beside)."""
    users = Users(
        [b"grown"],
        np.array([START_MS]),
        MONTH_MS // length,
        merchants,
        np.random.default_rng(length + merchants),
    )
    memory = MemoryStore()

    def go_on(count: int) -> None:
        for begin in range(0, count, 512):
            chosen = np.zeros(min(512, count - begin), np.int64)
            memory.write(take_events(users.events(chosen), memory).writes)

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
    users: Users
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
        Users(names, clock, MONTH_MS // length, merchants, random, offset),
        HistoryCache(HistorySettings().cache_mib << 20),
    )


def _flat_round(case: _Case, batch: int, batches: int) -> dict[str, float]:
    """Return microseconds per event of one round, whole and by part, and the users in a batch."""
    users = case.users
    work = [
        users.events(users.random.integers(len(users.names), size=batch).astype(np.int64))
        for _ in range(batches)
    ]
    reader = Timed(case.store)
    advancing = writing = 0.0
    for events in work:
        begun = time.perf_counter()
        result = take_events(events, reader, case.cache)
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
    cases = [_open_case(folder, length, merchants) for merchants in (_FEW, MANY) for length in lengths]
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
    for merchants in (_FEW, MANY):
        for length in _LENGTHS[:4] if quick else _LENGTHS:
            [phase] = _grow(length, merchants, phases=1)
            memory = MemoryStore(phase.records)
            users = Users(
                [b"grown"],
                np.array([phase.clock_ms]),
                MONTH_MS // length,
                merchants,
                np.random.default_rng(length),
                phase.offset,
            )
            sizes, counts = [], []
            for _ in range(_CYCLE_EVENTS):
                writes = take_events(users.events(np.zeros(1, np.int64)), memory).writes
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
        event_time_ms=np.sort(START_MS + random.integers(MONTH_MS, size=count)),
        amount_minor=amount,
        minor_units=np.full(count, 100, np.int64),
        pre_balance_minor=none,
        post_balance_minor=none,
        merchant_id=texts([f"merchant-{number}" for number in random.integers(MANY, size=count).tolist()]),
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
            build_features(table, spec, allowed_lateness_ms=LATENESS_MS)
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


def main() -> None:
    """Measure, print, and write JSON where asked to."""
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
            print_memory(found["memory"])
        else:
            found["rounds"] = options.rounds
            found["flat_cost"] = flat_cost(folder, options.rounds, quick=options.quick)
            _print_flat(found["flat_cost"])
            found["bytes_written"] = bytes_written(quick=options.quick)
            _print_bytes(found["bytes_written"])
            found["offline_rate"] = offline_rate(options.rounds, quick=options.quick)
            _print_offline(found["offline_rate"])
            found["order_cost"] = order_cost(options.rounds, quick=options.quick)
            print_order(found["order_cost"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
