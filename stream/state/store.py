"""store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["MemoryStore", "PartitionedReader", "StateReader"]


class StateReader(Protocol):
    """Where records are read from; all keys of one call belong to the same partition."""

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the value of each key, None where there is none."""
        ...


class MemoryStore(dict[bytes, bytes]):
    """Records in a dictionary, where there is no database."""

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None where there is none."""
        return [self.get(key) for key in keys]

    def write(self, writes: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Store what a batch writes; None deletes."""
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
        For each partition, the place behind its last user: a batch's users come partition by partition.
    """

    def __init__(self, readers: Sequence[StateReader], ends: Sequence[int]) -> None:
        self._readers = readers
        self._ends = np.array(ends, np.int64)

    def part_of(self, owners: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the partition of each user, as the place of its reader."""
        return np.searchsorted(self._ends, owners, side="right")

    def read(self, keys: Sequence[bytes], owners: npt.NDArray[np.int64]) -> Sequence[bytes | None]:
        """Return the value of each key; ``owners`` says whose it is, by the users' places."""
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
