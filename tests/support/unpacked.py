"""Stored records of a history, unpacked one by one; a worker unpacks many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stream.errors import StateError
from stream.features.windows.arrays import CHUNK, SEGMENT
from stream.features.windows.records import (
    CHUNK_KIND,
    CHUNK_WORDS,
    LIVE_KIND,
    MIGRATIONS,
    SEGMENT_KIND,
)
from stream.state.format import describe_record, read_words

if TYPE_CHECKING:
    import numpy.typing as npt

    from stream.state.format import Words


def unpack_chunk(record: bytes, key: bytes) -> Words:
    """Return a sealed chunk's events, ``int64[4, CHUNK]``."""
    words = read_words(record, CHUNK_KIND, key, MIGRATIONS)
    if len(words) != 4 * CHUNK:
        raise StateError(f"{describe_record(key)} is corrupt: {len(words)} words")
    return words.reshape(4, CHUNK)


def unpack_segment(record: bytes, key: bytes) -> tuple[Words, Words, Words, npt.NDArray[np.uint32]]:
    """Return a segment's times, sums, merchants and fingerprints, as rows of ``Sealed``'s arrays."""
    words = read_words(record, SEGMENT_KIND, key, MIGRATIONS)
    count = int(words[0]) if len(words) else -1
    if not 0 < count <= SEGMENT or len(words) != 1 + count * CHUNK_WORDS:
        raise StateError(f"{describe_record(key)} is corrupt: {len(words)} words")
    times, sums, merchants, id_fingerprints = np.split(words[1:], count * np.array([2, 6, 6 + CHUNK]))
    return (
        times.reshape(count, 2),
        sums.reshape(count, 4),
        merchants.reshape(count, CHUNK),
        id_fingerprints.view(np.uint32).reshape(count, CHUNK),
    )


def unpack_live(record: bytes, key: bytes) -> tuple[int, npt.NDArray[np.uint32]]:
    """Return the first chunk's number and the bitmaps from it on."""
    words = read_words(record, LIVE_KIND, key, MIGRATIONS)
    if len(words) < 2 or words[1] < 0 or len(words) != 2 + (int(words[1]) + 1) // 2:
        raise StateError(f"{describe_record(key)} is corrupt: {len(words)} words")
    return int(words[0]), words[2:].view(np.uint32)[: int(words[1])]
