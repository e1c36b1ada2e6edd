"""A flood on a slow broker: memory stays bounded, the lag is seen, nothing is lost and nothing doubled."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import pytest

from stream.kafka.local.apache import KafkaBroker
from support.helpers import PATIENCE_SECONDS, wait_until
from support.streams import Sent, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

MIB = 1 << 20
#: All at once, and far more than a worker may hold: with the attributes, 60 MB of values alone.
FLOOD = 22_000
#: What a worker may grow by while it works them off. Two rounds, the fetches of four partitions and the stores'
#: write buffers have room in it; the flood, as records in memory, has not.
GROWTH_MIB = 60


def flood() -> Iterator[Sent]:
    rng = random.Random(5)
    filling = ",".join(f'"a{number}":"{"m" * 250}"' for number in range(10))
    for number in range(FLOOD):
        user = f"user-{rng.randrange(20_000)}"
        value = (
            f'{{"transaction_id":"t{number}","user_id":"{user}","event_time":{1_750_000_000_000 + number * 50},'
            f'"amount":"{rng.randrange(1, 90_000) / 100:.2f}","currency":"EUR","channel":"web",'
            f'"transaction_type":"purchase","merchant_id":"m{rng.randrange(40)}","attributes":{{{filling}}}}}'
        )
        yield Sent(user.encode(), value.encode())


@contextmanager
def slowed(broker: KafkaBroker) -> Iterator[None]:
    """Stop the broker for four fifths of the time, a fifth of a second each."""
    end = threading.Event()

    def stop_and_go() -> None:
        while not end.wait(0.04):
            os.kill(broker.pid, signal.SIGSTOP)
            end.wait(0.16)
            os.kill(broker.pid, signal.SIGCONT)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_a_flood_on_a_slow_broker(kafka_tools: None, bundle_folder: Path, tmp_path: Path) -> None:
    with KafkaBroker() as broker:
        stream = Stream(
            broker,
            tmp_path,
            bundle_folder,
            decisions={"features": False},
            kafka={"max_poll_records": 200},
            rocksdb={"write_buffer_mib": 16, "block_cache_mib": 16},
        )
        try:
            records = flood()
            worker = stream.start()
            stream.produce(itertools.islice(records, 500))
            stream.wait_answered()
            process = psutil.Process(worker.process.pid)
            before = process.memory_info().rss
            most = lag = 0.0

            def look() -> bool:
                nonlocal most, lag
                most = max(most, process.memory_info().rss)
                lag = max(lag, worker.metric("riskstream_lag_records"))
                assert worker.status("/healthz") == 200
                return worker.metric("riskstream_transactions_total") >= len(stream.sent)

            worker.process.send_signal(signal.SIGSTOP)  # so that the flood is there, however fast it is
            stream.produce(records)
            with slowed(broker):
                worker.process.send_signal(signal.SIGCONT)
                begun = time.monotonic()
                wait_until(
                    lambda: look() or time.monotonic() > begun + 5, "the flood was not seen", PATIENCE_SECONDS
                )
            wait_until(look, "the flood was not worked off", 2 * PATIENCE_SECONDS)
            stream.wait_answered()
            assert len(stream.sent) == FLOOD
            assert {len(deliveries) for deliveries in stream.decisions().values()} == {1}
            assert lag > FLOOD / 10
            assert (most - before) / MIB < GROWTH_MIB
        finally:
            stream.close()
