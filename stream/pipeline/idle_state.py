"""State of users and entities that have not come for longer than their time to live.

A worker looks through each partition's state a few records at a time, and deletes what is idle: with its next
micro-batch, so that the deletion is in the changelog like any other change. Deleting changes no feature:

- the history of a user who comes back after the time to live begins anew in any case (:func:`.step`);
- no profile reaches behind an entity's log by more than its horizon, and no time to live is shorter.

Two things are forgotten with the history: the ids by which copies of its transactions are recognised, and its
position in the source. So nothing is deleted before the partition's clock is ahead by the allowed lateness
too, and before the offset of the last transaction was committed. The clock of a partition is the latest event
time among its transactions.

No I/O, no clock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from stream.errors import NewerFormatError, StateError
from stream.features.profiles.cache import stored_log
from stream.features.profiles.log import HEAD_KIND as LOG_KIND
from stream.features.windows.records import HEAD_KIND as HISTORY_KIND
from stream.features.windows.records import stored_history
from stream.pipeline.entity_join.messages import CODES
from stream.state.format import is_of_entity, user_of_key

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from stream.state.store import StateReader

__all__ = ["KINDS", "SLICE_RECORDS", "Forgotten", "IdleState"]

#: Names of the kinds of entity, by code.
KINDS: Final = {code: name for name, code in CODES.items()}

_USER: Final = CODES["user"]

#: Records of a slice: reading them takes about a millisecond.
SLICE_RECORDS: Final = 1_000

#: Pause between two slices of a partition.
_PAUSE_SECONDS: Final = 1.0


@dataclass(slots=True)
class _Partition:
    """A partition's source and clock, where the search goes on, and when its last slice was read."""

    source: int
    newest_ms: int
    key: bytes = b""
    seconds: float = float("-inf")


@dataclass(slots=True)
class Forgotten:
    """What to delete: the records' keys, the prefixes they belong to, and how many there are of each kind."""

    writes: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    prefixes: list[bytes] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


class IdleState:
    """Finds idle state in slices of a partition's records.

    Parameters
    ----------
    ttl_ms
        Time to live by the code of the kind of entity; a kind without one lives for ever.
    lateness_ms
        The allowed lateness.
    """

    def __init__(self, ttl_ms: Mapping[int, int], lateness_ms: int) -> None:
        self._ttl_ms = dict(ttl_ms)
        self._lateness_ms = lateness_ms
        self._partitions: dict[int, _Partition] = {}

    def on_rebalanced(self) -> None:
        """Forget the positions in all partitions."""
        self._partitions.clear()

    def see(self, partition: int, source: int, newest_ms: int) -> None:
        """Take note of a partition's transactions: of their source, and their latest event time."""
        known = self._partitions.get(partition)
        if known is None or known.source != source:
            known = self._partitions[partition] = _Partition(source, newest_ms)
        known.newest_ms = max(known.newest_ms, newest_ms)

    def start(self, partition: int, now_seconds: float) -> bytes | None:
        """Return the key from which to read the next slice; None if it is too early."""
        known = self._partitions.get(partition)
        if known is None or not self._ttl_ms or now_seconds - known.seconds < _PAUSE_SECONDS:
            return None
        known.seconds = now_seconds
        return known.key

    def forget(
        self,
        partition: int,
        records: Sequence[tuple[bytes, bytes]],
        reader: StateReader,
        busy: Collection[bytes],
        committed: int | None,
    ) -> Forgotten:
        """Return what to delete of a slice.

        Parameters
        ----------
        records
            Keys and values as stored, in the order of the keys.
        reader
            Reads the partition's state with what is not stored yet.
        busy
            Prefixes of the keys that the micro-batch writes.
        committed
            The offset from which the partition's transactions would be consumed again; None if unknown.
        """
        found = Forgotten()
        known = self._partitions[partition]
        known.key = records[-1][0] + b"\0" if len(records) >= SLICE_RECORDS else b""
        idle: list[tuple[bytes, bytes, bytes, list[bytes], str]] = []
        for key, value in records:
            prefix, kind, _ = user_of_key(key) if len(key) > _SUFFIX_BYTES else (b"", "", 0)
            code = prefix[1] if is_of_entity(prefix) and len(prefix) > 1 else _USER
            ttl_ms = self._ttl_ms.get(code)
            if ttl_ms is None or kind not in _HEADS or prefix in busy:
                continue
            keys = self._idle(key, value, known, ttl_ms, committed)
            if keys is not None:
                counted = "" if kind == chr(LOG_KIND) and code == _USER else KINDS.get(code, "other")
                idle.append((key, value, prefix, keys, counted))
        current = reader.read([key for key, *_ in idle])
        for (key, value, prefix, keys, counted), now in zip(idle, current, strict=True):
            if now != value:
                continue  # a micro-batch that is not stored yet has changed it
            found.writes += [(name, None) for name in [*keys, key]]
            found.prefixes.append(prefix)
            if counted:  # a user's log is counted with the history
                found.kinds[counted] += 1
        return found

    def _idle(
        self, key: bytes, value: bytes, known: _Partition, ttl_ms: int, committed: int | None
    ) -> list[bytes] | None:
        """Return the keys of the other records that belong to an idle head; None if it is not idle."""
        try:
            if key[-_SUFFIX_BYTES + 1] == HISTORY_KIND:
                history = stored_history(value, key)
                newest_ms, keys = history.newest_ms, history.keys
                if history.source == known.source and (committed is None or history.offset >= committed):
                    return None
            else:
                newest_ms, keys = stored_log(value, key)
        except (StateError, NewerFormatError):
            return None
        return keys if newest_ms + ttl_ms + self._lateness_ms < known.newest_ms else None


#: Bytes behind the prefix of a key.
_SUFFIX_BYTES: Final = 6

_HEADS: Final = {chr(HISTORY_KIND), chr(LOG_KIND)}
