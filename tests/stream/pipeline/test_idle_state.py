"""Idle state is found in slices and deleted; what is used, or may be used again, stays."""

from __future__ import annotations

import random

import pytest

from stream.features.profiles.log import EntityLog, Horizon, Waiting
from stream.features.profiles.online import E_SIZE
from stream.features.windows import records as layout
from stream.pipeline.entity_join.messages import CODES
from stream.pipeline.entity_join.plan import USER_WIDTH
from stream.pipeline.idle_state import SLICE_RECORDS, IdleState
from stream.state.format import entity_prefix, record_key, user_of_key
from support.histories import DAY, HOUR, Engine, Event, Memory
from support.window_histories import START

TTL = 40 * DAY
LATENESS = 3 * DAY
SOURCE = 77
FOREVER = Horizon(10_000 * DAY, 10_000 * DAY)


def scan(memory: Memory, start: bytes) -> list[tuple[bytes, bytes]]:
    return sorted((key, value) for key, value in memory.items() if key >= start)[:SLICE_RECORDS]


def searched(idle: IdleState, memory: Memory, committed: int | None = 10**9) -> dict[str, int]:
    """Search all of a partition's state, apply what is to be deleted, and return the counts."""
    kinds: dict[str, int] = {}
    now = 1_000_000.0
    while True:
        start = idle.start(0, now)
        assert start is not None
        found = idle.forget(0, scan(memory, start), memory, (), committed)
        memory.write(found.writes)
        for kind, count in found.kinds.items():
            kinds[kind] = kinds.get(kind, 0) + count
        now += 10
        if idle.start(0, now) == b"":
            return kinds
        now += 10


def idle_state(newest_ms: int, **ttl: int) -> IdleState:
    """Return a search whose clock shows a partition's latest event."""
    idle = IdleState({CODES[kind]: ms for kind, ms in (ttl or {"user": TTL}).items()}, LATENESS)
    idle.see(0, SOURCE, newest_ms)
    return idle


def users(engine: Engine) -> set[str]:
    return {user_of_key(key)[0].decode() for key in engine.memory}


def test_exactly_the_idle_users_go_with_all_of_their_records() -> None:
    rng = random.Random(3)
    engine = Engine()
    last = {f"u{number}": START + rng.randrange(100) * DAY for number in range(600)}
    for user, time in last.items():
        count = rng.choice([1, 5, 70, 130])
        engine.take([(user, Event(f"t{at}", time - (count - 1 - at) * HOUR, 5, "m")) for at in range(count)])
    clock = max(last.values())
    assert len(engine.memory) > 2 * SLICE_RECORDS / 2
    kinds = searched(idle_state(clock), engine.memory)
    kept = {user for user, time in last.items() if clock - time <= TTL + LATENESS}
    assert users(engine) == kept
    assert kinds == {"user": len(last) - len(kept)}
    assert 0 < len(kept) < len(last)


@pytest.mark.parametrize(
    ("newest", "deleted"), [(TTL + LATENESS, False), (TTL + LATENESS + 1, True), (0, False)]
)
def test_the_bound_is_the_time_to_live_and_the_allowed_lateness(newest: int, deleted: bool) -> None:
    engine = Engine()
    engine.take([("u", Event("t", START, 5))])
    searched(idle_state(START + newest), engine.memory)
    assert (not engine.memory) == deleted


@pytest.mark.parametrize("committed", [None, 0, 1, 2])
def test_a_user_with_an_offset_that_may_be_consumed_again_stays(committed: int | None) -> None:
    engine = Engine(source=SOURCE)
    for user in ("u", "v"):
        engine.take([(user, Event("t", START, 5))])
    searched(idle_state(START + 100 * DAY), engine.memory, committed=committed)
    assert users(engine) == {"u", "v"} - set({None: "", 0: "", 1: "u", 2: "uv"}[committed])
    # An offset of another incarnation cannot come again.
    other = idle_state(START + 100 * DAY)
    other.see(0, SOURCE + 1, START + 100 * DAY)
    searched(other, engine.memory, committed=None)
    assert not engine.memory


def test_slices_are_a_second_apart_and_begin_anew_after_a_rebalance() -> None:
    idle = IdleState({CODES["user"]: TTL}, LATENESS)
    assert idle.start(0, 100.0) is None
    idle.see(0, SOURCE, START)
    assert [idle.start(0, now) for now in (100.0, 100.9, 101.0)] == [b"", None, b""]
    idle.on_rebalanced()
    assert idle.start(0, 900.0) is None
    nothing = IdleState({}, LATENESS)
    nothing.see(0, SOURCE, START)
    assert nothing.start(0, 100.0) is None


def test_users_of_the_micro_batch_and_of_one_that_is_not_stored_yet_stay() -> None:
    engine = Engine()
    for user in ("u", "v", "w"):
        engine.take([(user, Event("t", START, 5))])
    idle = idle_state(START + 100 * DAY)
    assert idle.start(0, 2.0) == b""
    newer = Memory()
    newer.update(engine.memory)
    newer[layout.head_key(b"v")] = b"changed since"
    found = idle.forget(0, scan(engine.memory, b""), newer, {b"u"}, 10**9)
    assert found.prefixes == [b"w"]
    assert found.writes == [(layout.head_key(b"w"), None)]


def log_of(prefix: bytes, width: int, times: list[int], memory: Memory) -> None:
    log = EntityLog(prefix, width)
    for time in times:
        log.add((time, *[1] * (width - 1)))
    memory.write(log.writes(FOREVER))


def test_each_kind_of_entity_has_its_own_time_to_live() -> None:
    memory = Memory()
    prefixes = {kind: entity_prefix(code, 42) for kind, code in CODES.items()}
    for prefix in prefixes.values():
        log_of(prefix, E_SIZE, [START + at for at in range(40)], memory)
    kinds = searched(idle_state(START + 100 * DAY, device=90 * DAY, ip=200 * DAY, card=TTL), memory)
    assert kinds == {"device": 1, "card": 1}
    left = {user_of_key(key)[0] for key in memory}
    assert left == {prefixes["user"], prefixes["merchant"], prefixes["ip"]}


def test_a_user_s_log_goes_too_unless_a_label_waits_in_it() -> None:
    memory = Memory()
    log_of(b"gone", USER_WIDTH, [START] * 20, memory)
    waiting = EntityLog(b"waits", USER_WIDTH)
    waiting.waiting.append(Waiting(1, 1, START + 90 * DAY, 7))
    memory.write(waiting.writes(FOREVER))
    searched(idle_state(START + 100 * DAY), memory)
    assert {user_of_key(key)[0] for key in memory} == {b"waits"}
    searched(idle_state(START + 200 * DAY), memory)
    assert not memory


def test_what_is_no_readable_state_stays() -> None:
    memory = Memory()
    engine = Engine(memory=memory)
    engine.take([("u", Event("t", START, 5))])
    head = memory[layout.head_key(b"u")]
    memory[layout.head_key(b"newer")] = bytes([head[0] + 1]) + head[1:]
    memory[layout.head_key(b"damaged")] = head[:-8]
    memory[record_key(b"empty", ord("P"))] = b""
    memory[b"x"] = b"an offset"
    memory[b"__riskstream\0changelog-id__"] = b"id"
    searched(idle_state(START + 100 * DAY), memory)
    assert b"u" not in {user_of_key(key)[0] for key in memory if len(key) > 6}
    assert len(memory) == 5
