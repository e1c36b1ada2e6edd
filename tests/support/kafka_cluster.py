"""Apache Kafka with three brokers on this machine; the first is also the controller."""

from __future__ import annotations

import uuid
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from stream.kafka.local.apache import KafkaBroker
from stream.kafka.local.base import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["three_brokers"]


@contextmanager
def three_brokers(folder: Path, extra_config: Mapping[str, str]) -> Iterator[list[KafkaBroker]]:
    """Run three brokers until the end; any of them leads a client to all.

    Parameters
    ----------
    extra_config
        Properties of every broker.
    """
    controller = f"{HOST}:{free_port()}"
    with ExitStack() as running:
        brokers = []
        for number in (1, 2, 3):
            first, port, data = number == 1, free_port(), folder / f"broker-{number}"
            if not first:
                _join(folder / "broker-1", data, number)
            listener = f"CLIENT://{HOST}:{port}"
            config = {
                "node.id": str(number),
                "process.roles": "broker,controller" if first else "broker",
                "controller.quorum.voters": f"1@{controller}",
                "listeners": f"{listener},CONTROLLER://{controller}" if first else listener,
                "advertised.listeners": listener,
                **extra_config,
            }
            broker = KafkaBroker(port=port, data_dir=data, extra_config=config)
            brokers.append(running.enter_context(broker))
        yield brokers


def _join(first: Path, data: Path, number: int) -> None:
    """Make a broker's data folder one of the first broker's cluster."""
    lines = (first / "storage/meta.properties").read_text(encoding="ascii").splitlines()
    [cluster] = [line for line in lines if line.startswith("cluster.id=")]
    storage = data / "storage"
    storage.mkdir(parents=True)
    directory = uuid.uuid4().hex[:22]
    (storage / "meta.properties").write_text(
        f"version=1\n{cluster}\nnode.id={number}\ndirectory.id=A{directory[1:]}\n", encoding="ascii"
    )
