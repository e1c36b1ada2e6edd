"""What travels between the stages of a model with profiles, as bytes.

A transaction whose model looks at merchants, cards, devices or addresses is not decided where its user's
history is: their states lie on partitions of their own. So it takes a hop:

1. *case* (to the answers' topic, the transaction's own partition): the transaction with all that is known of
   it by its user. Acknowledged before any of its questions is sent.
2. *question* (to the questions' topic, the entity's partition): one for each entity, all at once.
3. *answer* (to the answers' topic, the case's partition): the entity's features; or *repeated*, where the
   question had been answered before.
4. With all of its answers a case is decided.

And a *note* (to the questions' topic) tells an entity the label of one of its transactions.

Numbers are little-endian; every message begins with its kind and the format's version. Transactions are named
by their *case*, which is the same whenever the source record is taken again.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from stream.errors import InvalidRecordError
from stream.events.records import Message, Record, trace_context

if TYPE_CHECKING:
    import numpy.typing as npt


#: What stands for each kind of entity in keys and messages; never changed, only added to.
CODES: Final = {"user": 1, "merchant": 2, "card": 3, "device": 4, "ip": 5}

_VERSION: Final = 1
_CASE, _ANSWER, _REPEATED, _QUESTION, _NOTE, _OWNER = (ord(letter) for letter in "CARQNO")

#: Kind, version, entities asked (a bit for each code), bytes of the source's key (-1: none), features, the
#: owner's epoch, the spec's hash, case, source offset and timestamp; then the features, the key, the value.
_CASE_HEAD: Final = struct.Struct("<BBHhHi8sqqq")

#: Kind, version, entity's code, features, the spec's hash, case; then the features.
_ANSWER_HEAD: Final = struct.Struct("<BBHH8sq")

#: Kind, version, entity's code, source partition; entity, case, time, amount, minor units, user, transaction,
#: amount to the user's usual.
_QUESTION_FORM: Final = struct.Struct("<BBHIqqqqqqqd")

#: Kind, version, entity's code, fraud; entity, transaction, when known, offset.
_NOTE_FORM: Final = struct.Struct("<BBHIqqqq")

_MASK: Final = (1 << 64) - 1
_ODD: Final = 0x9E3779B97F4A7C15


class Question(NamedTuple):
    """What an entity is asked, times in ms, money in minor units."""

    entity: int
    name: int
    case: int
    partition: int
    time_ms: int
    amount_minor: int
    minor_units: int
    user: int
    ident: int
    to_usual: float

    def encode(self) -> Message:
        """Return the record."""
        value = _QUESTION_FORM.pack(
            _QUESTION, _VERSION, self.entity, self.partition, self.name, self.case, self.time_ms,
            self.amount_minor, self.minor_units, self.user, self.ident, self.to_usual,
        )  # fmt: skip
        return Message(None, value)


class Note(NamedTuple):
    """What an entity is told of one of its transactions' label."""

    entity: int
    name: int
    ident: int
    is_fraud: int
    when_ms: int
    offset: int

    def encode(self) -> Message:
        """Return the record."""
        value = _NOTE_FORM.pack(
            _NOTE, _VERSION, self.entity, self.is_fraud, self.name, self.ident, self.when_ms, self.offset
        )
        return Message(None, value)


@dataclass(frozen=True, slots=True)
class Case:
    """A transaction that waits for answers.

    Attributes
    ----------
    record:
        The source record, as far as decisions and alerts need it.
    spec_hash:
        Of the model that ``features`` are for.
    asked:
        A bit for each code of an entity that was asked.
    features:
        float64[features], NaN where the answers belong.
    epoch:
        Of the partition's owner that opened it; -1 where the broker has none.
    """

    case: int
    record: Record
    spec_hash: str
    asked: int
    features: npt.NDArray[np.float64]
    epoch: int = -1

    def encode(self) -> Message:
        """Return the record, with the trace of the source record."""
        record = self.record
        head = _CASE_HEAD.pack(
            _CASE, _VERSION, self.asked, -1 if record.key is None else len(record.key), len(self.features),
            self.epoch, bytes.fromhex(self.spec_hash), self.case, record.offset, record.timestamp_ms,
        )  # fmt: skip
        value = head + self.features.tobytes() + (record.key or b"") + (record.value or b"")
        return Message(None, value, record.headers and trace_context(record.headers))


class Answer(NamedTuple):
    """What an entity answers; ``features`` is None where it had answered before."""

    entity: int
    case: int
    spec_hash: str
    features: npt.NDArray[np.float64] | None

    def encode(self) -> Message:
        """Return the record."""
        features = self.features
        head = _ANSWER_HEAD.pack(
            _REPEATED if features is None else _ANSWER, _VERSION, self.entity,
            0 if features is None else len(features), bytes.fromhex(self.spec_hash), self.case,
        )  # fmt: skip
        return Message(None, head if features is None else head + features.tobytes())


def case_of(source: int, offset: int) -> int:
    """Return the name of a source record: that of its partition's incarnation, and its offset in it."""
    mixed = (source ^ (offset * _ODD)) & _MASK
    return mixed - (1 << 64) if mixed >> 63 else mixed


def partition_of(name: int, partitions: int) -> int:
    """Return the partition that an entity's state lies on; its name is a hash already."""
    return name % partitions


def _broken(what: str) -> InvalidRecordError:
    return InvalidRecordError("$", f"is not {what} of version {_VERSION}")


def decode_question(value: bytes | None) -> Question | Note:
    """Return what an entity is asked or told.

    Raises
    ------
    InvalidRecordError
        It is neither, or of another version.
    """
    kind = b"" if value is None else value[:2]
    if value is not None and kind == bytes((_QUESTION, _VERSION)) and len(value) == _QUESTION_FORM.size:
        _, _, entity, partition, name, *rest = _QUESTION_FORM.unpack(value)
        case, time_ms, amount, units, user, ident, to_usual = rest
        return Question(entity, name, case, partition, time_ms, amount, units, user, ident, to_usual)
    if value is not None and kind == bytes((_NOTE, _VERSION)) and len(value) == _NOTE_FORM.size:
        _, _, entity, is_fraud, name, ident, when_ms, offset = _NOTE_FORM.unpack(value)
        return Note(entity, name, ident, is_fraud, when_ms, offset)
    raise _broken("a question")


def decode_questions(value: bytes) -> list[Question]:
    """Return questions that stand one behind the other.

    Raises
    ------
    InvalidRecordError
        There are none, or something else.
    """
    parts = [value[at : at + _QUESTION_FORM.size] for at in range(0, len(value), _QUESTION_FORM.size)]
    questions = [one for one in map(decode_question, parts) if isinstance(one, Question)]
    if not 0 < len(questions) == len(parts):
        raise _broken("a question")
    return questions


def owner_mark() -> Message:
    """Return what a partition's new owner writes to the answers' topic before its first case."""
    return Message(None, bytes((_OWNER, _VERSION)))


def decode_answers(record: Record) -> Case | Answer | None:
    """Return the case or the answer in a record of the answers' topic, None for an owner's mark.

    Raises
    ------
    InvalidRecordError
        It is neither, or of another version.
    """
    value = record.value or b""
    kind = value[0] if len(value) > 1 and value[1] == _VERSION else 0
    if kind in (_ANSWER, _REPEATED) and len(value) >= _ANSWER_HEAD.size:
        _, _, entity, count, spec, case = _ANSWER_HEAD.unpack_from(value)
        if len(value) == _ANSWER_HEAD.size + 8 * count:
            features = np.frombuffer(value, np.float64, count, _ANSWER_HEAD.size)
            return Answer(entity, case, spec.hex(), features if kind == _ANSWER else None)
    if kind == _CASE and len(value) >= _CASE_HEAD.size:
        _, _, asked, key_size, count, epoch, spec, case, offset, timestamp_ms = _CASE_HEAD.unpack_from(value)
        begin = _CASE_HEAD.size + 8 * count
        end = begin + max(key_size, 0)
        if len(value) >= end:
            features = np.frombuffer(value, np.float64, count, _CASE_HEAD.size)
            key = None if key_size < 0 else value[begin:end]
            source = Record(offset, timestamp_ms, key, value[end:], record.headers)
            return Case(case, source, spec.hex(), asked, features, epoch)
    if kind == _OWNER:
        return None
    raise _broken("a case or an answer")
