"""Durations on the command line: ``3d``, ``12h``, ``30m``, ``45s``."""

from __future__ import annotations

import re
from typing import Any, Final

import click

__all__ = ["DURATION", "DurationType", "format_duration", "parse_duration"]

_UNIT_MS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000}
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([dhms])", re.ASCII).fullmatch


def parse_duration(text: str) -> int:
    """Return a duration such as ``3d`` or ``1.5h`` in milliseconds.

    Raises
    ------
    ValueError
        Not a number followed by one of d, h, m and s.
    """
    match = _DURATION(text.strip().lower())
    if match is None:
        msg = f"{text!r} is not a duration such as 3d, 12h, 30m or 45s"
        raise ValueError(msg)
    return round(float(match[1]) * _UNIT_MS[match[2]])


def format_duration(milliseconds: int) -> str:
    """Return a duration in the largest unit that divides it: 86,400,000 is ``1d``."""
    for unit, size in _UNIT_MS.items():
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds / 1000:g}s"


class DurationType(click.ParamType):
    """A click type whose value is milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the milliseconds of ``value``, which may already be such."""
        if isinstance(value, int):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION: Final = DurationType()
