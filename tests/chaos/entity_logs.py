"""The stored logs of users and entities, in plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stream.features.profiles.cache import EntityLogs
from stream.state.format import entity_prefix
from stream.state.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaos.checker import Findings
    from stream.features.profiles.log import EntityLog
    from support.profile_oracle import Entity, Learnt, Taken


#: The kinds of entities that a user's log knows of each transaction, in its order, and the fields of theirs.
ROUTES = {"merchant": "merchant_id", "card": "card_id", "device": "device_id", "ip": "ip"}


#: Words of a transaction in a log of an entity, and in one of a user.
ENTITY_WIDTH, USER_WIDTH = 6, 4 + len(ROUTES)


class Logs:
    """The stored logs, read once each."""

    def __init__(self, state: dict[int, dict[bytes, bytes]]) -> None:
        self._state = {partition: MemoryStore(records) for partition, records in state.items()}
        self._read: dict[bytes, Log] = {}

    @property
    def prefixes(self) -> set[bytes]:
        """Whose logs there are."""
        return {
            key[:-6]
            for records in self._state.values()
            for key in records
            if key[-6:-5] == b"\0" and key[-5:-4] in {b"P", b"E", b"K"}
        }

    def user(self, partition: int, name: str) -> Log:
        return self._of(partition, name.encode(), USER_WIDTH)

    def entity(self, key: tuple[int, int], partitions: int) -> Log:
        return self._of(key[1] % partitions, entity_prefix(*key), ENTITY_WIDTH)

    def _of(self, partition: int, prefix: bytes, width: int) -> Log:
        if prefix not in self._read:
            records = self._state.get(partition, MemoryStore())
            log = EntityLogs(0, width).of(partition, [prefix], records)[prefix]
            self._read[prefix] = Log.of(log, entity=width == ENTITY_WIDTH)
        return self._read[prefix]


@dataclass(frozen=True, slots=True)
class Log:
    """A stored log in plain numbers."""

    total: int
    newest: int | None
    events: list[tuple[int | float | None, ...]]
    labels: list[tuple[int | float | None, ...]]
    waiting: list[tuple[int, int, int, int]]
    error: str

    @classmethod
    def of(cls, log: EntityLog, *, entity: bool) -> Log:
        events, labels = rows_of(log.events), rows_of(log.labels)
        if entity:
            events = [(*row[:4], usual(float_of(row[4])), row[5]) for row in events]
        return cls(
            log.total,
            log.newest if log.total else None,
            events,
            [(*row[:5], usual(float_of(row[5])), *row[6:8]) for row in labels],
            [(one.id_hash, one.is_fraud, one.when_ms, one.offset) for one in log.waiting],
            "" if log.error is None else str(log.error),
        )

    @property
    def label_names(self) -> set[tuple[int | float | None, ...]]:
        return {row[:3] for row in self.labels}


def rows_of(rows: Any) -> list[tuple[Any, ...]]:
    return list(map(tuple, rows.array[:, rows.first : rows.end].T.tolist()))


def float_of(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))


def usual(value: float) -> float | None:
    """Return a ratio as it can be compared: not-a-number is None."""
    return None if math.isnan(value) else value


def label_row(one: Learnt) -> tuple[int | float | None, ...]:
    taken: Taken = one.taken
    return (
        one.when, one.is_fraud, one.offset, taken.time, taken.amount, usual(taken.to_usual), taken.id_hash,
        taken.number,
    )  # fmt: skip


def compare(
    name: str,
    what: str,
    stored: Sequence[tuple[Any, ...]],
    expected: Sequence[tuple[Any, ...]],
    bounds: tuple[Entity, int],
    log: Log,
    findings: Findings,
) -> None:
    """Compare the rows of one log that no horizon has passed, in their order, and what it counts."""
    entity, horizon = bounds
    if log.error:
        findings.add(f"{name}: {log.error}")
        return
    if entity.newest is None:
        return
    more = log.total - entity.total if what == "transactions" else 0
    if (log.total, log.newest) != (entity.total, entity.newest) and what == "transactions":
        findings.add(
            f"{name}: {log.total} {what} counted until {log.newest}, not {entity.total} until {entity.newest}",
            lost=max(0, -more),
            doubled=max(0, more),
        )
    gone = entity.newest - horizon
    found, kept = [row for row in stored if row[0] > gone], [row for row in expected if row[0] > gone]
    findings.compare_kept(f"{name}: keeps", what, found, kept, counted=not more)
