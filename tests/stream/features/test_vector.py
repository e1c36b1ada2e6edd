"""The calendar, and each history feature in its column."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.features.spec import CALENDAR_FEATURES, HISTORY_FEATURES, MISSING
from stream.features.vector import Columns, VectorBuilder
from support.histories import DAY
from support.window_histories import REPEATABLE, SPEC

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
