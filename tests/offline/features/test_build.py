"""Offline features are the engine's to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.data.table import TransactionTable
from offline.features.build import build_features
from stream.features.spec import MISSING
from stream.features.vector import VectorBuilder
from stream.features.windows.cache import HistoryCache
from support.histories import DAY, HOUR, Engine, Taken
from support.window_histories import LATENESS, REPEATABLE, SPEC, long_history, small_histories, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


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


def check_offline(taken: Sequence[Taken], lateness: int, most: int, ttl: int = 0) -> None:
    engine = Engine(lateness, cache=HistoryCache(), ttl=ttl)
    outcomes: list[str] = []
    rows: list[npt.NDArray[np.float64]] = []
    for batch in split(taken, len(taken), most):
        found, features = engine.take(batch)
        outcomes += found
        rows.append(features)
    table = build_features(table_of(taken), SPEC, allowed_lateness_ms=lateness, user_ttl_ms=ttl)
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


def test_offline_gives_the_same_bits_with_a_time_to_live() -> None:
    phases = [(200, 5 * HOUR), (2, 50 * DAY), (150, HOUR), (1, 200 * DAY), (60, 12 * HOUR)]
    check_offline(long_history(4, phases, users=3), 3 * DAY, 60, ttl=45 * DAY)
