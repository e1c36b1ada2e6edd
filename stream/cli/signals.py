"""Ctrl-C and SIGTERM as a condition that a loop can check."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["raise_on_sigterm", "stop_on_signals"]


def raise_on_sigterm() -> None:
    """Make SIGTERM end the program as Ctrl-C does, so that it stops its child processes on the way out."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Give a function that is true once SIGINT or SIGTERM has come; the old handlers come back after."""
    asked = False

    def ask(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
