"""Users whose events go on, and a store that times its reads: what the benchmarks of windows share."""

from __future__ import annotations

import time
from collections.abc import Sequence  # noqa: TC003 - a dataclass resolves it
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stream.events.fields import MS_PER_DAY
from stream.features.windows.arrays import OUT_SIZE, SCORED
from stream.features.windows.events import HistoryConfig, HistoryEvents, HistoryResult
from stream.features.windows.history import advance

if TYPE_CHECKING:
    import numpy.typing as npt

    from benchmarks.local_store import LocalStore
    from stream.features.windows.cache import HistoryCache


MONTH_MS: Final = 30 * MS_PER_DAY

START_MS: Final = 1_700_000_000_000

SOURCE: Final = 7

LATENESS_MS: Final = 3 * MS_PER_DAY

CONFIG: Final = HistoryConfig(LATENESS_MS)

MANY: Final = 5_000

PARTITIONS: Final = 4


@dataclass(slots=True)
class Timed:
    """Reads a partition and adds up how long that takes."""

    store: LocalStore
    partition: int = 0
    seconds: float = 0.0

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the value of each key, None where there is none."""
        begun = time.perf_counter()
        values = self.store.read(self.partition, keys)
        self.seconds += time.perf_counter() - begun
        return values


@dataclass(frozen=True, slots=True)
class Names:
    """The user ids of one partition, made when asked for: a million of them would weigh 60 MiB."""

    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> bytes:
        return b"user-%07d" % (self.first + PARTITIONS * index)


@dataclass(slots=True)
class Users:
    """Users whose events go on, each in order of time, ``gap_ms`` apart on average."""

    names: list[bytes] | Names
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
            source=np.full(len(indexes), SOURCE),
        )


def _scattered(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return 64-bit identities for small numbers, never 0."""
    with np.errstate(over="ignore"):
        mixed: npt.NDArray[np.int64] = (numbers + 1) * np.int64(0x1E3779B97F4A7C15)
    return mixed ^ (mixed >> 31)


def take_events(events: HistoryEvents, reader: Any, cache: HistoryCache | None = None) -> HistoryResult:
    """Return what a batch gives; every made-up event must be scored."""
    features = np.empty((len(events.user), OUT_SIZE))
    result = advance(events, CONFIG, reader, features, cache=cache)
    if result.errors or (result.outcome != SCORED).any():
        msg = f"a made-up event was not scored: {result.errors or np.bincount(result.outcome)}"
        raise RuntimeError(msg)
    return result
