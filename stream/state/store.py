"""Readers of state records, and a store in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["MemoryStore", "PartitionedReader", "StateReader"]


class StateReader(Protocol):
    """A source of state records; all keys of a call belong to the same partition."""

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the value of each key, None for a missing key."""
        ...


class MemoryStore(dict[bytes, bytes]):
    """Records in a dictionary, where there is no database."""

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None for a missing key."""
        return [self.get(key) for key in keys]

    def write(self, writes: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Store the writes of a batch; None deletes."""
        for key, value in writes:
            if value is None:
                self.pop(key, None)
            else:
                self[key] = value


class PartitionedReader:
    """The records of several partitions, each with its own reader.

    Parameters
    ----------
    ends
        For each partition, the index behind its last user: a batch's users are ordered by partition.
    """

    def __init__(self, readers: Sequence[StateReader], ends: Sequence[int]) -> None:
        self._readers = readers
        self._ends = np.array(ends, np.int64)

    def part_of(self, owners: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the index of each user's reader, and so of its partition."""
        return np.searchsorted(self._ends, owners, side="right")

    def read(self, keys: Sequence[bytes], owners: npt.NDArray[np.int64]) -> Sequence[bytes | None]:
        """Return the value of each key; ``owners`` is the index of each key's user."""
        if len(self._readers) == 1:
            return self._readers[0].read(keys)
        parts = self.part_of(owners)
        found: list[bytes | None] = [None] * len(keys)
        for part in np.unique(parts).tolist():
            indexes = np.flatnonzero(parts == part).tolist()
            values = self._readers[part].read([keys[index] for index in indexes])
            for index, value in zip(indexes, values, strict=True):
                found[index] = value
        return found
