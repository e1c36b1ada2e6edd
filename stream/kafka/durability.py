"""What lets a topic lose acknowledged records, or keeps it from acknowledging any.

A worker refuses a topic that acknowledges nothing, but runs on topics that are less durable than those it
would create: a restart must not end the scoring because of a setting that made no difference so far, and the
source topic may belong to another team. The worker logs these topics, and ``riskstream check`` notes the
reasons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stream.kafka.topics import TopicSpec
    from stream.settings import TopicSettings

__all__ = ["impossible_writes", "weaknesses"]

_MIN_INSYNC: Final = "min.insync.replicas"
_UNCLEAN: Final = "unclean.leader.election.enable"


def impossible_writes(replicas: int, values: Mapping[str, str]) -> list[str]:
    """Return why a topic acknowledges no record, as at most one text.

    Parameters
    ----------
    values
        The topic's configuration as far as the broker reports it.
    """
    needed = int(values.get(_MIN_INSYNC, "1"))
    if needed <= replicas:
        return []
    return [f"has {_MIN_INSYNC}={needed} and {replicas} replicas, so no record is ever acknowledged"]


def weaknesses(topics: TopicSettings, spec: TopicSpec, replicas: int, values: Mapping[str, str]) -> list[str]:
    """Return how an existing topic is less durable, or less available, than its spec asks for.

    A topic with fewer replicas than the spec is compared with what is possible for its own number, unless the
    settings name ``min_insync_replicas``.
    """
    found = []
    if topics.replication_factor is None and replicas < spec.replication_factor:
        found.append(
            f"has replication factor {replicas}, not {spec.replication_factor}, for which there are enough "
            "brokers"
        )
    needed = int(values.get(_MIN_INSYNC, "1"))
    wanted = int(spec.durability[_MIN_INSYNC])
    if topics.min_insync_replicas is None:
        wanted = max(1, min(wanted, replicas - 1))
    if needed < wanted:
        found.append(
            f"has {_MIN_INSYNC}={needed}, not {wanted}: a record is acknowledged when {needed} of {replicas} "
            "replicas have it, and may be lost with them"
        )
    elif wanted < needed == replicas:
        found.append(f"has {_MIN_INSYNC}={needed}, not {wanted}: one broker that is down stops all writes")
    if values.get(_UNCLEAN) == "true":
        found.append(
            f"has {_UNCLEAN}=true, not false: an outdated replica may become the leader, and acknowledged "
            "records are lost"
        )
    return found
