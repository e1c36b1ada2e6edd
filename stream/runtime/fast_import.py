"""A worker's libraries without what they look for beside themselves."""

from __future__ import annotations

import importlib
import sys
from typing import Final

__all__ = ["import_without_optional"]

_BESIDE: Final = ("sklearn", "pandas")


def import_without_optional(*, drift: bool) -> None:
    """Import LightGBM, and for drift river, as they are where scikit-learn and pandas are not installed.

    A worker asks the one for scores and the other for changes, and what they import beside is half of the
    time that it takes to start: after a crash, half of the time in which nothing is scored. Whoever wants
    scikit-learn or pandas can import them afterwards; what the two libraries have for them does not work in
    this process then.
    """
    hidden = [name for name in _BESIDE if name not in sys.modules]
    # To Python's import system this says that there is no such module.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        importlib.import_module("lightgbm")
        if drift:
            importlib.import_module("river.drift")
    finally:
        for name in hidden:
            del sys.modules[name]
