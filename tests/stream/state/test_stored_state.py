"""State that an earlier commit has written is read, and goes on, to the last bit.

``tests/data/stored-state-a5e3bab.json.gz`` was written by commit a5e3bab: the records of three histories (5, 60
and 600 events) and of an entity's log, then the features and the records after 30 more events. Changelog and
RocksDB hold the same keys and values.
"""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream.events.fields import MS_PER_DAY
from stream.features.profiles.cache import EntityLogs
from stream.features.profiles.log import Waiting
from stream.features.profiles.online import E_SIZE, ProfileReader
from stream.features.profiles.spec import EntityProfile
from stream.features.windows.arrays import OUT_SIZE
from stream.features.windows.cache import HistoryCache
from stream.features.windows.events import HistoryConfig, HistoryEvents
from stream.features.windows.history import advance
from stream.state.store import MemoryStore

FILE = Path(__file__).parents[2] / "data" / "stored-state-a5e3bab.json.gz"
LATENESS_MS = 3 * MS_PER_DAY


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(gzip.decompress(FILE.read_bytes()))
    return loaded


def records(encoded: dict[str, str]) -> dict[bytes, bytes]:
    return {base64.b64decode(key): base64.b64decode(value) for key, value in encoded.items()}


@pytest.mark.parametrize("cached", [False, True])
def test_histories_of_an_earlier_commit_go_on_to_the_bit(written: dict[str, Any], cached: bool) -> None:
    store = MemoryStore(records(written["before"]))
    events = {name: np.array(values, np.int64) for name, values in written["events"].items()}
    events["id_hash"] = events.pop("ident")
    users = [name.encode() for name in written["users"]]
    batch = HistoryEvents(users=users, source=np.full(len(users), 7, np.int64), **events)
    features = np.full((len(events["user"]), OUT_SIZE), np.nan)
    cache = HistoryCache(32 << 20) if cached else None
    result = advance(batch, HistoryConfig(LATENESS_MS), store, features, cache=cache)
    store.write(result.writes)
    expected = np.frombuffer(base64.b64decode(written["features"])).reshape(written["shape"])
    assert result.errors == {}
    assert result.outcome.tolist() == written["outcome"]
    np.testing.assert_array_equal(features, expected)
    assert dict(store) == records(written["after"])


def test_an_entity_log_of_an_earlier_commit_is_read_to_the_bit(written: dict[str, Any]) -> None:
    entity = written["entity"]
    prefix = base64.b64decode(entity["prefix"])
    log = EntityLogs(1 << 20, E_SIZE).of(0, [prefix], MemoryStore(records(entity["records"])))[prefix]
    profile = EntityProfile(
        "merchant",
        windows_days=(1.0, 7.0),
        aggregates=("count", "amount_mean", "user_distinct"),
        label_windows_days=(7.0, 30.0),
        label_aggregates=("fraud_count", "label_count"),
        label_recency=("days_since_last_fraud",),
        label_delay_days=2.0,
    )
    reader = ProfileReader(profile, LATENESS_MS)
    features = np.full(reader.size, np.nan)
    log.read_profile(reader, *entity["asked"], features)
    assert log.error is None
    assert (log.total, log.waiting) == (entity["total"], [Waiting(*entity["waiting"])])
    np.testing.assert_array_equal(features, np.frombuffer(base64.b64decode(entity["features"])))
