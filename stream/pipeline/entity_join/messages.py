"""The messages between the stages of a model with entity profiles, as bytes.

The state of merchants, cards, devices and addresses lies on partitions of their own, so the worker that has a
user's history cannot decide a transaction alone. The entity join takes four steps:

1. *Pending transaction* (to the responses' topic, on the transaction's own partition): the record and
   everything that the user's partition knows of it. The broker acknowledges it before any of its requests is
   sent.
2. *Request* (to the requests' topic, on the entity's partition): one for each entity, all at once.
3. *Response* (to the responses' topic, on the transaction's partition): the entity's features; or *already
   applied*, if the entity's log has seen the request before.
4. A pending transaction with all of its responses is decided.

A *label update* (to the requests' topic) carries the label of a transaction to an entity.

Numbers are little-endian. Every message begins with its kind and the format's version. A ``pending_id`` names
a transaction; it is the same whenever the source record is consumed again.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from stream.errors import InvalidRecordError, NewerFormatError
from stream.events.records import ConsumerRecord, ProducerRecord, trace_context

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "CODES",
    "EntityJoinTopics",
    "EntityRequest",
    "EntityResponse",
    "LabelUpdate",
    "PendingTransaction",
    "decode_join_record",
    "decode_request",
    "decode_requests",
    "ownership_marker",
    "partition_of",
    "pending_id_of",
]


#: The code of each kind of entity in keys and messages; never change a code, only add more.
CODES: Final = {"user": 1, "merchant": 2, "card": 3, "device": 4, "ip": 5}

_VERSION: Final = 1
_PENDING, _RESPONSE, _ALREADY_APPLIED, _REQUEST, _UPDATE, _OWNER = _KINDS = tuple(map(ord, "CARQNO"))

#: A second byte up to this is a version to come; a larger one is no message at all.
_FORESEEN: Final = 16

#: Kind, version, requested entities (a bit for each code), bytes of the source's key (-1: none), features,
#: the owner's epoch, the spec's hash, pending id, source offset and timestamp; then the features, the key,
#: the value.
_PENDING_HEAD: Final = struct.Struct("<BBHhHi8sqqq")

#: Kind, version, entity's code, features, the spec's hash, pending id; then the features.
_RESPONSE_HEAD: Final = struct.Struct("<BBHH8sq")

#: Kind, version, entity's code, source partition; entity, pending id, time, amount, minor units, user,
#: transaction, amount to the user's usual.
_REQUEST_FORM: Final = struct.Struct("<BBHIqqqqqqqd")

#: Kind, version, entity's code, fraud; entity, transaction, when known, offset.
_UPDATE_FORM: Final = struct.Struct("<BBHIqqqq")

_MASK: Final = (1 << 64) - 1
_ODD: Final = 0x9E3779B97F4A7C15


class EntityRequest(NamedTuple):
    """A request for an entity's features of a transaction; times in ms, money in minor units."""

    entity: int
    name: int
    pending_id: int
    partition: int
    time_ms: int
    amount_minor: int
    minor_units: int
    user: int
    id_hash: int
    to_usual: float

    def encode(self) -> ProducerRecord:
        """Return the record."""
        value = _REQUEST_FORM.pack(
            _REQUEST, _VERSION, self.entity, self.partition, self.name, self.pending_id, self.time_ms,
            self.amount_minor, self.minor_units, self.user, self.id_hash, self.to_usual,
        )  # fmt: skip
        return ProducerRecord(None, value)


class LabelUpdate(NamedTuple):
    """The label of one of an entity's transactions."""

    entity: int
    name: int
    id_hash: int
    is_fraud: int
    when_ms: int
    offset: int

    def encode(self) -> ProducerRecord:
        """Return the record."""
        value = _UPDATE_FORM.pack(
            _UPDATE, _VERSION, self.entity, self.is_fraud, self.name, self.id_hash, self.when_ms, self.offset
        )
        return ProducerRecord(None, value)


@dataclass(frozen=True, slots=True)
class EntityJoinTopics:
    """Names of the topics that the stages consume, and the number of partitions of each."""

    transactions: str
    labels: str
    requests: str
    responses: str
    partitions: int

    @property
    def names(self) -> tuple[str, ...]:
        """The topics: transactions, labels, requests, responses."""
        return (self.transactions, self.labels, self.requests, self.responses)


@dataclass(frozen=True, slots=True)
class PendingTransaction:
    """A transaction that waits for responses.

    Attributes
    ----------
    record:
        The source record, as far as decisions and alerts need it.
    spec_hash:
        Hash of the feature spec that ``features`` follow.
    requested:
        One bit for the code of each requested entity.
    features:
        float64[features], NaN where the responses belong.
    epoch:
        Epoch of the partition's owner that wrote it; -1 on a broker without epochs.
    """

    pending_id: int
    record: ConsumerRecord
    spec_hash: str
    requested: int
    features: npt.NDArray[np.float64]
    epoch: int = -1

    def encode(self) -> ProducerRecord:
        """Return the record, with the trace of the source record."""
        record = self.record
        head = _PENDING_HEAD.pack(
            _PENDING, _VERSION, self.requested, -1 if record.key is None else len(record.key),
            len(self.features), self.epoch, bytes.fromhex(self.spec_hash), self.pending_id, record.offset,
            record.timestamp_ms,
        )  # fmt: skip
        value = head + self.features.tobytes() + (record.key or b"") + (record.value or b"")
        return ProducerRecord(None, value, record.headers and trace_context(record.headers))


class EntityResponse(NamedTuple):
    """An entity's response; ``features`` is None if the entity had applied the request already."""

    entity: int
    pending_id: int
    spec_hash: str
    features: npt.NDArray[np.float64] | None

    def encode(self) -> ProducerRecord:
        """Return the record."""
        features = self.features
        head = _RESPONSE_HEAD.pack(
            _ALREADY_APPLIED if features is None else _RESPONSE, _VERSION, self.entity,
            0 if features is None else len(features), bytes.fromhex(self.spec_hash), self.pending_id,
        )  # fmt: skip
        return ProducerRecord(None, head if features is None else head + features.tobytes())


def pending_id_of(source: int, offset: int) -> int:
    """Return the id of a source record, made of its partition's incarnation and its offset."""
    mixed = (source ^ (offset * _ODD)) & _MASK
    return mixed - (1 << 64) if mixed >> 63 else mixed


def partition_of(name: int, partitions: int) -> int:
    """Return the partition that an entity's state lies on; its name is a hash already."""
    return name % partitions


def _malformed(kind: str, value: bytes | None) -> InvalidRecordError:
    """Return the error of a value of another form.

    Raises
    ------
    NewerFormatError
        A newer version of this program has written it. As a dead letter it would leave a transaction
        undecided.
    """
    if value is not None and len(value) > 1 and value[0] in _KINDS and _VERSION < value[1] <= _FORESEEN:
        raise NewerFormatError(
            f"a message between stages has version {value[1]}, newer than the {_VERSION} of this program: "
            "upgrade this worker"
        )
    return InvalidRecordError("$", f"is not {kind} of version {_VERSION}")


def decode_request(value: bytes | None) -> EntityRequest | LabelUpdate:
    """Return the request or the label update in a record's value.

    Raises
    ------
    InvalidRecordError
        The value is neither, or has an older version.
    NewerFormatError
        A newer version of this program has written it.
    """
    kind = b"" if value is None else value[:2]
    if value is not None and kind == bytes((_REQUEST, _VERSION)) and len(value) == _REQUEST_FORM.size:
        _, _, entity, partition, name, *rest = _REQUEST_FORM.unpack(value)
        pending_id, time_ms, amount, units, user, id_hash, to_usual = rest
        return EntityRequest(
            entity, name, pending_id, partition, time_ms, amount, units, user, id_hash, to_usual
        )
    if value is not None and kind == bytes((_UPDATE, _VERSION)) and len(value) == _UPDATE_FORM.size:
        _, _, entity, is_fraud, name, id_hash, when_ms, offset = _UPDATE_FORM.unpack(value)
        return LabelUpdate(entity, name, id_hash, is_fraud, when_ms, offset)
    raise _malformed("an entity request", value)


def decode_requests(value: bytes) -> list[EntityRequest]:
    """Return requests that were concatenated.

    Raises
    ------
    InvalidRecordError
        The value holds no request, or something else.
    """
    parts = [value[start : start + _REQUEST_FORM.size] for start in range(0, len(value), _REQUEST_FORM.size)]
    requests = [request for request in map(decode_request, parts) if isinstance(request, EntityRequest)]
    if not 0 < len(requests) == len(parts):
        raise _malformed("an entity request", value)
    return requests


def ownership_marker() -> ProducerRecord:
    """Return the record that a partition's new owner writes to the responses' topic first."""
    return ProducerRecord(None, bytes((_OWNER, _VERSION)))


def decode_join_record(record: ConsumerRecord) -> PendingTransaction | EntityResponse | None:
    """Return the message in a record of the responses' topic, None for an ownership marker.

    Raises
    ------
    InvalidRecordError
        The record is neither, or has an older version.
    NewerFormatError
        A newer version of this program has written it.
    """
    value = record.value or b""
    kind = value[0] if len(value) > 1 and value[1] == _VERSION else 0
    if kind in (_RESPONSE, _ALREADY_APPLIED) and len(value) >= _RESPONSE_HEAD.size:
        _, _, entity, count, spec, pending_id = _RESPONSE_HEAD.unpack_from(value)
        if len(value) == _RESPONSE_HEAD.size + 8 * count:
            features = np.frombuffer(value, np.float64, count, _RESPONSE_HEAD.size)
            return EntityResponse(entity, pending_id, spec.hex(), features if kind == _RESPONSE else None)
    if kind == _PENDING and len(value) >= _PENDING_HEAD.size:
        _, _, requested, key_size, count, epoch, spec, pending_id, offset, timestamp_ms = (
            _PENDING_HEAD.unpack_from(value)
        )
        begin = _PENDING_HEAD.size + 8 * count
        end = begin + max(key_size, 0)
        if len(value) >= end:
            features = np.frombuffer(value, np.float64, count, _PENDING_HEAD.size)
            key = None if key_size < 0 else value[begin:end]
            source = ConsumerRecord(offset, timestamp_ms, key, value[end:], record.headers)
            return PendingTransaction(pending_id, source, spec.hex(), requested, features, epoch)
    if kind == _OWNER:
        return None
    raise _malformed("a pending transaction or a response", value)
