"""The history engine over records in memory, and events as the oracle knows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from stream.features.spec import HISTORY_FEATURES
from stream.features.windows.arrays import DUPLICATE, LATE, OUT_SIZE, REPLAYED, SCORED
from stream.features.windows.events import MAX_CHUNKS, HistoryConfig, HistoryEvents, HistoryResult
from stream.features.windows.history import advance
from stream.state.format import user_of_key
from stream.state.hashing import hash_ids
from stream.state.store import MemoryStore
from support.oracle import DAY, WINDOWS, Event, User, same

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from stream.features.windows.cache import HistoryCache

__all__ = [
    "DAY",
    "HOUR",
    "OUTCOMES",
    "WINDOWS",
    "Engine",
    "Event",
    "Memory",
    "Taken",
    "User",
    "disagreements",
    "same",
]

HOUR = 3_600_000
OUTCOMES = {
    SCORED: "scored",
    LATE: "late",
    DUPLICATE: "duplicate",
    REPLAYED: "replayed",
}

#: One user's event: the user's name, and what happened.
Taken = tuple[str, Event]


class Memory(MemoryStore):
    """A record store that is a dictionary, and knows which keys were read."""

    def __init__(self, records: dict[bytes, bytes] | None = None) -> None:
        super().__init__(records or {})
        self.read_keys: list[bytes] = []

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.read_keys += keys
        return super().read(keys)

    def numbers(self, user: str, kind: str) -> list[int]:
        """Return the numbers of a user's records of one kind."""
        named = map(user_of_key, self)
        return sorted(number for owner, found, number in named if (owner, found) == (user.encode(), kind))


@dataclass
class Engine:
    """Takes batches as a worker does: consecutive offsets of one source, writes applied after each batch."""

    lateness: int = 3 * DAY
    source: int = 77
    memory: Memory = field(default_factory=Memory)
    cache: HistoryCache | None = None
    next_offset: int = 0
    ttl: int = 0
    max_chunks: int = MAX_CHUNKS

    def events(self, taken: Sequence[Taken], offset: int) -> HistoryEvents:
        users = list(dict.fromkeys(user for user, _ in taken))

        def column(values: Iterable[int]) -> npt.NDArray[np.int64]:
            return np.fromiter(values, np.int64, len(taken))

        return HistoryEvents(
            users=[user.encode() for user in users],
            user=column(users.index(user) for user, _ in taken),
            time_ms=column(event.time for _, event in taken),
            amount_minor=column(event.amount for _, event in taken),
            merchant=hash_ids(event.merchant for _, event in taken),
            id_hash=hash_ids(event.transaction_id for _, event in taken),
            minor_units=column(event.units for _, event in taken),
            offset=np.arange(offset, offset + len(taken)),
            source=np.full(len(users), self.source),
        )

    def decide(
        self, taken: Sequence[Taken], offset: int, *, learn: bool = True
    ) -> tuple[HistoryResult, npt.NDArray[np.float64]]:
        """Return what a batch at ``offset`` gives; stores nothing."""
        features = np.full((len(taken), OUT_SIZE), -99.0)
        result = advance(
            self.events(taken, offset),
            HistoryConfig(self.lateness, self.ttl, self.max_chunks),
            self.memory,
            features,
            learn=learn,
            cache=self.cache,
        )
        return result, features

    def take(self, taken: Sequence[Taken]) -> tuple[list[str], npt.NDArray[np.float64]]:
        """Take a batch and store what it writes; returns outcomes and features."""
        result, features = self.decide(taken, self.next_offset)
        assert result.errors == {}
        self.memory.write(result.writes)
        self.next_offset += len(taken)
        return [OUTCOMES[code] for code in result.outcome.tolist()], features


def disagreements(row: npt.NDArray[np.float64], expected: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Return the features that differ in any bit from the oracle's: (found, expected) by name."""
    found = dict(zip(HISTORY_FEATURES, row.tolist(), strict=True))
    assert found.keys() == expected.keys()
    return {name: (found[name], value) for name, value in expected.items() if not same(found[name], value)}
