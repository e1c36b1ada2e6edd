"""The watchdog's judgement, with time as an argument."""

from __future__ import annotations

from stream.monitoring.watchdog import Liveness


def test_work_without_progress_is_a_stall() -> None:
    live = Liveness(10, moved_at=100.0)
    assert live.see(101, 5, waiting=True) == 0  # the first look counts as progress
    assert live.see(105, 5, waiting=True) == 4
    assert live.see(120, 5, waiting=True) == 19
    assert live.see(121, 6, waiting=True) == 0


def test_no_work_is_no_stall() -> None:
    live = Liveness(10, moved_at=0.0)
    live.see(1, 5, waiting=True)
    assert live.see(100, 5, waiting=False) == 0
    assert live.see(103, 5, waiting=True) == 3  # from when the work came
