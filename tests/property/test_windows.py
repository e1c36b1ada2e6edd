"""Windows are exact: the engine, the offline builder and a slow plain-Python oracle agree to the bit."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
from histories import DAY, HOUR, Engine, Event, Taken, User, disagreements
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offline.data.table import TransactionTable
from offline.features.build import build_features
from stream.features.spec import CALENDAR_FEATURES, HISTORY_FEATURES, MISSING, FeatureSpec
from stream.features.vector import Columns, VectorBuilder
from stream.features.windows import records as layout
from stream.features.windows import sums as exact
from stream.features.windows.arrays import (
    CHUNK,
    DUPLICATE,
    H_FIRST_CHUNK,
    H_HEAD,
    H_LIVE,
    H_NEXT_CHUNK,
    H_PENDING,
    HEAD,
    REPLAYED,
    SEGMENT,
    new_header,
)
from stream.features.windows.cache import HistoryCache
from stream.features.windows.sums import ACC_SIZE, _add_amount
from stream.state.format import OK, user_of_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

#: The same examples in every run: what fails here fails everywhere.
REPEATABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
START = 1_700_000_000_000
MOST = 10**15
LATENESS = [0, HOUR, 3 * DAY, 30 * DAY]
EDGES = [0, 1, HOUR - 1, HOUR, HOUR + 1, DAY - 1, DAY, DAY + 1, 7 * DAY, 7 * DAY + 1, 30 * DAY - 1, 30 * DAY]
EDGES += [30 * DAY + 1, 33 * DAY, 33 * DAY + 1, 60 * DAY, 61 * DAY, 100 * DAY]


# --- histories -----------------------------------------------------------------------------------------

amounts = st.one_of(
    st.sampled_from([0, 1, 500, MOST - 1, MOST]), st.integers(0, 10_000), st.integers(0, MOST)
)
steps = st.one_of(
    st.sampled_from(EDGES), st.sampled_from(EDGES).map(lambda edge: -edge), st.integers(-5 * DAY, 5 * DAY)
)


@st.composite
def small_histories(draw: st.DrawFn) -> list[Taken]:
    """Few events, each drawn by itself: edges of windows, ties, ids and merchants that come again."""
    times = {"a": START, "b": START}
    taken: list[Taken] = []
    for user, step, amount, merchant, id_hash, units in draw(
        st.lists(
            st.tuples(
                st.sampled_from("aab"),
                steps,
                amounts,
                st.sampled_from([None, "m1", "m2", "m3"]),
                st.integers(0, 60),
                st.sampled_from([100, 1]),
            ),
            max_size=45,
        )
    ):
        time = max(0, times[user] + step)
        times[user] = max(times[user], time)
        taken.append((user, Event(f"t{id_hash}", time, amount, merchant, units)))
    return taken


def long_history(seed: int, phases: Sequence[tuple[int, int]], users: int = 1) -> list[Taken]:
    """Many events: for each phase ``(events, mean gap)``; late ones, ties and repeated ids among them."""
    rng = random.Random(seed)
    merchants = rng.choice([3, 40, 400])
    clock = dict.fromkeys(range(users), START)
    taken: list[Taken] = []
    for count, gap in phases:
        for _ in range(count):
            user = rng.randrange(users)
            clock[user] += rng.randrange(2 * gap + 1) if rng.random() > 0.05 else 0
            time, kind = clock[user], rng.random()
            if kind < 0.05:
                time -= rng.randrange(2 * DAY)
            elif kind < 0.08:
                time -= rng.choice(EDGES)
            id_hash = f"t{len(taken)}"
            if rng.random() < 0.03 and taken:
                id_hash = rng.choice(taken[-200:])[1].transaction_id
            amount = rng.choice([rng.randrange(10_000), rng.randrange(MOST + 1), MOST, 0, 500])
            merchant = rng.choice([None, f"m{rng.randrange(merchants)}", f"m{rng.randrange(merchants)}"])
            taken.append(
                (f"user-{user}", Event(id_hash, max(0, time), amount, merchant, rng.choice([100, 1])))
            )
    return taken


def split(taken: Sequence[Taken], seed: int, most: int) -> list[Sequence[Taken]]:
    """Cut into batches of random sizes up to ``most``."""
    rng = random.Random(seed)
    batches, begin = [], 0
    while begin < len(taken):
        end = begin + rng.randint(1, most)
        batches.append(taken[begin:end])
        begin = end
    return batches


def check_against_oracle(
    taken: Sequence[Taken], lateness: int, batches: Sequence[Sequence[Taken]]
) -> tuple[Engine, set[str]]:
    # A workspace that long histories outgrow, so that residents come, stay and go.
    cache = HistoryCache(1 << 18) if len(batches) % 2 else None
    engine, users = Engine(lateness, cache=cache), {}
    seen: set[str] = set()
    place = 0
    for batch in batches:
        outcomes, features = engine.take(batch)
        for (user, event), outcome, row in zip(batch, outcomes, features, strict=True):
            expected, wanted = users.setdefault(user, User(lateness)).take(event)
            assert outcome == expected, f"event {place}"
            if wanted is None:
                assert (row == -99.0).all(), f"event {place} wrote features"
            else:
                assert disagreements(row, wanted) == {}, f"event {place}"
            seen.add(outcome)
            place += 1
    assert place == len(taken)
    check_no_orphans(engine)
    return engine, seen


def check_no_orphans(engine: Engine) -> None:
    """Every record in the store is one that its user's head names, and the other way round."""
    wanted: set[bytes] = set()
    for key in engine.memory:
        user, kind, _ = user_of_key(key)
        if kind != "H":
            continue
        wanted.add(key)
        first, end = (int(header(engine, user)[at]) for at in (H_FIRST_CHUNK, H_NEXT_CHUNK))
        wanted |= {layout.chunk_key(user, number) for number in range(first, end)}
        if end > first:
            segments = range(first // SEGMENT, (end - 1) // SEGMENT + 1)
            wanted |= {layout.live_key(user), *(layout.segment_key(user, number) for number in segments)}
    assert set(engine.memory) == wanted


def parts(engine: Engine, user: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[int]]:
    """Return the header, the head's events and the lost live bits of a stored head."""
    hdr, head, pending = (
        new_header(),
        np.zeros((4, HEAD), np.int64),
        np.zeros(CHUNK + 1, np.int64),
    )
    words = np.frombuffer(engine.memory[layout.head_key(user)], np.int64)
    assert layout.unpack_head(words, 0, len(words), hdr, head, pending) == OK
    return hdr, head[:, : hdr[H_HEAD]], pending[: hdr[H_PENDING]].tolist()


def header(engine: Engine, user: bytes) -> npt.NDArray[np.int64]:
    return parts(engine, user)[0]


def content(engine: Engine, user: bytes) -> tuple[list[int], list[list[int]], list[bool]]:
    """Return what a user's records say: header (chunk numbers apart), kept events, which are live."""
    hdr, head, pending = parts(engine, user)
    first, end = int(hdr[H_FIRST_CHUNK]), int(hdr[H_NEXT_CHUNK])
    numbers = range(first, end)
    chunks = [layout.unpack_chunk(engine.memory[layout.chunk_key(user, number)], b"") for number in numbers]
    live: list[bool] = []
    if chunks:
        start, bitmaps = layout.unpack_live(engine.memory[layout.live_key(user)], b"")
        for number in numbers:
            bits = int(bitmaps[number - start])
            live += [bool(bits >> at & 1) and number * CHUNK + at not in pending for at in range(CHUNK)]
    live += [bool(int(hdr[H_LIVE]) >> at & 1) for at in range(head.shape[1])]
    return hdr[:H_FIRST_CHUNK].tolist(), np.concatenate([*chunks, head], axis=1).tolist(), live


# --- (a) the engine against the oracle -----------------------------------------------------------------


@REPEATABLE
@given(small_histories(), st.sampled_from(LATENESS), st.integers(0, 9), st.sampled_from([1, 5, 50]))
def test_features_are_those_of_the_oracle(taken: list[Taken], lateness: int, seed: int, most: int) -> None:
    check_against_oracle(taken, lateness, split(taken, seed, most))


@settings(REPEATABLE, max_examples=25)
@given(
    st.integers(0, 10**9),
    st.lists(
        st.tuples(st.integers(1, 90), st.sampled_from([1_000, HOUR, 10 * HOUR, 3 * DAY])),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(LATENESS),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 10, 200]),
)
def test_features_of_middling_histories_are_those_of_the_oracle(
    seed: int, phases: list[tuple[int, int]], lateness: int, users: int, most: int
) -> None:
    taken = long_history(seed, phases, users)
    check_against_oracle(taken, lateness, split(taken, seed, most))


#: By name: seed, phases, largest batch. Gaps are chosen so that 30 days hold more than a segment's 1,024.
LONG = {
    "one batch an event": (1, [(1_250, 20 * 60_000)], 1),
    "small batches": (2, [(1_300, 25 * 60_000)], 40),
    "large batches": (3, [(1_350, 30 * 60_000)], 700),
    "chunks come and go": (4, [(200, HOUR), (2, 40 * DAY), (150, HOUR), (1, 200 * DAY), (60, 2 * HOUR)], 17),
    "segments come and go": (5, [(1_200, 10 * 60_000), (2, 50 * DAY), (100, HOUR)], 90),
    "a window that slides": (6, [(900, 3 * HOUR)], 60),
}


@pytest.mark.parametrize("name", LONG)
def test_features_of_long_histories_are_those_of_the_oracle(name: str) -> None:
    seed, phases, most = LONG[name]
    taken = long_history(seed, phases)
    engine, seen = check_against_oracle(taken, 3 * DAY, split(taken, seed, most))
    assert seen == {"scored", "late", "duplicate"}
    most_kept = max(
        sum(1 for _, event in taken[:at] if event.time > taken[at][1].time - 30 * DAY)
        for at in range(len(taken))
    )
    if "slides" in name:
        assert engine.memory.numbers("user-0", "C")[0] > 2, "no chunk was forgotten"
    elif "chunks" not in name:
        assert most_kept > CHUNK * SEGMENT, "the history does not fill a segment"


def test_a_user_goes_from_chunks_back_to_none() -> None:
    engine = Engine()
    kinds: list[tuple[int, int, int]] = []
    oracle = User(engine.lateness)
    for count, step in ((1_100, 10 * 60_000), (1, 100 * DAY), (63, HOUR), (65, HOUR), (1, 300 * DAY)):
        time = (oracle.applied[-1].time if oracle.applied else START) + step
        taken = [
            ("u", Event(f"{len(oracle.applied) + at}", time + at * step, at, f"m{at % 5}"))
            for at in range(count)
        ]
        for batch in split(taken, count, 150):
            _, features = engine.take(batch)
            for (_, event), row in zip(batch, features, strict=True):
                assert disagreements(row, oracle.take(event)[1] or {}) == {}
        kinds.append((*(len(engine.memory.numbers("u", kind)) for kind in "CSL"),))
        check_no_orphans(engine)
    assert kinds == [(34, 2, 1), (0, 0, 0), (2, 1, 1), (4, 1, 1), (0, 0, 0)]
    assert list(engine.memory) == [layout.head_key(b"u")]


@pytest.mark.parametrize("batch", [1, 7, 500])
def test_heads_are_short_once_there_are_chunks(batch: int) -> None:
    """What is written with every event: up to 63 events while there is nothing else, up to 31 beside chunks."""
    engine = Engine()
    taken = [("u", Event(str(at), START + at * HOUR, at)) for at in range(300)]
    longest = {False: 0, True: 0}
    for begin in range(0, len(taken), batch):
        engine.take(taken[begin : begin + batch])
        held = parts(engine, b"u")[1].shape[1]
        chunks = bool(engine.memory.numbers("u", "C"))
        longest[chunks] = max(longest[chunks], held)
    assert longest[True] == (31 if batch == 1 else longest[True]) < CHUNK
    assert longest[False] < HEAD
    assert longest[False] == (63 if batch == 1 else longest[False])


def test_forgotten_within_one_batch_leaves_no_record() -> None:
    """A batch that seals more than a segment and outlives it, as a file replayed at full speed does."""
    engine = Engine(lateness=0)
    engine.take([("u", Event(f"a{at}", START + at, 1)) for at in range(5 * CHUNK)])
    assert engine.memory.numbers("u", "S") == [0]
    engine.take([("u", Event(f"b{at}", START + at * DAY // 20, 1)) for at in range(60 * CHUNK)])
    assert engine.memory.numbers("u", "C")[0] > SEGMENT
    check_no_orphans(engine)


# --- replays, and events that are not to be learnt -----------------------------------------------------


@settings(REPEATABLE, max_examples=30)
@given(small_histories(), st.integers(0, 9), st.sampled_from([1, 7, 50]))
def test_a_replayed_batch_changes_nothing(taken: list[Taken], seed: int, most: int) -> None:
    engine = Engine()
    for batch in split(taken, seed, most):
        offset = engine.next_offset
        first, _ = engine.take(batch)
        stored = dict(engine.memory)
        again, features = engine.decide(batch, offset)
        assert again.writes == []
        assert (features == -99.0).all()
        for before, code in zip(first, again.outcome.tolist(), strict=True):
            # A duplicate leaves nothing in the state by which its record could be recognised.
            assert code == REPLAYED or (before == "duplicate" and code == DUPLICATE)
        assert engine.memory == stored


def test_a_replayed_batch_of_a_long_history_changes_nothing() -> None:
    taken = long_history(11, [(1_200, 20 * 60_000), (1, 80 * DAY), (80, HOUR)])
    engine = Engine()
    for batch in split(taken, 11, 200):
        offset = engine.next_offset
        outcomes, _ = engine.take(batch)
        again, _ = engine.decide(batch, offset)
        assert again.writes == []
        assert {
            code for code, was in zip(again.outcome.tolist(), outcomes, strict=True) if was != "duplicate"
        } == {REPLAYED}


def test_a_replay_that_reaches_further_takes_the_rest() -> None:
    """After a crash a fetch begins at the last commit and may hold more than the batch that was cut off."""
    taken = long_history(12, [(400, HOUR)], users=3)
    whole, crashed = Engine(), Engine()
    for batch in split(taken, 1, 60):
        whole.take(batch)
    for begin in range(0, len(taken), 50):
        crashed.take(taken[begin : begin + 50])
        crashed.next_offset -= 20 if begin else 0
        crashed.take(taken[crashed.next_offset : begin + 50])
    for user in ("user-0", "user-1", "user-2"):
        assert content(crashed, user.encode()) == content(whole, user.encode())


def test_offsets_of_another_source_are_not_compared() -> None:
    taken = long_history(13, [(60, HOUR)])
    engine = Engine()
    engine.take(taken[:40])
    engine.source, engine.next_offset = 78, 0
    result, _ = engine.decide(taken[40:], 0)
    assert result.other_source.sum() == 1
    assert REPLAYED not in result.outcome
    outcomes, _ = engine.take(taken[40:])
    assert "scored" in outcomes
    assert engine.decide(taken[40:], 0)[0].other_source.sum() == 0


@settings(REPEATABLE, max_examples=30)
@given(small_histories(), small_histories())
def test_what_is_not_learnt_leaves_no_trace(taken: list[Taken], probe: list[Taken]) -> None:
    engine = Engine()
    if taken:
        engine.take(taken)
    stored = dict(engine.memory)
    result, features = engine.decide(probe, engine.next_offset, learn=False)
    assert result.writes == []
    assert engine.memory == stored
    for place, item in enumerate(probe):
        alone, row = engine.decide([item], engine.next_offset + place, learn=False)
        assert alone.outcome[0] == result.outcome[place]
        np.testing.assert_array_equal(row[0], features[place])


def test_what_is_not_learnt_leaves_no_trace_in_a_long_history() -> None:
    taken = long_history(14, [(1_150, 20 * 60_000)])
    engine = Engine()
    for batch in split(taken, 14, 300):
        stored = dict(engine.memory)
        result, probed = engine.decide(batch[:5], engine.next_offset, learn=False)
        assert result.writes == []
        assert engine.memory == stored
        _, features = engine.take(batch)
        np.testing.assert_array_equal(probed[0], features[0])


# --- (b) how a stream is cut into batches leaves no trace ----------------------------------------------


@REPEATABLE
@given(small_histories(), st.integers(0, 9))
def test_splits_give_the_same_state(taken: list[Taken], seed: int) -> None:
    engines = []
    for most in (1, 4, 100):
        engine = Engine()
        for batch in split(taken, seed, most):
            engine.take(batch)
        engines.append(engine)
    for engine in engines[1:]:
        for user in {user for user, _ in taken}:
            assert content(engine, user.encode()) == content(engines[0], user.encode())
            if not engine.memory.numbers(user, "C") and not engines[0].memory.numbers(user, "C"):
                fixed = [H_FIRST_CHUNK, H_NEXT_CHUNK]
                if (header(engine, user.encode())[fixed] == header(engines[0], user.encode())[fixed]).all():
                    key = layout.head_key(user.encode())
                    assert engine.memory[key] == engines[0].memory[key]


@settings(REPEATABLE, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([HOUR, 6 * HOUR, 2 * DAY]), st.integers(20, 31))
def test_splits_give_the_same_bytes_to_users_without_chunks(seed: int, gap: int, count: int) -> None:
    taken = long_history(seed, [(count, gap)])
    stored = []
    for most in (1, 5, 100):
        engine = Engine()
        for batch in split(taken, seed, most):
            engine.take(batch)
        stored.append(engine.memory)
    assert stored[0] == stored[1] == stored[2]


@pytest.mark.parametrize("name", ["small batches", "chunks come and go", "a window that slides"])
def test_splits_of_long_histories_give_the_same_state(name: str) -> None:
    seed, phases, _ = LONG[name]
    taken = long_history(seed, phases)
    contents = []
    for most in (1, 33, 500):
        engine = Engine()
        for batch in split(taken, seed, most):
            engine.take(batch)
        check_no_orphans(engine)
        contents.append(content(engine, b"user-0"))
    assert contents[0] == contents[1] == contents[2]


# --- (c) offline is the same to the bit ----------------------------------------------------------------


def table_of(taken: Sequence[Taken]) -> TransactionTable:
    def texts(values: Sequence[str | None]) -> npt.NDArray[np.object_]:
        column = np.empty(len(values), np.object_)
        column[:] = values
        return column

    def numbers(values: Sequence[int]) -> npt.NDArray[np.int64]:
        return np.array(values, np.int64)

    events = [event for _, event in taken]
    return TransactionTable(
        transaction_id=texts([event.transaction_id for event in events]),
        user_id=texts([user for user, _ in taken]),
        channel=texts(["web"] * len(events)),
        transaction_type=texts(["purchase"] * len(events)),
        currency=texts([{100: "EUR", 1: "JPY"}[event.units] for event in events]),
        event_time_ms=numbers([event.time for event in events]),
        amount_minor=numbers([event.amount for event in events]),
        minor_units=numbers([event.units for event in events]),
        pre_balance_minor=np.full(len(events), MISSING),
        post_balance_minor=np.full(len(events), MISSING),
        merchant_id=texts([event.merchant for event in events]),
    )


SPEC = FeatureSpec({"channel": ("web",), "transaction_type": ("purchase",)})


def check_offline(taken: Sequence[Taken], lateness: int, most: int) -> None:
    engine = Engine(lateness, cache=HistoryCache())
    outcomes: list[str] = []
    rows: list[npt.NDArray[np.float64]] = []
    for batch in split(taken, len(taken), most):
        found, features = engine.take(batch)
        outcomes += found
        rows.append(features)
    table = build_features(table_of(taken), SPEC, allowed_lateness_ms=lateness)
    assert [("scored", "late", "duplicate", "rejected")[code] for code in table.outcome.tolist()] == outcomes
    offline = VectorBuilder.history(table.matrix)
    online = np.concatenate(rows) if rows else np.empty(offline.shape)
    taken_rows = np.array([outcome != "duplicate" for outcome in outcomes], np.bool_)
    np.testing.assert_array_equal(
        offline[taken_rows].view(np.int64),
        np.where(np.isnan(online), np.nan, online)[taken_rows].view(np.int64),
    )
    assert np.isnan(table.matrix[~taken_rows]).all()


@REPEATABLE
@given(small_histories().filter(bool), st.sampled_from(LATENESS))
def test_offline_gives_the_same_bits(taken: list[Taken], lateness: int) -> None:
    check_offline(taken, lateness, 10)


@pytest.mark.parametrize("lateness", [*LATENESS, 300 * DAY])
def test_offline_gives_the_same_bits_for_long_histories(lateness: int) -> None:
    phases = [(1_500, 20 * 60_000), (3, 30 * DAY), (700, 5 * HOUR), (1, 200 * DAY), (300, HOUR)]
    check_offline(long_history(lateness % 97, phases, users=2), lateness, 250)


# --- (d) exact sums ------------------------------------------------------------------------------------

repeated = st.lists(st.tuples(amounts, st.integers(1, 2**30)), min_size=1, max_size=8)


def limbs(values: list[tuple[int, int]]) -> tuple[int, list[int], list[int]]:
    """Return count, the two limbs of the sum and the four of the sum of squares, as the kernel adds them."""
    acc = np.zeros((1, ACC_SIZE), np.int64)
    totals = np.zeros(ACC_SIZE, np.int64)
    for amount, times in values:
        acc[:] = 0
        _add_amount(acc, 0, amount)
        totals += acc[0] * times
    found = totals.tolist()
    return found[0], found[1:3], found[3:7]


@REPEATABLE
@given(repeated)
def test_sums_means_and_spreads_are_those_of_integers(values: list[tuple[int, int]]) -> None:
    count, sums, squares = limbs(values)
    total = sum(amount * times for amount, times in values)
    total_squares = sum(amount * amount * times for amount, times in values)
    assert count == sum(times for _, times in values)
    assert exact.sum_of(*sums) == float(total)
    assert exact.mean_of(count, *sums) == float(total) / float(count)
    numerator = count * total_squares - total**2
    spread = exact.std_of(count, *sums, *squares)
    if count < 2:
        assert math.isnan(spread)
    else:
        assert spread == math.sqrt(float(numerator) / (float(count) * float(count - 1)))


@REPEATABLE
@given(st.integers(1, 200), st.integers(0, 200), st.integers(-3, 3))
def test_floats_are_the_nearest_ties_to_even(high_bit: int, low_bit: int, nudge: int) -> None:
    value = max(0, (1 << high_bit) + (1 << min(low_bit, high_bit)) + nudge)
    carried = np.array([value >> (25 * at) & (2**25 - 1) for at in range(10)], np.int64)
    assert exact.limbs_to_float(carried, 10) == float(value)


@REPEATABLE
@given(st.integers(0, 2**250))
def test_floats_are_the_nearest(value: int) -> None:
    carried = np.array([value >> (25 * at) & (2**25 - 1) for at in range(12)], np.int64)
    assert exact.limbs_to_float(carried, 12) == float(value)


def test_nothing_has_no_mean_and_no_spread() -> None:
    assert exact.sum_of(0, 0) == 0.0
    assert math.isnan(exact.mean_of(0, 0, 0))
    assert math.isnan(exact.std_of(0, 0, 0, 0, 0, 0, 0))
    assert math.isnan(exact.std_of(1, 5, 0, 25, 0, 0, 0))
    assert exact.std_of(2, 10, 0, 50, 0, 0, 0) == 0.0


# --- (e) the calendar ----------------------------------------------------------------------------------


@settings(REPEATABLE, max_examples=100)
@given(
    st.lists(
        st.one_of(
            st.integers(0, 253_402_300_799_999),
            st.dates(datetime(1970, 1, 1).date(), datetime(9999, 12, 31).date()).map(  # noqa: DTZ001
                lambda day: (day.toordinal() - 719_163) * DAY
            ),
            st.tuples(st.integers(1970, 9998), st.integers(1, 12)).map(
                lambda at: int(datetime(*at, 1, tzinfo=UTC).timestamp()) * 1000 - 1 if at != (1970, 1) else 0
            ),
        ),
        min_size=1,
    )
)
def test_the_calendar_is_that_of_datetime(times: list[int]) -> None:
    count = len(times)
    whole = np.zeros(count, np.int64)
    builder = VectorBuilder(SPEC)
    matrix = builder.empty(count)
    builder.fill(
        Columns(
            np.array(times), whole, whole + 100, whole + MISSING, whole + MISSING,
            {"channel": [None] * count, "transaction_type": ["purchase"] * count},
        ),
        matrix,
    )  # fmt: skip
    places = [SPEC.names.index(name) for name in CALENDAR_FEATURES]
    for time, row in zip(times, matrix[:, places].tolist(), strict=True):
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time)
        last = moment.month == 12 and moment.day == 31
        last = last or (moment.month != 12 and (moment + timedelta(days=1)).month != moment.month)
        assert row == [moment.hour, moment.weekday(), moment.weekday() >= 5, last]


def test_every_history_feature_has_its_column() -> None:
    builder = VectorBuilder(SPEC)
    matrix = builder.empty(2)
    builder.history(matrix)[:] = np.arange(len(HISTORY_FEATURES))
    for place, name in enumerate(HISTORY_FEATURES):
        assert (matrix[:, SPEC.names.index(name)] == place).all()


def test_a_resident_is_not_believed_once_another_has_written_the_user_s_state() -> None:
    """As after a rebalance there and back: what this worker still has in memory is out of date."""
    here, there = Engine(cache=HistoryCache()), Engine(cache=HistoryCache())
    there.memory = here.memory
    first = [("u", Event(f"a{number}", START + number * HOUR, 100, "m")) for number in range(80)]
    second = [("u", Event(f"b{number}", START + (80 + number) * HOUR, 100, "m")) for number in range(50)]
    here.take(first)
    there.next_offset = here.next_offset
    there.take(second)
    here.next_offset = there.next_offset
    _, features = here.take([("u", Event("last", START + 130 * HOUR, 100, "m"))])
    assert dict(zip(HISTORY_FEATURES, features[0].tolist(), strict=True))["transaction_count_30d"] == 131


def test_a_copy_with_a_time_far_ahead_is_a_duplicate_while_the_original_is_remembered() -> None:
    """Remembered is what lies within the horizon of the newest event before the copy, not of the copy."""
    engine = Engine()
    engine.take([("user", Event(f"t{at}", at * HOUR, 5, "m")) for at in range(100)])
    copy = Event("t3", 36 * DAY, 5, "m")
    assert engine.take([("user", copy)])[0] == ["duplicate"]
