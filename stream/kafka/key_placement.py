"""Which partitioner explains the partitions of a topic's keys, from a sample of its newest records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stream.kafka.partitioner import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["KeyPlacement", "PartitionKeys", "place_keys"]


@dataclass(slots=True)
class PartitionKeys:
    """How many different keys a partition's sample has, and how many belong there by each partitioner."""

    keys: int = 0
    murmur2: int = 0
    crc32: int = 0


@dataclass(slots=True)
class KeyPlacement:
    """The sampled keys of all partitions; a key of two partitions counts on each.

    Attributes
    ----------
    murmur2, crc32, neither
        Keys that only this partitioner, or none of the two, puts on their partition.
    both
        Keys that both put there, by chance: one in as many as there are partitions.
    split
        Keys with records on several partitions, and these partitions.
    """

    partitions: dict[int, PartitionKeys] = field(default_factory=dict)
    murmur2: int = 0
    crc32: int = 0
    both: int = 0
    neither: int = 0
    split: dict[bytes, list[int]] = field(default_factory=dict)

    @property
    def keys(self) -> int:
        """The number of keys."""
        return self.murmur2 + self.crc32 + self.both + self.neither

    @property
    def users(self) -> int:
        """The number of different keys."""
        return self.keys - sum(len(numbers) - 1 for numbers in self.split.values())


def place_keys(records: Iterable[Any], partitions: int) -> KeyPlacement:
    """Compare the partition of each record's key with the choice of every partitioner.

    Records without a key, or with an empty one, say nothing: librdkafka's default puts them anywhere.
    """
    found = KeyPlacement()
    places: dict[bytes, list[int]] = {}
    for partition, key in sorted({(record.partition, record.key) for record in records if record.key}):
        places.setdefault(key, []).append(partition)
        by_murmur2 = partition_of(key, partitions, "murmur2") == partition
        by_crc32 = partition_of(key, partitions, "crc32") == partition
        here = found.partitions.setdefault(partition, PartitionKeys())
        here.keys += 1
        here.murmur2 += by_murmur2
        here.crc32 += by_crc32
        found.both += by_murmur2 and by_crc32
        found.murmur2 += by_murmur2 and not by_crc32
        found.crc32 += by_crc32 and not by_murmur2
        found.neither += not by_murmur2 and not by_crc32
    found.split = {key: numbers for key, numbers in places.items() if len(numbers) > 1}
    return found
