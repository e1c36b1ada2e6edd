"""The app: a stop waits for the batch under way, a fetch as long as configured, values pass undecoded.

A test named ``test_upstream_…`` that fails means that Faust has changed, and that the override may go.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import faust
import pytest
from faust.transport.drivers import aiokafka as driver

from stream.runtime.faust_adapter.app import PassThroughSchema, StreamApp
from stream.runtime.faust_adapter.consumer import BatchTransport
from support.faust_apps import FETCHED, TOPIC, TPS, make_app, make_consumer, messages, record

if TYPE_CHECKING:
    from pathlib import Path

# --- 3. a stop waits for the batch under way and nothing else ------------------------------------------


def test_upstream_waits_for_what_is_never_acknowledged(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """#527: as long as it is asked."""
    # It collects garbage before each look, which takes a second in a process that has run many tests.
    monkeypatch.setattr("faust.transport.consumer.gc", SimpleNamespace(collect=lambda: 0))

    async def main() -> None:
        app = make_app(tmp_path)
        consumer = make_consumer(app, driver.Transport, {TPS[0]: [record(0, 0)]})
        ((_, message),) = await messages(consumer)
        consumer.track_message(message)
        rounds: list[float] = []

        async def wait_for_ack(timeout: float) -> None:  # noqa: ASYNC109
            rounds.append(timeout)
            if len(rounds) == 50:
                consumer._stopped.set()

        async def commit(*_: Any, **__: Any) -> bool:
            return False

        consumer._wait_for_ack = wait_for_ack
        consumer.commit = commit
        await consumer.wait_empty()
        assert len(rounds) == 50

    run(main())


def test_ours_waits_for_the_batch_under_way_and_commits(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        app = make_app(tmp_path, StreamApp)
        consumer = make_consumer(app, BatchTransport, FETCHED)
        for _, message in await messages(consumer):
            consumer.track_message(message)
        steps: list[str] = []

        async def drain() -> None:
            steps.append("drain")

        async def commit(*_: Any, **__: Any) -> bool:
            steps.append("commit")
            return True

        app.hooks.drain, consumer.commit = drain, commit
        await app._consumer_wait_empty(consumer, app.log)
        assert steps == ["drain", "commit"]

    run(main())


# --- 4. how long a fetch waits --------------------------------------------------------------------------


def test_upstream_lets_an_empty_fetch_wait_and_ours_as_long_as_the_app_says(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        waits = []
        ours = {"fetch_max_wait_ms": 7}
        for kind, transport, options in (
            (faust.App, driver.Transport, {}),
            (StreamApp, BatchTransport, ours),
        ):
            app = make_app(tmp_path, kind, **options)
            consumer = make_consumer(app, transport, {})
            client = consumer._thread._create_worker_consumer(app.transport)
            waits.append(client._fetch_max_wait_ms)
        assert waits == [1500, 7]

    run(main())


# --- the schema ----------------------------------------------------------------------------------------


def test_upstream_decodes_what_it_hands_on_and_ours_does_not(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        app = make_app(tmp_path, StreamApp)
        consumer = make_consumer(app, BatchTransport, FETCHED)
        ((_, message),) = await messages(consumer)
        ours = PassThroughSchema(allow_empty=True).compile(app)
        event = await ours(message)
        assert event.value == FETCHED
        assert event.message is message
        theirs = app.topic(TOPIC).schema.compile(app, on_key_decode_error=None, on_value_decode_error=None)
        with pytest.raises(Exception):  # noqa: B017, PT011 - a list is no JSON
            await theirs(message, propagate=True)

    run(main())
