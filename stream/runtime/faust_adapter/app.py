"""app."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import faust
from faust.serializers.schemas import Schema

from stream.runtime.faust_adapter.consumer import BatchTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping


class PassThroughSchema(Schema):  # type: ignore[misc]
    """Hands a message on as it is; a batch is decoded by the pipeline, not by Faust."""

    def compile(self, app: Any, **_: Any) -> Callable[..., Awaitable[Any]]:
        """Return the function that makes an event of a message."""
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:  # noqa: ARG001
            return create_event(message.key, message.value, message.headers, message)

        return decode


class StreamApp(faust.App):  # type: ignore[misc]
    """A Faust app whose stop and rebalance wait for the batch under way."""

    #: Set by ``build_app``: how long the broker may let a fetch without records wait.
    fetch_max_wait_ms: int = 20
    #: Set by ``build_app``: waits until no batch is under way and none will begin.
    settle: Callable[[], Awaitable[None]] | None = None
    #: Set by ``build_app``: waits until there is room for fetched records.
    room: Callable[[], Awaitable[None]] | None = None
    #: Set by ``build_app``: keeps former owners of newly assigned partitions from writing.
    take_over: Callable[[set[Any]], Awaitable[None]] | None = None
    #: Set by ``build_app``: told of what the worker cannot go on with.
    on_fatal: Callable[[BaseException], None] | None = None
    #: Set by ``build_app``: Kafka's ids of the topics that are consumed and of the changelog; empty where it
    #: has none.
    topic_ids: Mapping[str, str] = MappingProxyType({})
    changelog_id: str = ""
    #: Set by ``build_app``: names the topic that is not fetched while there is more of its to do elsewhere.
    held_up: Callable[[], str | None] | None = None
    #: Set by ``build_app``: lets batches begin again after a rebalance.
    resume: Callable[[set[Any]], None] | None = None
    #: Set by ``build_app``: what to start before, and to stop after, everything of Faust's.
    prepare: Callable[[], Awaitable[None]] | None = None
    release: Callable[[], Awaitable[None]] | None = None
    #: Set by ``build_app``: called after every commit of source offsets.
    on_committed: Callable[[], None] | None = None
    #: Set by ``build_app``: told how many changelog records were restored.
    on_recovered: Callable[[int], None] | None = None

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    def report(self, error: BaseException) -> None:
        """End processing because of an error; may be called from the consumer's thread."""
        if self.on_fatal is not None:
            self.loop.call_soon_threadsafe(self.on_fatal, error)

    async def crash(self, reason: BaseException) -> None:
        """Say what ends the worker, not how Faust came to know."""
        if self.on_fatal is None:
            await super().crash(reason)
        else:
            self.report(reason)

    def count_recovered(self, records: int) -> None:
        """Report restored changelog records."""
        if self.on_recovered is not None:
            self.on_recovered(records)

    async def on_start(self) -> None:
        """Start what the app needs first."""
        if self.prepare is not None:
            await self.prepare()
        await super().on_start()

    async def on_shutdown(self) -> None:
        """Stop it last."""
        await super().on_shutdown()
        if self.release is not None:
            await self.release()

    async def _consumer_wait_empty(self, consumer: Any, logger: Any) -> None:  # noqa: ARG002
        if self.settle is not None:
            await self.settle()
        await consumer.commit()

    async def _on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        """Become the changelog's one writer before its end is looked up."""
        if self.take_over is not None:
            try:
                await self.take_over(assigned)
            except Exception as error:  # noqa: BLE001 - without it nothing may be taken
                self.report(error)
                return
        await super()._on_partitions_assigned(assigned, generation_id)
        if self.resume is not None:
            self.resume(assigned)

    def _create_directories(self) -> None:
        self.conf.tabledir.mkdir(parents=True, exist_ok=True)
