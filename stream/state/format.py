"""The format of any stored record: its key, version, checksum and migrations."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from stream.errors import NewerFormatError, StateError
from stream.jit import Ints, jit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "CORRUPT",
    "FORMAT_VERSION",
    "OK",
    "OTHER_VERSION",
    "Migrations",
    "Words",
    "checksum",
    "complaint",
    "describe_record",
    "entity_prefix",
    "first_word",
    "is_of_entity",
    "join",
    "make_record",
    "migrate_record",
    "read_words",
    "record_key",
    "user_of_key",
]


Words = npt.NDArray[np.int64]

#: Functions from the words of an older version to those of the next, by that version and the kind of record.
Migrations: TypeAlias = "Mapping[tuple[int, int], Callable[[Words], Words]]"

#: Version of every record that this program writes.
FORMAT_VERSION: Final = 2

_MAGIC: Final = 0x5253 << 16  # "RS", then kind and version, a byte each
_SUFFIX: Final = struct.Struct(">BBI")
_LARGEST_NUMBER: Final = 0xFFFFFFFF
_ENTITY: Final = b"\xff"

#: Results of unpacking a head record.
OK: Final = 0

CORRUPT: Final = 1
OTHER_VERSION: Final = 2

#: The oldest version that is still read.
OLDEST_VERSION: Final = 1

#: Versions to come; a larger number is damage.
_FORESEEN: Final = 16


def first_word(kind: int) -> int:
    """Return the word that records of a kind begin with in today's version."""
    return _MAGIC | (kind << 8) | FORMAT_VERSION


def record_key(prefix: bytes, kind: int, number: int = 0) -> bytes:
    """Return the key of any kind of record.

    Numbers grow with all that was ever stored, so keys repeat after 2**32 of them: long after the former
    record was deleted, since far fewer records are kept.
    """
    return prefix + _SUFFIX.pack(0, kind, number & _LARGEST_NUMBER)


def entity_prefix(code: int, name: int) -> bytes:
    """Return the prefix of an entity's keys; no user's key has it, since UTF-8 never contains byte 255.

    ``code`` is the kind of entity, ``name`` the hash of its id.
    """
    return _ENTITY + bytes([code]) + name.to_bytes(8, "big", signed=True)


def is_of_entity(key: bytes) -> bool:
    """Return whether a key or a key prefix belongs to an entity and not to a user."""
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


@jit
def checksum(words: Ints, start: int, stop: int) -> int:
    """Return a 64-bit checksum: damage is noticed, forgery is not its business."""
    total = np.int64(0x243F6A8885A308D3)
    for index in range(start, stop):
        total = (total ^ words[index]) * np.int64(0x2545F4914F6CDD1D)
        total ^= (total >> 29) & 0x7FFFFFFFF
    return int(total)


def read_words(record: bytes, kind: int, key: bytes, migrations: Migrations) -> Words:
    """Return a checked record's words behind its first two.

    Raises
    ------
    StateError
        The record is damaged, or too old.
    NewerFormatError
        A newer version of this program has written it.
    """
    if len(record) < 16 or len(record) % 8:
        raise StateError(f"{describe_record(key)} is corrupt: {len(record)} bytes")
    words = np.frombuffer(record, np.int64)
    first = int(words[0])
    body: Words = words[2:]
    if first >> 16 != _MAGIC >> 16 or (first >> 8) & 0xFF != kind:
        raise StateError(f"{describe_record(key)} is corrupt: it has the wrong header")
    version = first & 0xFF
    if int(words[1]) != checksum(words, 2, len(words)):
        raise StateError(f"{describe_record(key)} is corrupt: its checksum does not match")
    if version > FORMAT_VERSION + _FORESEEN:
        raise StateError(f"{describe_record(key)} is corrupt: it has the version {version}")
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{describe_record(key)} has format {version}, newer than the {FORMAT_VERSION} of this program: "
            "upgrade this worker"
        )
    if version < OLDEST_VERSION:
        raise StateError(f"{describe_record(key)} has format {version}, which this program no longer reads")
    for older in range(version, FORMAT_VERSION):
        change = migrations.get((older, kind))
        if change is not None:
            try:
                body = change(body)
            except (IndexError, ValueError) as error:
                raise StateError(f"{describe_record(key)} is corrupt: it is too short") from error
    return body


def make_record(kind: int, *parts: npt.NDArray[np.int64] | npt.NDArray[np.uint32]) -> bytes:
    """Return a record of today's version."""
    body = b"".join(part.tobytes() for part in parts)
    body += b"\0" * (-len(body) % 8)
    words = np.empty(2 + len(body) // 8, np.int64)
    words[2:] = np.frombuffer(body, np.int64)
    words[0] = first_word(kind)
    words[1] = checksum(words, 2, len(words))
    return words.tobytes()


def migrate_record(record: bytes, key: bytes, migrations: Migrations) -> bytes:
    """Return a record of an older version in today's.

    Raises
    ------
    StateError
        It is damaged, newer than this program, or too old.
    """
    kind = ord(user_of_key(key)[1])
    return make_record(kind, read_words(record, kind, key, migrations))


def complaint(key: bytes, record: bytes) -> str:
    """Return why a record with a correct first word cannot be used."""
    words = np.frombuffer(record, np.int64)
    if len(words) < 2 or int(words[1]) != checksum(words, 2, len(words)):
        return f"{describe_record(key)} is corrupt: its checksum does not match"
    return f"{describe_record(key)} is corrupt or old: it does not cover the chunks that the head lists"


def join(records: Sequence[bytes]) -> tuple[Words, Words, Words]:
    """Return concatenated records as words, the first word of each, and the number of words of each."""
    sizes = np.fromiter((len(record) // 8 for record in records), np.int64, len(records))
    return np.frombuffer(b"".join(records), np.int64), np.cumsum(sizes) - sizes, sizes
