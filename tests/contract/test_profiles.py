"""Models with profiles on real brokers: merchants, devices and labels across the hop."""

from __future__ import annotations

import math
import random
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pytest
from bundles import made_bundle
from profiles import PROFILES, labels_of, table_of, transactions
from streams import Sent, until

from offline.features import build_features

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streams import Stream, Worker

    MakeStream = Callable[..., Stream]

DAY_MS = 86_400_000


@pytest.fixture(scope="session")
def profiled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiled")
    made_bundle(entities=PROFILES).save(folder)
    return folder


def labels_at_rest(worker: Worker) -> int:
    """Return how many labels are where they belong; -1 while some are on their way to entities."""
    events = worker.metrics("riskstream_hop_events_total")

    def counted(kind: str) -> dict[str, float]:
        outcomes = {name: value for name, value in events.items() if f'kind="{kind}"' in name}
        return {name.split('outcome="')[1].rstrip('"'): value for name, value in outcomes.items()}

    labels, notes = counted("label"), counted("note")
    return int(sum(labels.values())) if notes.pop("sent") == sum(notes.values()) else -1


def arrived(worker: Worker, labels: int) -> bool:
    return labels_at_rest(worker) == labels


def sent(value: dict) -> Sent:
    return Sent(value["user_id"].encode(), orjson.dumps(value))


def test_features_with_labels_are_those_of_the_file(make_stream: MakeStream, profiled_folder: Path) -> None:
    """Labels become known at the ends of blocks of two days, and come before what follows."""
    stream = make_stream(bundle=profiled_folder, topics={"partitions": 1})
    rng = random.Random(3)
    rows = transactions(rng, 400)
    block = 2 * DAY_MS
    labels = [one | {"label_time": -(-one["label_time"] // block) * block} for one in labels_of(rng, rows)]
    worker = stream.start()
    order, told = [], 0
    for begin in range(rows[0]["event_time"] // block * block, rows[-1]["event_time"] + 1, block):
        due = [one for one in labels if one["label_time"] == begin]
        told += len(due)
        stream.produce_labels(sent(one) for one in due)
        until(partial(arrived, worker, told), "not every label has arrived")
        order += stream.produce(sent(row) for row in rows if begin <= row["event_time"] < begin + block)
    stream.wait_answered()
    expected = build_features(
        table_of(rows, labels), made_bundle(entities=PROFILES).spec, allowed_lateness_ms=3 * DAY_MS
    )
    decisions = stream.decisions()
    for row, place in enumerate(order):
        (decision,) = decisions[place]
        if expected.outcome[row] < 2:
            values = [math.nan if value is None else value for value in decision["features"].values()]
            np.testing.assert_array_equal(values, expected.matrix[row])
        else:
            assert decision["outcome"] == "duplicate"
    assert worker.metric("riskstream_waiting_cases") == 0
    assert worker.stop() == 0
