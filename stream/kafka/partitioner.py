"""The partition of a key, as Kafka's Java clients and librdkafka choose it."""

from __future__ import annotations

from typing import Final
from zlib import crc32

from aiokafka.partitioner import murmur2

__all__ = ["partition_of"]

_MAX_INT32: Final = 0x7FFFFFFF


def partition_of(key: bytes, partitions: int, partitioner: str) -> int:
    """Return the partition that producers with such a partitioner choose for a key.

    ``murmur2`` is the choice of Kafka's Java clients and of librdkafka's ``murmur2`` and ``murmur2_random``;
    ``crc32`` that of librdkafka's ``consistent`` and ``consistent_random``. Its default, the last one, puts
    an empty key on any partition.

    Raises
    ------
    ValueError
        Producers with this partitioner do not choose the partition by the key.
    """
    if partitioner == "murmur2":
        return int((murmur2(key) & _MAX_INT32) % partitions)
    if partitioner == "crc32":
        return crc32(key) % partitions
    raise ValueError(f"partitioner {partitioner!r} has no partition for a key")
