"""Hostile stored histories, and what must hold of a batch that meets them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from stream.features.windows.arrays import DUPLICATE, LATE, OUT_SIZE, REPLAYED, SCORED
from stream.features.windows.cache import HistoryCache
from stream.features.windows.events import FAILED, HistoryConfig, HistoryEvents
from stream.features.windows.history import advance
from stream.state.format import FORMAT_VERSION, checksum, user_of_key
from support.histories import HOUR, Engine, Event, Memory

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

__all__ = ["Reader", "hostile"]

_START = 1_700_000_000_000
_SOURCE = 77
_CONFIG = HistoryConfig()
#: Events of the histories that are spoilt: within the head, with chunks, with several segments.
_LENGTHS = (1, 31, 33, 70, 200, 1_100)
_WORDS = (
    0, 1, -1, 31, 32, 33, 255, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 32) - 1, -(1 << 31), 1 << 62, -(1 << 62),
    (1 << 63) - 1, -(1 << 63), _START, _START + 400 * HOUR, _START + 10**9,
)  # fmt: skip

#: A user's records by the part of the key behind the user.
Records = dict[bytes, bytes]


@cache
def _histories() -> list[Records]:
    engine = Engine(source=_SOURCE)
    for count in _LENGTHS:
        name = f"u{count}"
        taken = [
            (name, Event(f"{name}-{at}", _START + at * HOUR, 100 + at, f"m{at % 9}")) for at in range(count)
        ]
        for begin in range(0, count, 50):
            engine.take(taken[begin : begin + 50])
    found: list[Records] = []
    for count in _LENGTHS:
        user = f"u{count}".encode()
        found.append({key[-6:]: value for key, value in engine.memory.items() if user_of_key(key)[0] == user})
    return found


def hostile(rng: random.Random) -> Records:
    """Return a history of which one to three records are damaged, missing, or hold what none may hold."""
    records = dict(rng.choice(_histories()))
    for _ in range(rng.randrange(1, 4)):
        if not records:
            break
        # Heads first: everything else is read as they say.
        key = (
            b"\0H\0\0\0\0"
            if rng.random() < 0.5 and b"\0H\0\0\0\0" in records
            else rng.choice(sorted(records))
        )
        kind = rng.randrange(8)
        if kind == 0:
            del records[key]
        elif kind == 1:
            records[key] = rng.choice(list(rng.choice(_histories()).values()))
        elif kind == 2:
            records[key] = _not_newer(_bytes_changed(records[key], rng))
        else:
            records[key] = _words_changed(records[key], rng)
    return records


def _bytes_changed(record: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(5)
    at = rng.randrange(len(record) + 1)
    if kind == 0:
        return record[:at]
    if kind == 1:
        return record + rng.randbytes(rng.choice([1, 8, 64]))
    if kind == 2:
        return rng.randbytes(rng.randrange(400))
    if kind == 3:
        return record[:at] + bytes([rng.randrange(256)]) + record[at + 1 :]
    return bytes([rng.randrange(256)]) + record[1:]  # another version


def _not_newer(record: bytes) -> bytes:
    """Return the record, of no version that is to come: that ends the worker, as it must."""
    newer = range(FORMAT_VERSION + 1, FORMAT_VERSION + 17)
    return b"\xff" + record[1:] if record and record[0] in newer else record


def _words_changed(record: bytes, rng: random.Random) -> bytes:
    """Change words and make the checksum right again, as a defect of the program would."""
    words = np.frombuffer(record[: len(record) // 8 * 8], np.int64).copy()
    if len(words) < 3:
        return record
    for _ in range(rng.choice([1, 1, 2, 5, 40])):
        # The first words say how much there is.
        at = 2 + rng.randrange(min(16, len(words) - 2) if rng.random() < 0.7 else len(words) - 2)
        kind = rng.randrange(4)
        if kind == 0:
            words[at] = rng.choice(_WORDS)
        elif kind == 1:
            words[at] ^= np.int64(1) << np.int64(rng.randrange(63))
        elif kind == 2:
            words[at] = rng.randrange(-(1 << 63), 1 << 63)
        else:
            words[at] ^= rng.choice([1, 3, 32, 63])
    if rng.random() < 0.2:
        words = words[: rng.randrange(3, len(words) + 1)]
    words[1] = checksum(words, 2, len(words))
    return words.tobytes()


class Reader:
    """Takes batches of hostile users among healthy ones, and holds the latter to what they always are."""

    def __init__(self, *, resident: bool) -> None:
        self._cache = HistoryCache(32 << 20) if resident else None
        self._expected: dict[str, np.ndarray] = {}
        self._batch = 0

    def check(self, spoilt: list[Records], rng: random.Random) -> int:
        """Take some events of each; returns how many users were refused."""
        self._batch += 1
        healthy = {f"healthy{count}": records for count, records in zip(_LENGTHS, _histories(), strict=True)}
        users: dict[str, Mapping[bytes, bytes]] = {
            **{f"{self._batch}-{at}": records for at, records in enumerate(spoilt)},
            **{f"{self._batch}-{name}": records for name, records in healthy.items()},
        }
        memory = Memory()
        for name, records in users.items():
            memory |= {name.encode() + suffix: value for suffix, value in records.items()}
        names = list(users)
        events: list[tuple[int, int, int]] = []
        for place, name in enumerate(names):
            if "healthy" in name:
                events.append((place, _START + 1_200 * HOUR, 9_999))
            else:
                for _ in range(rng.choice([1, 2, 3, 40])):
                    time_ms = rng.choice([0, _START, _START + rng.randrange(2_000) * HOUR, 4 * 10**12])
                    events.append((place, time_ms, rng.randrange(5_000)))
        refused = 0
        for round_number in range(2):  # what the first one stores the second one reads
            refused = self._take(names, events, memory, 10_000 * (round_number + 1), first=round_number == 0)
        return refused

    def _take(
        self,
        names: list[str],
        events: list[tuple[int, int, int]],
        memory: Memory,
        offset: int,
        *,
        first: bool,
    ) -> int:
        count = len(events)
        place, time_ms, id_hash = np.ascontiguousarray(np.array(events, np.int64).T)
        batch = HistoryEvents(
            users=[name.encode() for name in names],
            user=place,
            time_ms=time_ms,
            amount_minor=np.full(count, 500, np.int64),
            merchant=id_hash % 7,
            id_hash=id_hash + 1,
            minor_units=np.full(count, 100, np.int64),
            offset=np.arange(offset, offset + count, dtype=np.int64),
            source=np.full(len(names), _SOURCE),
        )
        features = np.zeros((count, OUT_SIZE))
        result = advance(batch, _CONFIG, memory, features, cache=self._cache)
        known = {SCORED, LATE, DUPLICATE, REPLAYED, FAILED}
        assert set(result.outcome.tolist()) <= known
        for user in result.errors:
            assert "healthy" not in names[user], result.errors[user]
            assert set(result.outcome[place == user].tolist()) == {FAILED}
            assert len(str(result.errors[user]).splitlines()) == 1
        for key, value in result.writes:
            name = user_of_key(key)[0].decode()
            assert value is None or len(value) % 8 == 0
            assert names.index(name) not in result.errors
        if first:
            for at in range(count):
                name = names[place[at]]
                if "healthy" in name:
                    expected = self._expected.setdefault(name.partition("-")[2], features[at].copy())
                    assert result.outcome[at] == SCORED
                    np.testing.assert_array_equal(features[at], expected)
        memory.write(result.writes)
        return len(result.errors)
