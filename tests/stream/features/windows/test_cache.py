"""A cached history is used only while it is the stored one."""

from __future__ import annotations

from stream.features.spec import HISTORY_FEATURES
from stream.features.windows.cache import HistoryCache
from support.histories import HOUR, Engine, Event
from support.window_histories import START


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
