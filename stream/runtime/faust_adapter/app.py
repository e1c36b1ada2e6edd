"""The Faust app: its stop and its rebalance wait for the micro-batch in progress."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import faust
from faust.serializers.schemas import Schema

from stream.runtime.faust_adapter.consumer import BatchTransport
from stream.runtime.faust_adapter.hooks import WorkerHooks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["PassThroughSchema", "StreamApp"]


class PassThroughSchema(Schema):  # type: ignore[misc]
    """Passes a message on undecoded: the pipeline decodes batches."""

    def compile(self, app: Any, **_: Any) -> Callable[..., Awaitable[Any]]:
        """Return the function that makes an event of a message."""
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:  # noqa: ARG001
            return create_event(message.key, message.value, message.headers, message)

        return decode


class StreamApp(faust.App):  # type: ignore[misc]
    """A Faust app that consumes batches and leaves their effects to the worker's hooks.

    Parameters
    ----------
    hooks
        The worker around the app.
    fetch_max_wait_ms
        How long the broker may hold a fetch without records.
    isolation_level
        ``read_committed``, or ``read_uncommitted`` to consume records of aborted and open transactions too.
    """

    def __init__(
        self,
        *args: Any,
        hooks: WorkerHooks | None = None,
        fetch_max_wait_ms: int = 20,
        isolation_level: str = "read_committed",
        **options: Any,
    ) -> None:
        self.hooks = WorkerHooks() if hooks is None else hooks
        self.fetch_max_wait_ms = fetch_max_wait_ms
        self.isolation_level = isolation_level
        super().__init__(*args, **options)

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    def report(self, error: BaseException) -> None:
        """End processing because of an error; may be called from the consumer's thread."""
        self.loop.call_soon_threadsafe(self._end, error)

    def _end(self, error: BaseException) -> None:
        self._crashing = asyncio.ensure_future(self.crash(error))

    async def crash(self, reason: BaseException) -> None:
        """Report the error that ends the worker, not Faust's path to it."""
        if not self.hooks.on_fatal(reason):
            await super().crash(reason)

    async def on_start(self) -> None:
        """Start the worker's own parts first."""
        await self.hooks.on_starting()
        await super().on_start()

    async def on_shutdown(self) -> None:
        """Stop them last."""
        await super().on_shutdown()
        await self.hooks.on_stopped()

    async def _consumer_wait_empty(self, consumer: Any, logger: Any) -> None:  # noqa: ARG002
        await self.hooks.drain()
        await consumer.commit()

    async def _on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        """Become the changelog's one writer before the changelog's end is read."""
        try:
            await self.hooks.take_over(assigned)
        except Exception as error:  # noqa: BLE001 - without the fence the worker must not consume
            self.report(error)
            return
        await super()._on_partitions_assigned(assigned, generation_id)
        self.hooks.resume(assigned)

    def _create_directories(self) -> None:
        self.conf.tabledir.mkdir(parents=True, exist_ok=True)
