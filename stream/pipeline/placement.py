"""Whether records are where the producers' declared partitioner puts their keys.

Two producers with different partitioners split a user: each part of the history is on a partition of its own,
and both are scored without the other. No record shows it, so every key is checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np

from stream.jit import Codes, Ints, jit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.settings import Partitioner

__all__ = ["misplaced_keys"]

_WORD: Final = 4
_MASK: Final = 0xFFFF_FFFF
_SEED: Final = 0x9747_B28C
_FACTOR: Final = 0x5BD1_E995


def misplaced_keys(keys: Sequence[bytes], partition: int, partitions: int, partitioner: Partitioner) -> int:
    """Return how many keys of a partition's records belong on another; 0 if any partition is right."""
    if partitioner == "any" or not keys:
        return 0
    count = len(keys)
    if partitioner == "crc32":
        hashes = np.fromiter(map(crc32, keys), np.uint32, count)
        return int(np.count_nonzero(hashes % partitions != partition))
    ends = np.fromiter(map(len, keys), np.int64, count).cumsum()
    return _misplaced_by_murmur2(np.frombuffer(b"".join(keys), np.uint8), ends, partition, partitions)


@jit
def _misplaced_by_murmur2(content: Codes, ends: Ints, partition: int, partitions: int) -> int:
    """Count the keys, given one behind the other, whose murmur2 hash as in Kafka's clients differs."""
    misplaced = 0
    begin = np.int64(0)
    for end in ends:
        length = end - begin
        hashed = np.int64(_SEED) ^ length
        at = begin
        while at + _WORD <= end:
            word = (
                np.int64(content[at])
                | (np.int64(content[at + 1]) << 8)
                | (np.int64(content[at + 2]) << 16)
                | (np.int64(content[at + 3]) << 24)
            )
            word = (word * _FACTOR) & _MASK
            word ^= word >> 24
            word = (word * _FACTOR) & _MASK
            hashed = ((hashed * _FACTOR) & _MASK) ^ word
            at += _WORD
        if at < end:
            for place in range(end - at):
                hashed ^= np.int64(content[at + place]) << (8 * place)
            hashed = (hashed * _FACTOR) & _MASK
        hashed ^= hashed >> 13
        hashed = (hashed * _FACTOR) & _MASK
        hashed ^= hashed >> 15
        misplaced += (hashed & 0x7FFF_FFFF) % partitions != partition
        begin = end
    return misplaced
