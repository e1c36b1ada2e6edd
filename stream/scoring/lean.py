"""LightGBM without what it looks for beside itself."""

from __future__ import annotations

import importlib
import sys
from typing import Final

__all__ = ["import_lightgbm_alone"]

_BESIDE: Final = ("sklearn", "pandas")


def import_lightgbm_alone() -> None:
    """Import LightGBM as it is where scikit-learn and pandas are not installed.

    A worker asks a booster for scores and nothing else, and the two are half of the time that it takes to
    start: after a crash, half of the time in which nothing is scored. Whoever wants them can import them
    afterwards; LightGBM's own classes and arguments for them do not work in this process then.
    """
    if "lightgbm" in sys.modules:
        return
    hidden = [name for name in _BESIDE if name not in sys.modules]
    # To Python's import system this says that there is no such module.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        importlib.import_module("lightgbm")
    finally:
        for name in hidden:
            del sys.modules[name]
