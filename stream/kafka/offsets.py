"""The group's committed offsets: what lies behind them, and how to move them while no worker runs."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, NoError

from stream.errors import BrokerError
from stream.kafka.admin import administration, topic_ids
from stream.kafka.clients import client_config
from stream.kafka.incarnations import next_incarnation, topic_id_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stream.settings import Settings

__all__ = ["Move", "Target", "move_offsets", "plan_moves", "records_behind"]

#: The beginning, the end, or the first record with a Kafka timestamp of at least so many ms since 1970.
Target = Literal["earliest", "latest"] | int


class Move(NamedTuple):
    """A partition's committed offset and its new one.

    Attributes
    ----------
    committed
        None if the group has no commit: a worker would begin at the beginning.
    first, end
        The offsets that the partition has now.
    incarnation
        What the committed offset belongs to, see :mod:`.incarnations`.
    """

    topic: str
    partition: int
    committed: int | None
    to: int
    first: int
    end: int
    incarnation: str = ""

    @property
    def lost(self) -> int:
        """How many offsets before the commit the broker has lost, to give them to other records."""
        return 0 if self.committed is None else max(0, self.committed - self.end)


def plan_moves(settings: Settings, target: Target) -> list[Move]:
    """Return the moves of the source topic's partitions; changes nothing.

    Raises
    ------
    BrokerError
        The group has members, the topic does not exist, or the broker cannot be reached.
    """
    _require_no_members(settings)
    topic = settings.topics.transactions
    with _group(settings, topic) as (consumer, partitions):
        if not partitions:
            raise BrokerError(f"topic {topic} does not exist")
        firsts, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        wanted = _offsets(consumer, partitions, target, firsts, ends)
        commits = {partition: consumer.committed(partition, metadata=True) for partition in partitions}
    moves = []
    for index, commit in commits.items():
        committed, metadata = (None, "") if commit is None else (commit.offset, commit.metadata or "")
        moves.append(
            Move(topic, index.partition, committed, wanted[index], firsts[index], ends[index], metadata)
        )
    return moves


def move_offsets(settings: Settings, moves: Sequence[Move], *, reused: bool = False) -> None:
    """Commit the new offsets as a worker does, with the incarnation that they belong to.

    Partitions that have lost committed offsets get a new incarnation, so that no worker takes a record with
    such an offset for a replay.

    Parameters
    ----------
    reused
        Give every partition a new incarnation: offsets were lost and are in use again.

    Raises
    ------
    BrokerError
        The group has members, or the broker rejects a commit.
    """
    _require_no_members(settings)
    ids = topic_ids(settings, {move.topic for move in moves})
    offsets = {}
    for move in moves:
        same = topic_id_of(move.incarnation) == ids[move.topic]
        incarnation = move.incarnation if same else ids[move.topic]
        if incarnation and (move.lost or reused):
            incarnation = next_incarnation(incarnation)
        offsets[TopicPartition(move.topic, move.partition)] = OffsetAndMetadata(move.to, incarnation, -1)
    with administration(settings.kafka, settings.kafka.request_timeout_seconds) as admin:
        results = admin.alter_group_offsets(settings.app_id, offsets)
    refused = {index: error for index, error in results.items() if error is not NoError}
    if refused:
        index, error = next(iter(refused.items()))
        raise BrokerError(
            f"the broker rejects the offset of {index.topic} [{index.partition}] ({error.__name__}): if a "
            "worker has started, stop it and reset again"
        )


def records_behind(settings: Settings, topic: str) -> int:
    """Return how many records of a topic are not committed by the group; 0 without any commit.

    Raises
    ------
    BrokerError
        The broker cannot be reached.
    """
    with _group(settings, topic) as (consumer, partitions):
        ends = {index: end for index, end in consumer.end_offsets(partitions).items() if end}
        committed = {index: consumer.committed(index) for index in ends}
    return sum(ends[index] - offset for index, offset in committed.items() if offset is not None)


@contextmanager
def _group(settings: Settings, topic: str) -> Iterator[tuple[Any, list[TopicPartition]]]:
    """Provide a consumer that sees the group's commits without joining it, and the topic's partitions.

    Raises
    ------
    BrokerError
        The broker cannot be reached.
    """
    try:
        consumer = KafkaConsumer(
            **client_config(settings.kafka), group_id=settings.app_id, enable_auto_commit=False
        )
        with closing(consumer):
            numbers = sorted(consumer.partitions_for_topic(topic) or ())
            yield consumer, [TopicPartition(topic, number) for number in numbers]
    except KafkaError as error:
        raise BrokerError(f"offsets of {topic} cannot be read: {error}") from error


def _require_no_members(settings: Settings) -> None:
    """Raise if a worker could be at work: it would overwrite the offsets, or hold others in memory."""
    with administration(settings.kafka, settings.kafka.request_timeout_seconds) as admin:
        group = admin.describe_groups([settings.app_id])[settings.app_id]
    members = group["members"]
    if members:
        raise BrokerError(
            f"group {settings.app_id} has {len(members)} members: stop all workers; members with a permanent "
            f"name leave when their session expires ({settings.kafka.session_timeout_seconds:g} s)"
        )


def _offsets(
    consumer: Any,
    partitions: Sequence[TopicPartition],
    target: Target,
    firsts: dict[TopicPartition, int],
    ends: dict[TopicPartition, int],
) -> dict[TopicPartition, int]:
    if target == "earliest":
        return firsts
    if target == "latest":
        return ends
    found = consumer.offsets_for_times(dict.fromkeys(partitions, target))
    return {index: ends[index] if found.get(index) is None else found[index].offset for index in partitions}
