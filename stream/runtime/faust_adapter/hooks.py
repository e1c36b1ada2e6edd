"""The hooks by which the Faust app calls the worker around it."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["WorkerHooks"]


class WorkerHooks:
    """Called by :class:`.StreamApp`, its consumer and its store; the defaults leave Faust as it is.

    Attributes
    ----------
    topic_ids:
        Kafka's id of each consumed topic, known once the worker has checked its topics; a commit carries it.
        Empty on a broker without topic ids.
    changelog_id:
        Kafka's id of the changelog topic; a database remembers it.
    """

    topic_ids: Mapping[str, str] = MappingProxyType({})
    changelog_id: str = ""

    async def on_starting(self) -> None:
        """Start the worker's own parts before Faust's."""

    async def on_stopped(self) -> None:
        """Stop the worker's own parts after Faust's."""

    async def wait_for_capacity(self) -> None:
        """Return once the worker has room for fetched records; called before each fetch."""

    async def drain(self) -> None:
        """Return once no micro-batch is in progress and none will begin; called before a rebalance."""

    async def take_over(self, assigned: set[Any]) -> None:
        """Fence former owners of the assigned partitions; called before the changelog's end is read.

        An exception ends the worker.
        """

    def resume(self, assigned: set[Any]) -> None:
        """Let micro-batches begin again; called after a rebalance."""

    def paused_topic(self) -> str | None:
        """Return a topic that the next fetch must leave out, None for none."""
        return None

    def on_committed(self) -> None:
        """Take notice of a commit of source offsets."""

    def on_recovered(self, records: int) -> None:
        """Count restored changelog records."""

    def skipped_offsets(self, topic: str, partition: int) -> Collection[int]:  # noqa: ARG002
        """Return the offsets that a person asked to skip; may be called from the consumer's thread."""
        return ()

    def on_skipped(self, topic: str, records: int) -> None:
        """Count records that were skipped on request; may be called from the consumer's thread."""

    def on_expired(self, topic: str, records: int) -> None:
        """Count offsets that the log no longer has although they were not read."""

    def on_fatal(self, error: BaseException) -> bool:  # noqa: ARG002
        """Take notice of an error that ends processing; returns False if Faust must end the process."""
        return False
