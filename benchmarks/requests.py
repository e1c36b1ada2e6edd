"""Latency of the stream while clients send hostile score requests: ``riskstream bench requests``.

The worker decides 2,000 transactions a second, first without requests, then with fifty a second that cost
as much as a body may: lists at the limit of size, of values and of depth, valid ones with a hundred
transactions, and bodies that are refused only at their end.
"""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from benchmarks.latency import open_loop, started
from stream.errors import RiskStreamError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.cluster import Cluster
    from benchmarks.contest import Child
    from benchmarks.workload import Workload

__all__ = ["hostile_requests"]

_RATE: Final = 2_000.0
_REQUESTS_PER_SECOND: Final = 50
_CLIENTS: Final = 24
_BODY_BYTES: Final = 1 << 20
_ADDRESS: Final = re.compile(r"scores on (http://\S+)/predict")


def _bodies(workload: Workload) -> list[bytes]:
    """Return requests that cost a worker much."""
    valid = [json.loads(value) for _, _, value in workload.transactions[:100]]
    heavy = [
        item | {"memo": "x" * 1_000, "attributes": {f"a{at}": 0.1 for at in range(60)}} for item in valid
    ]
    wrong_at_the_end = [*heavy[:-1], heavy[-1] | {"currency": "NONE"}]
    return [
        json.dumps(valid).encode(),
        json.dumps(heavy).encode(),
        json.dumps(wrong_at_the_end).encode(),
        b"[" + b"0," * (_BODY_BYTES // 2 - 2) + b"0]",
        b"[" * (_BODY_BYTES - 1),
        b'{"a":' * (_BODY_BYTES // 5 - 1),
        b'[{"transaction_id":"' + b"\\u0041" * (_BODY_BYTES // 6 - 10) + b'"}]',
        b"[" + b"1e999," * (_BODY_BYTES // 6 - 2) + b"1]",
    ]


@contextmanager
def _attack(address: str, bodies: list[bytes]) -> Iterator[Counter[int]]:
    """Send requests at a fixed rate meanwhile; yields their statuses, 0 for none."""
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    def send(body: bytes) -> None:
        request = urllib.request.Request(f"{address}/predict", body)  # noqa: S310 - the worker's own address
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
                response.read()
                statuses[response.status] += 1
        except urllib.error.HTTPError as error:
            statuses[error.code] += 1
        except OSError:
            statuses[0] += 1

    def schedule() -> None:
        begun = time.monotonic()
        with ThreadPoolExecutor(_CLIENTS) as pool:
            number = 0
            while not stop.wait(max(0.0, begun + number / _REQUESTS_PER_SECOND - time.monotonic())):
                pool.submit(send, bodies[number % len(bodies)])
                number += 1
            pool.shutdown(cancel_futures=True)

    thread = threading.Thread(target=schedule)
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join()


def _address_of(child: Child) -> str:
    found = _ADDRESS.search(child.log)
    if found is None:
        raise RiskStreamError("the worker does not say where it serves scores")
    return found[1]


def hostile_requests(
    cluster: Cluster, workload: Workload, folder: Path, seconds: float, rounds: int, say: Any
) -> dict[str, Any]:
    """Measure the latency with and without requests, in turns; returns medians and the statuses."""
    bodies = _bodies(workload)
    statuses: Counter[int] = Counter()
    found: dict[str, list[dict[str, Any]]] = {"calm": [], "attacked": []}
    first, count = 0, int(_RATE * seconds)
    scoring = {"enabled": True, "port": 0}
    with started(cluster, workload, folder, scoring=scoring) as (settings, child):
        address = _address_of(child)
        for number in range(rounds):
            say(f"latency at {_RATE:,.0f}/s, round {number + 1}")
            found["calm"].append(open_loop(cluster, workload, settings, first, _RATE, seconds))
            say(f"with {_REQUESTS_PER_SECOND} hostile requests/s")
            with _attack(address, bodies) as seen:
                found["attacked"].append(
                    open_loop(cluster, workload, settings, first + count, _RATE, seconds)
                )
            statuses += seen
            first += 2 * count
    middle = {
        name: sorted(some, key=lambda item: item["p99"])[len(some) // 2] for name, some in found.items()
    }
    return middle | {"statuses": {str(status): number for status, number in sorted(statuses.items())}}
