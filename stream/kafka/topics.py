"""The topics: names, partitions and policies, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from stream.events.fields import MS_PER_DAY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stream.settings import Settings

__all__ = [
    "HISTORY_TABLE",
    "TopicSpec",
    "changelog_topic",
    "requests_topic",
    "responses_topic",
    "topic_specs",
    "transactional_id",
]


#: Name of the only table; its changelog topic is named after it.
HISTORY_TABLE: Final = "history"

#: Replicas of topics on a cluster with enough brokers.
_DEFAULT_REPLICAS: Final = 3


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """The shape of a topic.

    Attributes
    ----------
    config:
        Required topic configuration by Kafka's names, as texts.
    durability:
        Further configuration of a topic that RiskStream creates. An existing topic may differ, see
        :mod:`stream.kafka.durability`.
    """

    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str] = field(default_factory=dict)
    durability: Mapping[str, str] = field(default_factory=dict)


def changelog_topic(settings: Settings) -> str:
    """Return the name of the table's changelog topic, as Faust makes it."""
    return f"{settings.app_id}-{HISTORY_TABLE}-changelog"


def requests_topic(settings: Settings) -> str:
    """Return the name of the topic of entity requests and label updates."""
    return f"{settings.app_id}-entity-requests"


def responses_topic(settings: Settings) -> str:
    """Return the name of the topic of pending transactions and entity responses."""
    return f"{settings.app_id}-entity-responses"


def transactional_id(settings: Settings, partition: int) -> str:
    """Return the transactional id under which a changelog partition is written; it fences former owners."""
    return f"{settings.app_id}-{HISTORY_TABLE}-{partition}"


def topic_specs(settings: Settings, brokers: int = 1) -> tuple[TopicSpec, ...]:
    """Return every topic that this deployment needs, on a cluster of so many brokers."""
    topics = settings.topics
    replicas = topics.replication_factor or min(_DEFAULT_REPLICAS, brokers)
    durability = {
        "min.insync.replicas": str(topics.min_insync_replicas or max(1, replicas - 1)),
        "unclean.leader.election.enable": "false",
    }
    retention = str(int(topics.retention_days * MS_PER_DAY))

    def deleted(name: str, retention_ms: str = retention) -> TopicSpec:
        config = {"cleanup.policy": "delete", "retention.ms": retention_ms}
        return TopicSpec(name, topics.partitions, replicas, config, durability)

    def compacted(name: str, partitions: int) -> TopicSpec:
        return TopicSpec(name, partitions, replicas, {"cleanup.policy": "compact"}, durability)

    return (
        deleted(topics.transactions),
        deleted(topics.alerts),
        deleted(topics.decisions),
        deleted(topics.labels),
        deleted(topics.dead_letters, str(int(topics.dead_letter_retention_days * MS_PER_DAY))),
        # Used by models with profiles only; nothing in them is needed once it is worked off.
        deleted(requests_topic(settings)),
        deleted(responses_topic(settings)),
        compacted(topics.control, 1),
        compacted(changelog_topic(settings), topics.partitions),
    )
