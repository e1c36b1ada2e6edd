"""The stored form of a user's history: four kinds of records, each a row of 64-bit words.

==========  =====================================================  =============================
key suffix  record                                                 written
==========  =====================================================  =============================
``H``       head: header, events not yet sealed, lost live bits    with every event
``C`` n     sealed chunk ``n``: 32 events                          once
``S`` k     segment ``k``: times, sums, merchants and id           when one of its chunks is
            fingerprints of its up to 32 chunks                    sealed
``L``       live bitmaps of all kept chunks                        when a chunk is sealed
==========  =====================================================  =============================

A key is the user id in UTF-8 and a suffix of six bytes (NUL, kind, big-endian number). Every record
begins with a word that says its kind and format version and a word with a checksum of the rest.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from stream.errors import StateError
from stream.features.compiled import Codes, Flags, Ints, compiled, counted
from stream.features.kernel import (
    CHUNK,
    H_BASE,
    H_COUNT,
    H_FIRST_CHUNK,
    H_GONE,
    H_HEAD,
    H_LIVE,
    H_NEXT_CHUNK,
    H_PENDING,
    HEAD,
    SEGMENT,
    Sealed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "FORMAT_VERSION",
    "HEAD_KIND",
    "HEAD_START",
    "MAX_HEAD_WORDS",
    "MIGRATIONS",
    "chunk_key",
    "describe_record",
    "entity_prefix",
    "first_word",
    "head_key",
    "is_of_entity",
    "live_key",
    "make_record",
    "pack_parts",
    "read_words",
    "record_key",
    "segment_key",
    "unpack_chunk",
    "unpack_live",
    "unpack_segment",
    "user_of_key",
]

Words = npt.NDArray[np.int64]

#: Version of every record that this program writes.
FORMAT_VERSION: Final = 2

_MAGIC: Final = 0x5253 << 16  # "RS", then kind and version, a byte each
HEAD_KIND: Final = ord("H")
CHUNK_KIND: Final = ord("C")
SEGMENT_KIND: Final = ord("S")
LIVE_KIND: Final = ord("L")

_SUFFIX: Final = struct.Struct(">BBI")
_ENTITY: Final = b"\xff"
_STORED: Final = H_GONE + 1  # header words stored as they are
_FIXED: Final = 2 + _STORED + 2  # and one that packs the numbers of head and pending, and one of live bits
MAX_HEAD_WORDS: Final = _FIXED + 4 * HEAD + (CHUNK + 1) // 2

#: Most chunks of a user: two million events within the horizon. A head that names more is not believed,
#: since room is made for its chunks before any of them is read.
MAX_CHUNKS: Final = 1 << 16

#: Behind the largest number that a key can hold, with room for a batch's worth of new chunks.
_MAX_NUMBER: Final = 1 << 31

#: Words of a chunk in a segment record: times, sums, merchants, fingerprints.
CHUNK_WORDS: Final = 2 + 4 + CHUNK + CHUNK // 2

#: The first word of each kind of record in today's version.
HEAD_START, CHUNK_START, SEGMENT_START, LIVE_START = (
    struct.pack("<q", _MAGIC | (kind << 8) | FORMAT_VERSION)
    for kind in (HEAD_KIND, CHUNK_KIND, SEGMENT_KIND, LIVE_KIND)
)

#: What :func:`unpack_head` says of a record.
OK: Final = 0
CORRUPT: Final = 1
OTHER_VERSION: Final = 2

#: The oldest version that is still read.
OLDEST_VERSION: Final = 1


def head_key(user: bytes) -> bytes:
    """Return the key of the user's head record; it is also what other keys begin with."""
    return user + b"\0H\0\0\0\0"


def chunk_key(user: bytes, number: int) -> bytes:
    """Return the key of a sealed chunk."""
    return user + _SUFFIX.pack(0, CHUNK_KIND, number)


def segment_key(user: bytes, number: int) -> bytes:
    """Return the key of a segment."""
    return user + _SUFFIX.pack(0, SEGMENT_KIND, number)


def live_key(user: bytes) -> bytes:
    """Return the key of the live bitmaps."""
    return user + b"\0L\0\0\0\0"


def first_word(kind: int) -> int:
    """Return the word that records of a kind begin with in today's version."""
    return _MAGIC | (kind << 8) | FORMAT_VERSION


def record_key(prefix: bytes, kind: int, number: int = 0) -> bytes:
    """Return the key of any kind of record."""
    return prefix + _SUFFIX.pack(0, kind, number)


def entity_prefix(code: int, name: int) -> bytes:
    """Return what the keys of an entity begin with: no user's, since UTF-8 has no byte 255.

    ``code`` is the kind of entity, ``name`` the identity of the one.
    """
    return _ENTITY + bytes([code]) + name.to_bytes(8, "big", signed=True)


def is_of_entity(key: bytes) -> bool:
    """Say whether a key, or what it begins with, is an entity's and not a user's."""
    return key.startswith(_ENTITY)


def user_of_key(key: bytes) -> tuple[bytes, str, int]:
    """Return the user, the kind and the number that a record's key names."""
    _, kind, number = _SUFFIX.unpack(key[-6:])
    return key[:-6], chr(kind), number


def describe_record(key: bytes) -> str:
    """Return how an error names a record."""
    user, kind, number = user_of_key(key)
    kinds = {
        "H": "head", "L": "live bitmap", "S": f"segment {number}", "C": f"chunk {number}",
        "P": "profile", "E": f"transactions {number}", "K": f"labels {number}",
    }  # fmt: skip
    if is_of_entity(user):
        return f"state of entity {user[1:].hex()} ({kinds.get(kind, kind)})"
    return f"state of user {user.decode(errors='replace')!r} ({kinds.get(kind, kind)})"


@compiled
def checksum(words: Ints, start: int, stop: int) -> int:
    """Return a 64-bit checksum: damage is noticed, forgery is not its business."""
    total = np.int64(0x243F6A8885A308D3)
    for index in range(start, stop):
        total = (total ^ words[index]) * np.int64(0x2545F4914F6CDD1D)
        total ^= (total >> 29) & 0x7FFFFFFFF
    return int(total)


@compiled
def pack_head(hdr: Ints, head: Ints, pending: Ints, words: Ints) -> int:
    """Write a head record to ``words``; returns how many words it takes."""
    count = hdr[H_HEAD]
    lost = hdr[H_PENDING]
    words[0] = _MAGIC | (HEAD_KIND << 8) | FORMAT_VERSION
    for index in range(_STORED):
        words[2 + index] = hdr[index]
    words[2 + _STORED] = count | (lost << 8)
    words[3 + _STORED] = hdr[H_LIVE]
    place = _FIXED
    for row in range(4):
        for index in range(count):
            words[place] = head[row, index]
            place += 1
    for index in range(0, lost, 2):
        second = pending[index + 1] if index + 1 < lost else 0
        words[place] = pending[index] | (second << 32)
        place += 1
    words[1] = checksum(words, 2, place)
    return place


@compiled
def _can_be(hdr: Ints, count: int) -> bool:
    """Whether a header's numbers of chunks and events go together, with ``count`` events in the head."""
    first, following = hdr[H_FIRST_CHUNK], hdr[H_NEXT_CHUNK]
    chunks = following - first
    return bool(
        first >= 0
        and 0 <= chunks <= MAX_CHUNKS
        and following <= _MAX_NUMBER
        and hdr[H_COUNT] >= chunks * CHUNK + count
    )


@compiled
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
    place = start + _FIXED
    for row in range(4):
        for index in range(count):
            head[row, index] = words[place]
            place += 1
    for index in range(lost):
        pending[index] = (words[place + index // 2] >> (32 * (index & 1))) & 0xFFFFFFFF
    return OK


@compiled
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
    """Read a batch's head records; a user without one (size 0) is left as made."""
    for user in range(len(sizes)):
        if sizes[user] > 0:
            status[user] = unpack_head(
                words, starts[user], sizes[user], hdrs[user], heads[user], pendings[user]
            )
            busy[user] = status[user] != OK or hdrs[user, H_NEXT_CHUNK] > hdrs[user, H_FIRST_CHUNK]


@compiled
def pack_heads(hdrs: Ints, heads: Ints, pendings: Ints, chosen: Ints, words: Ints, sizes: Ints) -> int:
    """Write the head records of the ``chosen`` users one behind the other."""
    place = 0
    for index in range(len(chosen)):
        user = chosen[index]
        sizes[index] = pack_head(hdrs[user], heads[user], pendings[user], words[place:])
        place += sizes[index]
    return place


def read_words(record: bytes, kind: int, key: bytes) -> Words:
    """Return a checked record's words behind its first two.

    Raises
    ------
    StateError
        The record is damaged, or of a version that this program does not know.
    """
    if len(record) < 16 or len(record) % 8:
        raise StateError(f"{describe_record(key)} is corrupt: {len(record)} bytes")
    words = np.frombuffer(record, np.int64)
    first = int(words[0])
    body: Words = words[2:]
    if first >> 16 != _MAGIC >> 16 or (first >> 8) & 0xFF != kind:
        raise StateError(f"{describe_record(key)} is corrupt: it does not begin like such a record")
    version = first & 0xFF
    if version > FORMAT_VERSION:
        raise StateError(
            f"{describe_record(key)} has format {version}, newer than the {FORMAT_VERSION} of this program; "
            "upgrade it"
        )
    if version < OLDEST_VERSION:
        raise StateError(f"{describe_record(key)} has format {version}, which this program no longer reads")
    if int(words[1]) != checksum(words, 2, len(words)):
        raise StateError(f"{describe_record(key)} is corrupt: its checksum does not match")
    for older in range(version, FORMAT_VERSION):
        change = MIGRATIONS.get((older, kind))
        if change is not None:
            try:
                body = change(body)
            except (IndexError, ValueError) as error:
                raise StateError(f"{describe_record(key)} is corrupt: it is too short") from error
    return body


def _with_live_word(body: Words) -> Words:
    """Return a head of version 1, which had 32 live bits beside its counts, with a word of their own."""
    packed = int(body[_STORED])
    counts = np.array([packed & 0xFFFF, (packed >> 16) & 0xFFFFFFFF], np.int64)
    return np.concatenate([body[:_STORED], counts, body[_STORED + 1 :]])


#: What a record of a version (and kind) becomes in the next one: its words in and out, without the first two.
#: Kinds that are not here have not changed.
MIGRATIONS: dict[tuple[int, int], Callable[[Words], Words]] = {(1, HEAD_KIND): _with_live_word}


def make_record(kind: int, *parts: npt.NDArray[np.int64] | npt.NDArray[np.uint32]) -> bytes:
    """Return a record of today's version."""
    body = b"".join(part.tobytes() for part in parts)
    body += b"\0" * (-len(body) % 8)
    words = np.empty(2 + len(body) // 8, np.int64)
    words[2:] = np.frombuffer(body, np.int64)
    words[0] = first_word(kind)
    words[1] = checksum(words, 2, len(words))
    return words.tobytes()


def migrate(record: bytes, key: bytes) -> bytes:
    """Return a record of an older version in today's.

    Raises
    ------
    StateError
        It is damaged, newer than this program, or too old.
    """
    kind = ord(user_of_key(key)[1])
    return make_record(kind, read_words(record, kind, key))


def complaint(key: bytes, record: bytes) -> str:
    """Return why a record whose first word is right cannot be used."""
    words = np.frombuffer(record, np.int64)
    if len(words) < 2 or int(words[1]) != checksum(words, 2, len(words)):
        return f"{describe_record(key)} is corrupt: its checksum does not match"
    return f"{describe_record(key)} is corrupt or old: it does not cover the chunks that the head names"


def join(records: Sequence[bytes]) -> tuple[Words, Words, Words]:
    """Return records behind one another as words, and where each begins and how many words it has."""
    sizes = np.fromiter((len(record) // 8 for record in records), np.int64, len(records))
    return np.frombuffer(b"".join(records), np.int64), np.cumsum(sizes) - sizes, sizes


@counted
def pack_parts(sealed: Sealed, parts: Ints, sizes: Ints) -> Words:
    """Return records of sealed chunks behind one another, and set how many words each has.

    A row of ``parts`` is the kind of record, the index of its first chunk, how many chunks it is of, and
    that first chunk's number.
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
            marks = merchants + CHUNK * count
            words[body + 1 : sums] = sealed.times[chunk : chunk + count].reshape(2 * count)
            words[sums:merchants] = sealed.sums[chunk : chunk + count].reshape(4 * count)
            words[merchants:marks] = sealed.merchants[chunk : chunk + count].reshape(CHUNK * count)
            words[marks:end] = sealed.marks[chunk : chunk + count].reshape(CHUNK * count).view(np.int64)
        else:
            words[body] = parts[part, 3]
            words[body + 1] = count
            words[end - 1] = 0
            words[body + 2 : end].view(np.uint32)[:count] = sealed.live[chunk : chunk + count]
        words[begin + 1] = checksum(words, begin + 2, end)
        begin = end
    return words


def unpack_chunk(record: bytes, key: bytes) -> Words:
    """Return a sealed chunk's events, ``int64[4, CHUNK]``."""
    words = read_words(record, CHUNK_KIND, key)
    if len(words) != 4 * CHUNK:
        raise StateError(f"{describe_record(key)} is corrupt: {len(words)} words")
    return words.reshape(4, CHUNK)


def unpack_segment(record: bytes, key: bytes) -> tuple[Words, Words, Words, npt.NDArray[np.uint32]]:
    """Return a segment's times, sums, merchants and fingerprints, as rows of those of ``Sealed``."""
    words = read_words(record, SEGMENT_KIND, key)
    count = int(words[0]) if len(words) else -1
    if not 0 < count <= SEGMENT or len(words) != 1 + count * CHUNK_WORDS:
        raise StateError(f"{describe_record(key)} is corrupt: {len(words)} words")
    times, sums, merchants, marks = np.split(words[1:], count * np.array([2, 6, 6 + CHUNK]))
    return (
        times.reshape(count, 2),
        sums.reshape(count, 4),
        merchants.reshape(count, CHUNK),
        marks.view(np.uint32).reshape(count, CHUNK),
    )


def unpack_live(record: bytes, key: bytes) -> tuple[int, npt.NDArray[np.uint32]]:
    """Return the first chunk's number and the bitmaps from it on."""
    words = read_words(record, LIVE_KIND, key)
    if len(words) < 2 or words[1] < 0 or len(words) != 2 + (int(words[1]) + 1) // 2:
        raise StateError(f"{describe_record(key)} is corrupt: {len(words)} words")
    return int(words[0]), words[2:].view(np.uint32)[: int(words[1])]
