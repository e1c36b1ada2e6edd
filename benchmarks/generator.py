"""An open-loop generator: ``python -m benchmarks.generator JSON``; see :class:`Order`.

The due time of each transaction is fixed before the first is sent. The generator sends a delayed transaction
as soon as possible, and its latency counts from the due time: a stall affects every transaction that it
delays.
"""

from __future__ import annotations

import json
import math
import sys
import time
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from confluent_kafka import Producer

from benchmarks.workload import PARTITIONS, Workload, WorkloadSpec
from stream.kafka.partitioner import partition_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

__all__ = ["Order"]

_LEAD_SECONDS = 1.0
_TICK_SECONDS = 0.001
#: Of so many records one's acknowledgement is timed.
_WATCH_EVERY = 8


@dataclass(frozen=True, slots=True)
class Order:
    """What to send.

    Attributes
    ----------
    first, count:
        Which of the workload's transactions.
    rate:
        Transactions a second on average; gaps are exponential, as those of independent senders are.
    linger_ms:
        How long the producer waits for more to send with them.
    hashed:
        Whether partitions are chosen as Kafka's own client does, not as the workload has them.
    """

    bootstrap_servers: str
    topic: str
    folder: str
    first: int
    count: int
    rate: float
    linger_ms: float = 0.0
    hashed: bool = False

    def due_seconds(self) -> npt.NDArray[np.float64]:
        """Return when each is due, in seconds after the start."""
        gaps = np.random.default_rng(self.first).exponential(1 / self.rate, self.count)
        due: npt.NDArray[np.float64] = np.cumsum(gaps)
        return due

    def to_argument(self) -> str:
        """Return the order as a command's argument."""
        return json.dumps(asdict(self))


def main() -> None:
    """Send, and print the monotonic time of the start and how late the sends were."""
    order = Order(**json.loads(sys.argv[1]))
    work = Workload(WorkloadSpec(), Path(order.folder)).transactions[order.first : order.first + order.count]
    if order.hashed:
        work = [(partition_of(key, PARTITIONS, "murmur2"), key, value) for _, key, value in work]
    producer = Producer(
        {
            "bootstrap.servers": order.bootstrap_servers,
            "acks": "all",
            "linger.ms": order.linger_ms,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    producer.list_topics(order.topic)
    start = time.monotonic() + _LEAD_SECONDS
    due = (start + order.due_seconds()).tolist()
    late = 0.0
    acknowledged = array("d")

    def note(number: int) -> Callable[[Any, Any], None]:
        def delivered(error: Any, _message: Any) -> None:
            acknowledged.append(math.inf if error is not None else time.monotonic() - due[number])

        return delivered

    for number, (partition, key, value) in enumerate(work):
        while (ahead := due[number] - time.monotonic()) > 0:
            # Asleep, not polling, and a millisecond at least, whose arrivals then go together: the processor
            # belongs to those who are measured. Each counts from when it was due all the same.
            time.sleep(max(ahead, _TICK_SECONDS))
        late = max(late, -ahead)
        watched = {} if number % _WATCH_EVERY else {"on_delivery": note(number)}
        producer.produce(order.topic, value, key, partition=partition, **watched)
        if not number % _WATCH_EVERY:
            producer.poll(0)
    left = producer.flush(60)
    p50, p99 = np.percentile(np.array(acknowledged), [50, 99]).tolist()
    print(json.dumps({"start": start, "late_seconds": late, "unsent": left, "ack_p50": p50, "ack_p99": p99}))


if __name__ == "__main__":
    main()
