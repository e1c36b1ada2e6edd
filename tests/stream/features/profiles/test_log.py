"""Logs of entities as they are stored: what is read back, what is forgotten, what is not believed."""

from __future__ import annotations

import random

import numpy as np
import pytest

from stream.features.profiles.cache import EntityLogs
from stream.features.profiles.log import CHUNK, HEAD_KIND, MAX_WAITING, Horizon, Waiting
from stream.features.profiles.online import E_SIZE, L_SIZE, L_UNTIL, L_WHEN
from stream.pipeline.effects import PipelineConfig
from stream.state.format import describe_record, entity_prefix, record_key
from stream.state.store import MemoryStore
from support.bundles import made_bundle
from support.entity_joins import TOPICS, Bus, Worker
from support.profiles import PROFILES, START_MS, transactions

DAY_MS = 86_400_000
NAME = entity_prefix(2, -5)
HORIZON = Horizon(10 * DAY_MS, 5 * DAY_MS)


def grow(logs: EntityLogs, memory: MemoryStore, rng: random.Random, count: int, begin: int = 0):
    """Add transactions and labels, a few at a time; returns the log."""
    for number in range(begin, begin + count):
        log = logs.of(0, [NAME], memory)[NAME]
        time = START_MS + number * DAY_MS // 8
        log.add((time, number, 7, 1000 + number, 0, 5000 + number))
        if rng.random() < 0.7:
            about = rng.randrange(max(0, number - 20), number + 1)
            log.label(
                (time + rng.randrange(DAY_MS), rng.randrange(2), number, time, 1, 0, 1000 + about, about)
            )
        memory.write(log.writes(HORIZON))
        logs.keep(0, [log])
    return logs.of(0, [NAME], memory)[NAME]


def rows(log):
    events, labels = log.events, log.labels
    every = labels.array[: L_SIZE + 1, labels.first : labels.end].copy()
    # What comes after a label that is behind the horizon may be forgotten; no window sees it.
    every[L_UNTIL, every[L_WHEN] <= log.newest - HORIZON.labels_ms] = 0
    return (
        events.array[:E_SIZE, events.first : events.end].tolist(),
        every.tolist(),
        (log.newest, log.total, log.waiting),
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_log_is_read_back_as_it_was(seed: int) -> None:
    rng = random.Random(seed)
    logs, memory = EntityLogs(1 << 20), MemoryStore()
    for begin in range(0, 200, 25):
        log = grow(logs, memory, rng, 25, begin)
        log.waiting = [Waiting(begin, 1, 2, 3)] if begin % 50 else []
        memory.write(log.writes(HORIZON))
        read = EntityLogs(1 << 20).of(0, [NAME], memory)[NAME]
        assert read.error is None
        assert rows(read) == rows(log)
        logs.keep(0, [log])
    kept = log.events.array[0, log.events.first : log.events.end]
    assert kept[CHUNK - 1] > log.newest - HORIZON.events_ms  # no chunk is all behind the horizon
    assert len(memory) == 1 + (log.events.next_chunk - log.events.first_chunk) + (
        log.labels.next_chunk - log.labels.first_chunk
    )


def test_the_oldest_chunks_go_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.features.profiles.log.MAX_CHUNKS", 3)
    wide = Horizon(10_000 * DAY_MS, 10_000 * DAY_MS)
    logs, memory = EntityLogs(1 << 20), MemoryStore()
    dropped = 0
    for number in range(10 * CHUNK + 5):
        log = logs.of(0, [NAME], memory)[NAME]
        log.add((START_MS + number, number, 7, 1000 + number, 0, 5000 + number))
        log.label((START_MS + number, 1, number, START_MS + number, 1, 0, 1000 + number, number))
        memory.write(log.writes(wide))
        dropped += log.dropped
        logs.keep(0, [log])
    read = EntityLogs(1 << 20).of(0, [NAME], memory)[NAME]
    assert read.error is None
    kept = read.events.array[1, read.events.first : read.events.end].tolist()
    assert kept == list(range(7 * CHUNK, 10 * CHUNK + 5))
    assert dropped == 2 * 7  # of transactions, and of labels
    assert read.total == 10 * CHUNK + 5
    assert len(memory) == 1 + 2 * 3


@pytest.mark.parametrize("number", [2**31 - 1, 2**32 - 1, 2**40])
def test_numbers_of_chunks_may_exceed_what_a_key_holds(number: int) -> None:
    memory = MemoryStore()
    log = EntityLogs(1 << 20).of(0, [NAME], memory)[NAME]
    log.events.first_chunk = log.events.next_chunk = number
    for at in range(3 * CHUNK + 2):
        log.add((START_MS + at * DAY_MS, at, 7, 1000 + at, 0, 5000 + at))
    memory.write(log.writes(HORIZON))
    assert rows(EntityLogs(1 << 20).of(0, [NAME], memory)[NAME]) == rows(log)


def test_labels_of_one_transaction_end_where_the_next_is_known() -> None:
    log = EntityLogs(1 << 20).of(0, [NAME], MemoryStore())[NAME]
    for when, offset in ((50, 4), (20, 9), (50, 2), (30, 1)):
        assert log.label((when, 1, offset, 0, 1, 0, 77, 0))
    assert not log.label((20, 1, 9, 0, 1, 0, 77, 0))  # it is there
    assert log.label((10, 0, 5, 0, 1, 0, 78, 0))  # of another one
    until = dict(
        zip(
            map(tuple, log.labels.array[[0, 2], : log.labels.end].T.tolist()),
            log.labels.array[L_UNTIL, : log.labels.end].tolist(),
            strict=True,
        )
    )
    assert until[20, 9] == 30
    assert until[30, 1] == 50
    assert until[50, 2] == 50  # the last of one time counts
    assert until[50, 4] == until[10, 5] == 2**62


@pytest.mark.parametrize("place", range(0, 400, 37))
def test_a_damaged_record_is_not_used_and_says_whose_it_is(place: int) -> None:
    memory = MemoryStore()
    grow(EntityLogs(1 << 20), memory, random.Random(1), 60)
    for key in list(memory):
        whole = memory[key]
        spoilt = bytearray(whole)
        # The first byte is the version: with a small change it is a version to come, and ends the worker.
        spoilt[place % len(whole)] ^= 128 if place % len(whole) == 0 else 1 << (place % 8)
        memory[key] = bytes(spoilt)
        log = EntityLogs(1 << 20).of(0, [NAME], memory)[NAME]
        assert describe_record(key) in str(log.error)
        assert "fffffffffffffffb" in str(log.error)
        del memory[key]
        log = EntityLogs(1 << 20).of(0, [NAME], memory)[NAME]
        assert (log.error is None) == (key == record_key(NAME, HEAD_KIND))
        memory[key] = whole


def test_a_record_of_other_columns_is_not_used() -> None:
    memory = MemoryStore()
    grow(EntityLogs(1 << 20), memory, random.Random(1), 5)
    log = EntityLogs(1 << 20, E_SIZE + 1).of(0, [NAME], memory)[NAME]
    assert "other columns" in str(log.error)


def test_memory_is_bounded_and_what_is_forgotten_is_read_anew() -> None:
    rng, memory = random.Random(2), MemoryStore()
    logs = EntityLogs(1)  # nothing can stay
    assert rows(grow(logs, memory, rng, 100)) == rows(
        grow(EntityLogs(1 << 20), MemoryStore(), random.Random(2), 100)
    )
    assert logs.nbytes == 0


def test_an_entity_whose_state_is_damaged_stops_nobody() -> None:
    """Its customers are decided without its features, and what is stored stays as it is."""
    bus, rng = Bus(1), random.Random(4)
    bundle, config = made_bundle(entities=PROFILES), PipelineConfig(decision_features=True)
    for row in transactions(rng, 60):
        bus.produce(TOPICS.transactions, row["user_id"], row)
    worker = Worker(bus, bundle, config, START_MS + 100 * DAY_MS)
    worker.round([(TOPICS.transactions, 0)], 40)
    while waiting := [at for at in worker.waiting() if at[0] != TOPICS.transactions]:
        worker.round(waiting, 50)
    damaged = [key for key in bus.stores[0] if key[:2] == b"\xff\x02" and key[-5:-4] == b"P"]
    for key in damaged:
        bus.stores[0][key] = bus.stores[0][key][:-8]
    before = {key: bus.stores[0][key] for key in damaged}
    worker = Worker(bus, bundle, config, START_MS + 100 * DAY_MS)
    while waiting := worker.waiting():
        worker.round(waiting, 50)
    assert bus.join_counts["request", "unusable_state"] > 0
    assert {key: bus.stores[0][key] for key in damaged} == before
    assert worker.pipeline.backlog == 0
    assert len({message.value for _, message in bus.decisions}) == 60


def test_only_so_many_labels_wait_for_a_user() -> None:
    bus = Bus(1)
    for number in range(MAX_WAITING + 10):
        label = {"transaction_id": f"t{number}", "user_id": "u", "is_fraud": True}
        bus.produce(TOPICS.labels, "u", label | {"event_time": START_MS, "label_time": START_MS})
    worker = Worker(bus, made_bundle(entities=PROFILES), PipelineConfig(), START_MS + DAY_MS)
    while waiting := worker.waiting():
        worker.round(waiting, 100)
    assert bus.join_counts["label", "waiting"] == MAX_WAITING + 10
    assert bus.join_counts["label", "expired"] == 10
    head = bus.stores[0][record_key(b"u", HEAD_KIND)]
    assert len(np.frombuffer(head, np.int64)) == 2 + 9 + 4 * MAX_WAITING
