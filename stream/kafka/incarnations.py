"""Incarnations of a partition: what its offsets belong to.

An offset names a record only within an incarnation of its partition. A topic that is deleted and created
again has another topic id, and so another incarnation. If the broker loses the end of a log (an unclean
election, a restored backup), the topic id stays and lost offsets are given to other records; ``riskstream
offsets reset`` begins a new incarnation then. Commits carry the incarnation in their metadata: the topic id,
and the number of resets where there was one. The state stores a hash of it with each user's last offset, and
compares offsets within an incarnation only.
"""

from __future__ import annotations

__all__ = ["next_incarnation", "topic_id_of"]

_SEPARATOR = "#"


def topic_id_of(incarnation: str) -> str:
    """Return the topic id of an incarnation.

    Examples
    --------
    >>> topic_id_of("Q7PJ4yTQQ0Cd7oBzMGt0Kw#2")
    'Q7PJ4yTQQ0Cd7oBzMGt0Kw'
    """
    return incarnation.partition(_SEPARATOR)[0]


def next_incarnation(incarnation: str) -> str:
    """Return the incarnation that follows when offsets are given to other records.

    Examples
    --------
    >>> next_incarnation("Q7PJ4yTQQ0Cd7oBzMGt0Kw"), next_incarnation("Q7PJ4yTQQ0Cd7oBzMGt0Kw#1")
    ('Q7PJ4yTQQ0Cd7oBzMGt0Kw#1', 'Q7PJ4yTQQ0Cd7oBzMGt0Kw#2')
    """
    topic_id, _, number = incarnation.partition(_SEPARATOR)
    return f"{topic_id}{_SEPARATOR}{int(number) + 1 if number.isdigit() else 1}"
