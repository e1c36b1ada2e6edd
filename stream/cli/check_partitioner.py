"""The part of ``riskstream check`` that looks for users whose records are on several partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from stream.errors import ConfigError, TopicMismatchError
from stream.kafka.key_placement import place_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from stream.kafka.key_placement import KeyPlacement
    from stream.settings import Partitioner

__all__ = ["PartitionerFinding", "partitioner_findings"]

_SETTING: Final = "RISKSTREAM_TOPICS__PARTITIONER"

#: Most partitions that have a line of their own.
_MAX_SHOWN: Final = 16


class PartitionerFinding(NamedTuple):
    """A finding, see :class:`stream.cli.commands.check.Finding`."""

    state: Literal["ok", "note", "FAIL"]
    text: str
    exit_code: int = 0


def partitioner_findings(
    records: Iterable[Any], partitions: int, declared: Partitioner
) -> Iterator[PartitionerFinding]:
    """Yield whether the keys of transactions agree with the declared partitioner.

    After a failure, also the counts of each partition. A worker would start all the same. Split users are a
    failure because their scores are wrong; a wrong setting is one because workers then hide split users in
    reports about all records.

    Parameters
    ----------
    records
        The newest records of each partition.
    """
    found = place_keys(records, partitions)
    verdict = _verdict(found, partitions, declared)
    yield verdict
    if verdict.state == "FAIL":
        for number, here in list(found.partitions.items())[:_MAX_SHOWN]:
            yield PartitionerFinding(
                "note",
                f"partition {number}: of {here.keys} keys, {here.murmur2} belong here by murmur2 and "
                f"{here.crc32} by crc32",
            )


def _verdict(found: KeyPlacement, partitions: int, declared: Partitioner) -> PartitionerFinding:
    users = f"the newest records have {found.users} {'user' if found.users == 1 else 'users'}"
    if not found.keys:
        return PartitionerFinding("note", "there is no transaction with a key to compare with the setting")
    if partitions == 1:
        return PartitionerFinding("ok", f"{users}, all on the only partition")
    if found.split:
        key, numbers = next(iter(found.split.items()))
        places = " and ".join(map(str, numbers))
        return PartitionerFinding(
            "FAIL",
            f"{users}, and {len(found.split)} of them are split, such as {key.decode(errors='replace')!r} on "
            f"partitions {places}: {_counts(found)}. {_SAME}",
            TopicMismatchError.exit_code,
        )
    if declared == "any":
        return PartitionerFinding("ok", f"{users}, each on one partition; {_counts(found)}")
    by = {"murmur2": found.murmur2 + found.both, "crc32": found.crc32 + found.both}
    other: Literal["murmur2", "crc32"] = "crc32" if declared == "murmur2" else "murmur2"
    if by[declared] == found.keys:
        return PartitionerFinding("ok", f"{users}, all where {declared} puts them")
    if by[other] == found.keys:
        return PartitionerFinding(
            "FAIL",
            f"{users}, all where {other} puts them and not all where {declared} does: set {_SETTING}={other}",
            ConfigError.exit_code,
        )
    if not found.neither:
        return PartitionerFinding(
            "FAIL",
            f"{users}, some where only murmur2 and others where only crc32 puts them ({_counts(found)}): "
            f"users of both kinds of producers are split. {_SAME}",
            TopicMismatchError.exit_code,
        )
    return PartitionerFinding(
        "FAIL",
        f"{users}, some where neither murmur2 nor crc32 puts them ({_counts(found)}): their producers choose "
        f"partitions in another way. If all producers do, and keep each user on one partition, set "
        f"{_SETTING}=any; otherwise users are split. {_SAME}",
        TopicMismatchError.exit_code,
    )


_SAME: Final = (
    "Configure the same partitioner in all producers (librdkafka: partitioner=murmur2_random for that of "
    "Kafka's Java clients)"
)


def _counts(found: KeyPlacement) -> str:
    return (
        f"only murmur2 explains {found.murmur2} keys, only crc32 {found.crc32}, both {found.both}, neither "
        f"{found.neither}"
    )
