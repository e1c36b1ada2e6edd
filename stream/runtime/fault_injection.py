"""Faults on order, for tests: a signal to this process at a named step of a round.

``RISKSTREAM_TEST_FAULT=SIGKILL@changelog_sent:3`` sends SIGKILL to the worker the third time it reaches that
step. Without the variable nothing of this is in the way: the steps call a function that does nothing.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from typing import TYPE_CHECKING, Final

from stream.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FAULT_VARIABLE", "STEPS", "fault_from_environment", "no_fault"]


logger = logging.getLogger(__name__)
FAULT_VARIABLE: Final = "RISKSTREAM_TEST_FAULT"

#: The steps of a round, in their order. ``*_sent`` is after the broker was asked and before it answered;
#: ``part_stored`` is after the first partition's write, where a round has several; ``committed`` is after a
#: commit of source offsets, which may cover several rounds. Only models with profiles have ``requests_sent``.
STEPS: Final = (
    "decided",
    "outputs_sent",
    "requests_sent",
    "outputs_acked",
    "changelog_sent",
    "changelog_acked",
    "part_stored",
    "stored",
    "done",
    "committed",
)

_ORDER: Final = re.compile(r"(SIGKILL|SIGTERM|SIGSTOP)@([a-z_]+):([1-9]\d{0,5})").fullmatch


def no_fault(_step: str) -> None:
    """Do nothing."""


def fault_from_environment() -> Callable[[str], None]:
    """Return what a round calls at each step.

    Raises
    ------
    ConfigError
        The variable is set and says something else than signal@step:count.
    """
    order = os.environ.get(FAULT_VARIABLE)
    if order is None:
        return no_fault
    match = _ORDER(order)
    if match is None or match[2] not in STEPS:
        raise ConfigError(
            f"{FAULT_VARIABLE}: {order!r} is no signal (SIGKILL, SIGTERM, SIGSTOP) @ "
            f"step ({', '.join(STEPS)}) : count"
        )
    number, wanted, left = signal.Signals[match[1]], match[2], int(match[3])
    logger.warning("%s is set: this worker will send itself %s", FAULT_VARIABLE, order)

    def step(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)

    return step
