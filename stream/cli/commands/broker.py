"""``riskstream broker``: a broker on this machine, in the foreground."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from stream.errors import BrokerError

if TYPE_CHECKING:
    from types import FrameType

    from stream.kafka.local.base import Broker

__all__ = ["broker", "start"]


#: How often the child is looked at; a signal ends the wait at once.
_WATCH_SECONDS: Final = 0.5


@click.group()
def broker() -> None:
    """Run a broker on this machine, for development."""


@broker.command()
@click.option(
    "--kind",
    type=click.Choice(["embedded", "kafka"]),
    default="embedded",
    show_default=True,
    help="embedded: in memory, nothing to install. kafka: Apache Kafka, needs Java 17 and Maven.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=9092,
    show_default=True,
    help="Port; 0 picks a free port.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep Apache Kafka's data in this folder; by default it is deleted at exit.",
)
def start(kind: str, port: int, data_dir: Path | None) -> None:
    """Run a broker until Ctrl-C or SIGTERM.

    Prints "ready: 127.0.0.1:PORT" once clients may come. It listens on 127.0.0.1 only, without passwords.
    """
    if data_dir is not None and kind != "kafka":
        raise click.UsageError(
            "--data-dir requires --kind kafka; the embedded broker keeps its data in memory"
        )

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        with _broker(kind, port, data_dir) as running:
            print(f"ready: {running.bootstrap_servers}", flush=True)
            while running.alive:
                time.sleep(_WATCH_SECONDS)
            raise BrokerError(f"the {kind} broker exited unexpectedly")
    except KeyboardInterrupt:
        return


def _broker(kind: str, port: int, data_dir: Path | None) -> Broker:
    from stream.kafka.local.apache import KafkaBroker
    from stream.kafka.local.embedded import EmbeddedBroker

    return KafkaBroker(port=port, data_dir=data_dir) if kind == "kafka" else EmbeddedBroker(port=port)
