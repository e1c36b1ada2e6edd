"""The stored form of a user's history: four kinds of records, each a row of 64-bit words.

==========  =====================================================  =============================
key suffix  record                                                 written
==========  =====================================================  =============================
``H``       head: header, events not yet sealed, cleared live bits with every event
``C`` n     sealed chunk ``n``: 32 events                          once
``S`` k     segment ``k``: times, sums, merchants and id           when one of its chunks is
            fingerprints of its up to 32 chunks                    sealed
``L``       live bitmaps of all kept chunks                        when a chunk is sealed
==========  =====================================================  =============================

A key is the user id in UTF-8 and a suffix of six bytes (NUL, kind, big-endian number). Every record begins
with a word for its kind and format version and a word with a checksum of the rest.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np

from stream.errors import StateError
from stream.features.windows.arrays import (
    CHUNK,
    F_LOADED,
    H_BASE,
    H_COUNT,
    H_FIRST_CHUNK,
    H_HEAD,
    H_LIVE,
    H_NEWEST,
    H_NEWEST_EXPIRED,
    H_NEXT_CHUNK,
    H_OFFSET,
    H_PENDING,
    H_SOURCE,
    HDR_SIZE,
    HEAD,
    SEGMENT,
    Sealed,
)
from stream.jit import Codes, Flags, Ints, Slots, jit, jit_alloc
from stream.state.format import (
    _MAGIC,
    CORRUPT,
    FORMAT_VERSION,
    OK,
    OTHER_VERSION,
    Migrations,
    Words,
    checksum,
    describe_record,
    migrate_record,
    read_words,
    record_key,
    user_of_key,
)

__all__ = [
    "chunk_key",
    "head_key",
    "live_key",
    "migrate",
    "pack_head",
    "pack_heads",
    "pack_parts",
    "segment_key",
    "stored_history",
    "unpack_head",
    "unpack_heads",
]

HEAD_KIND: Final = ord("H")
CHUNK_KIND: Final = ord("C")
SEGMENT_KIND: Final = ord("S")
LIVE_KIND: Final = ord("L")
_STORED: Final = H_NEWEST_EXPIRED + 1  # header words stored as they are
_FIXED: Final = 2 + _STORED + 2  # and one that packs the numbers of head and pending, and one of live bits
MAX_HEAD_WORDS: Final = _FIXED + 4 * HEAD + (CHUNK + 1) // 2

#: A head with more chunks than this is damage: room is made for them before any of them is read. Far beyond
#: MAX_CHUNKS, which another version of this program may set otherwise.
_DAMAGED_CHUNKS: Final = 1 << 20

#: Beyond every number of a chunk, which grows with the events that the user ever had.
_MAX_NUMBER: Final = 1 << 58

#: Lost live bits are stored by their event's number in this many bits; the events kept are far fewer.
_LOST_BITS: Final = 32
_LOST_MASK: Final = (1 << _LOST_BITS) - 1

#: Words of a chunk in a segment record: times, sums, merchants, fingerprints.
CHUNK_WORDS: Final = 2 + 4 + CHUNK + CHUNK // 2

#: The first word of each kind of record in today's version.
HEAD_START, CHUNK_START, SEGMENT_START, LIVE_START = (
    struct.pack("<q", _MAGIC | (kind << 8) | FORMAT_VERSION)
    for kind in (HEAD_KIND, CHUNK_KIND, SEGMENT_KIND, LIVE_KIND)
)


def head_key(user: bytes) -> bytes:
    """Return the key of the user's head record; other keys begin with it too."""
    return user + b"\0H\0\0\0\0"


def chunk_key(user: bytes, number: int) -> bytes:
    """Return the key of a sealed chunk."""
    return record_key(user, CHUNK_KIND, number)


def segment_key(user: bytes, number: int) -> bytes:
    """Return the key of a segment."""
    return record_key(user, SEGMENT_KIND, number)


def live_key(user: bytes) -> bytes:
    """Return the key of the live bitmaps."""
    return user + b"\0L\0\0\0\0"


@jit
def pack_head(hdr: Ints, head: Ints, pending: Ints, words: Ints) -> int:
    """Write a head record to ``words``; returns how many words it takes."""
    count = hdr[H_HEAD]
    lost = hdr[H_PENDING]
    words[0] = _MAGIC | (HEAD_KIND << 8) | FORMAT_VERSION
    for index in range(_STORED):
        words[2 + index] = hdr[index]
    words[2 + _STORED] = count | (lost << 8)
    words[3 + _STORED] = hdr[H_LIVE]
    position = _FIXED
    for row in range(4):
        for index in range(count):
            words[position] = head[row, index]
            position += 1
    for index in range(0, lost, 2):
        second = pending[index + 1] & _LOST_MASK if index + 1 < lost else 0
        words[position] = (pending[index] & _LOST_MASK) | (second << _LOST_BITS)
        position += 1
    words[1] = checksum(words, 2, position)
    return position


@jit
def _can_be(hdr: Ints, count: int) -> bool:
    """Whether a header's numbers of chunks and events go together, with ``count`` events in the head."""
    first, following = hdr[H_FIRST_CHUNK], hdr[H_NEXT_CHUNK]
    chunks = following - first
    return bool(
        first >= 0
        and 0 <= chunks <= _DAMAGED_CHUNKS
        and following <= _MAX_NUMBER
        and hdr[H_COUNT] >= chunks * CHUNK + count
    )


@jit
def unpack_head(words: Ints, start: int, size: int, hdr: Ints, head: Ints, pending: Ints) -> int:
    """Read the head record at ``words[start:start + size]``; returns OK, CORRUPT or OTHER_VERSION."""
    if size < 2 or (words[start] >> 16) != (_MAGIC >> 16) or ((words[start] >> 8) & 0xFF) != HEAD_KIND:
        return CORRUPT
    if (words[start] & 0xFF) != FORMAT_VERSION:
        return OTHER_VERSION
    if size < _FIXED or words[start + 1] != checksum(words, start + 2, start + size):
        return CORRUPT
    for index in range(_STORED):
        hdr[index] = words[start + 2 + index]
    packed = words[start + 2 + _STORED]
    count = packed & 0xFF
    lost = (packed >> 8) & 0xFF
    if count >= HEAD or lost >= CHUNK or size != _FIXED + 4 * count + (lost + 1) // 2:
        return CORRUPT
    if not _can_be(hdr, count):
        return CORRUPT
    hdr[H_HEAD] = count
    hdr[H_PENDING] = lost
    hdr[H_LIVE] = words[start + 3 + _STORED]
    hdr[H_BASE] = hdr[H_FIRST_CHUNK] // SEGMENT * SEGMENT
    position = start + _FIXED
    for row in range(4):
        for index in range(count):
            head[row, index] = words[position]
            position += 1
    for index in range(lost):
        stored = (words[position + index // 2] >> (_LOST_BITS * (index & 1))) & _LOST_MASK
        # The lowest number with these bits that is not before the first chunk.
        start = hdr[H_FIRST_CHUNK] * CHUNK
        pending[index] = start + ((stored - start) & _LOST_MASK)
    return OK


@jit
def unpack_heads(
    words: Ints,
    starts: Ints,
    sizes: Ints,
    hdrs: Ints,
    heads: Ints,
    pendings: Ints,
    busy: Flags,
    status: Codes,
) -> None:
    """Read a batch's head records; a user without a record (size 0) stays as created."""
    for user in range(len(sizes)):
        if sizes[user] > 0:
            status[user] = unpack_head(
                words, starts[user], sizes[user], hdrs[user], heads[user], pendings[user]
            )
            busy[user] = status[user] != OK or hdrs[user, H_NEXT_CHUNK] > hdrs[user, H_FIRST_CHUNK]


@jit
def pack_heads(hdrs: Ints, heads: Ints, pendings: Ints, chosen: Ints, words: Ints, sizes: Ints) -> int:
    """Write the concatenated head records of the ``chosen`` users."""
    position = 0
    for index in range(len(chosen)):
        user = chosen[index]
        sizes[index] = pack_head(hdrs[user], heads[user], pendings[user], words[position:])
        position += sizes[index]
    return position


def _with_live_word(body: Words) -> Words:
    """Return a head of version 1, which had 32 live bits beside its counts, with a word of their own."""
    packed = int(body[_STORED])
    counts = np.array([packed & 0xFFFF, (packed >> 16) & 0xFFFFFFFF], np.int64)
    return np.concatenate([body[:_STORED], counts, body[_STORED + 1 :]])


#: From the words of a record of a version (and kind) to those of the next version, without the first two
#: words. Kinds without an entry have not changed.
MIGRATIONS: Final[Migrations] = {(1, HEAD_KIND): _with_live_word}


def migrate(record: bytes, key: bytes) -> bytes:
    """Return a record of an older version in today's.

    Raises
    ------
    StateError
        It is damaged, newer than this program, or too old.
    """
    return migrate_record(record, key, MIGRATIONS)


class StoredHistory(NamedTuple):
    """What a head record says of a history; ``keys`` are those of its other records."""

    newest_ms: int
    source: int
    offset: int
    keys: list[bytes]


def stored_history(record: bytes, key: bytes) -> StoredHistory:
    """Return what the head record under ``key`` says of a history.

    Raises
    ------
    StateError
        It is damaged or too old.
    NewerFormatError
        A newer version of this program has written it.
    """
    words = read_words(record, HEAD_KIND, key, MIGRATIONS)
    if len(words) < _FIXED - 2:
        raise StateError(f"{describe_record(key)} is corrupt: it is too short")
    hdr = np.zeros(HDR_SIZE, np.int64)
    hdr[:_STORED] = words[:_STORED]
    count = int(words[_STORED]) & 0xFF
    if not _can_be(hdr, count):
        raise StateError(f"{describe_record(key)} is corrupt: its numbers do not go together")
    user = user_of_key(key)[0]
    first, following = int(hdr[H_FIRST_CHUNK]), int(hdr[H_NEXT_CHUNK])
    keys = [chunk_key(user, number) for number in range(first, following)]
    if keys:
        segments = range(first // SEGMENT, (following - 1) // SEGMENT + 1)
        keys += [live_key(user), *(segment_key(user, number) for number in segments)]
    return StoredHistory(int(hdr[H_NEWEST]), int(hdr[H_SOURCE]), int(hdr[H_OFFSET]), keys)


@jit_alloc
def pack_parts(sealed: Sealed, parts: Ints, sizes: Ints) -> Words:
    """Return concatenated records of sealed chunks, and set the number of words of each.

    A row of ``parts`` is the kind of record, the index of its first chunk, its number of chunks, and the
    number of the first chunk.
    """
    total = 0
    for part in range(len(parts)):
        kind, count = parts[part, 0], parts[part, 2]
        sizes[part] = 2
        if kind == CHUNK_KIND:
            sizes[part] += 4 * CHUNK
        elif kind == SEGMENT_KIND:
            sizes[part] += 1 + CHUNK_WORDS * count
        else:
            sizes[part] += 2 + (count + 1) // 2
        total += sizes[part]
    words = np.empty(total, np.int64)
    begin = 0
    for part in range(len(parts)):
        kind, chunk, count = parts[part, 0], parts[part, 1], parts[part, 2]
        words[begin] = _MAGIC | (kind << 8) | FORMAT_VERSION
        body = begin + 2
        end = begin + sizes[part]
        if kind == CHUNK_KIND:
            slot = np.int64(sealed.slot[chunk])
            words[body:end] = sealed.store[slot].reshape(4 * CHUNK)
        elif kind == SEGMENT_KIND:
            words[body] = count
            sums = body + 1 + 2 * count
            merchants = sums + 4 * count
            id_fingerprints = merchants + CHUNK * count
            words[body + 1 : sums] = sealed.times[chunk : chunk + count].reshape(2 * count)
            words[sums:merchants] = sealed.sums[chunk : chunk + count].reshape(4 * count)
            words[merchants:id_fingerprints] = sealed.merchants[chunk : chunk + count].reshape(CHUNK * count)
            words[id_fingerprints:end] = (
                sealed.id_fingerprints[chunk : chunk + count].reshape(CHUNK * count).view(np.int64)
            )
        else:
            words[body] = parts[part, 3]
            words[body + 1] = count
            words[end - 1] = 0
            words[body + 2 : end].view(np.uint32)[:count] = sealed.live[chunk : chunk + count]
        words[begin + 1] = checksum(words, begin + 2, end)
        begin = end
    return words


_LIVE: Final = -1  # stands for "the live bitmaps" where a segment's number is expected


@jit_alloc
def _unpack(
    words: Ints,
    begins: Ints,
    sizes: Ints,
    owner: Ints,
    first: Ints,
    following: Ints,
    shift: Ints,
    sealed: Sealed,
) -> Flags:
    """Unpack live bitmaps and segments into the workspace; returns which records were good."""
    good = np.zeros(len(sizes), np.bool_)
    for record in range(len(sizes)):
        begin, size = begins[record], sizes[record]
        if size < 4 or words[begin + 1] != checksum(words, begin + 2, begin + size):
            continue
        user, number = owner[record, 0], owner[record, 1]
        at = -shift[user]
        body = begin + 2
        if number == _LIVE:
            stored_first, count = words[body], words[body + 1]
            if count < 0 or size != 4 + (count + 1) // 2:
                continue
            if stored_first > first[user] or stored_first + count < following[user]:
                continue
            for chunk in range(first[user], following[user]):
                position = chunk - stored_first
                sealed.live[at + chunk] = np.uint32(
                    (words[body + 2 + position // 2] >> (32 * (position & 1))) & 0xFFFFFFFF
                )
        else:
            count = words[body]
            start = number * SEGMENT
            needed = min(SEGMENT, following[user] - start)
            if count < needed or count > SEGMENT or size != 3 + count * CHUNK_WORDS:
                continue
            times = body + 1
            sums = times + 2 * count
            merchants = sums + 4 * count
            id_fingerprints = merchants + CHUNK * count
            for index in range(needed):
                chunk = at + start + index
                for column in range(2):
                    sealed.times[chunk, column] = words[times + 2 * index + column]
                for column in range(4):
                    sealed.sums[chunk, column] = words[sums + 4 * index + column]
                for event in range(CHUNK):
                    sealed.merchants[chunk, event] = words[merchants + CHUNK * index + event]
                for pair in range(CHUNK // 2):
                    two = words[id_fingerprints + CHUNK // 2 * index + pair]
                    sealed.id_fingerprints[chunk, 2 * pair] = np.uint32(two & 0xFFFFFFFF)
                    sealed.id_fingerprints[chunk, 2 * pair + 1] = np.uint32((two >> 32) & 0xFFFFFFFF)
        good[record] = True
    return good


@jit_alloc
def _unpack_chunks(
    words: Ints, begins: Ints, sizes: Ints, chunks: Ints, pages: Ints, slots: Slots, sealed: Sealed
) -> Flags:
    """Unpack chunks into the given slots of the store; returns which records were good."""
    good = np.zeros(len(sizes), np.bool_)
    for record in range(len(sizes)):
        begin, size = begins[record], sizes[record]
        sealed.slot[chunks[record]] = slots[record]
        sealed.window_cache[pages[record], F_LOADED] += 1
        if size != 2 + 4 * CHUNK or words[begin + 1] != checksum(words, begin + 2, begin + size):
            continue
        for row in range(4):
            for index in range(CHUNK):
                sealed.store[slots[record], row, index] = words[begin + 2 + row * CHUNK + index]
        good[record] = True
    return good
