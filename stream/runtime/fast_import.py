"""Import a worker's libraries without their optional dependencies."""

from __future__ import annotations

import importlib
import sys
from typing import Final

__all__ = ["import_without_optional"]

_BESIDE: Final = ("sklearn", "pandas")


def import_without_optional(*, drift: bool) -> None:
    """Import LightGBM, and river for drift, as if scikit-learn and pandas were not installed.

    Both libraries import scikit-learn and pandas when those are installed, which doubles a worker's start-up
    time: after a crash, half of the time without any score. Other code can import scikit-learn and pandas
    afterwards; the two libraries' own integrations of them stay unavailable in this process.
    """
    hidden = [name for name in _BESIDE if name not in sys.modules]
    # None in sys.modules makes Python's import system report a missing module.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        importlib.import_module("lightgbm")
        if drift:
            importlib.import_module("river.drift")
    finally:
        for name in hidden:
            del sys.modules[name]
