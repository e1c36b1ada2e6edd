"""Fault injection for tests: a signal to this process at a named step of a micro-batch.

``RISKSTREAM_TEST_FAULT=SIGKILL@changelog_sent:3`` sends SIGKILL to the worker the third time it reaches that
step. Without the variable the steps call a function that does nothing.
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

#: The steps of a micro-batch, in order. ``*_sent`` comes after the request to the broker and before its
#: response; ``part_stored`` comes after the first partition's write, if there are several; ``committed``
#: comes after a commit of source offsets, which may cover several micro-batches. Only models with entity
#: profiles reach ``requests_sent``.
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
    """Return the function that a micro-batch calls at each step.

    Raises
    ------
    ConfigError
        The variable is set and is not signal@step:count.
    """
    order = os.environ.get(FAULT_VARIABLE)
    if order is None:
        return no_fault
    match = _ORDER(order)
    if match is None or match[2] not in STEPS:
        raise ConfigError(
            f"{FAULT_VARIABLE}: {order!r} is not signal@step:count with signal SIGKILL, SIGTERM "
            f"or SIGSTOP and step {', '.join(STEPS)}"
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
