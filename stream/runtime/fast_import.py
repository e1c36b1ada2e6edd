"""Import a worker's libraries without their optional dependencies."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Final

__all__ = ["import_without_optional"]

_BESIDE: Final = ("sklearn", "pandas", "sqlalchemy")

#: A module of river.drift that a worker does not use, and that imports all of scipy.stats.
_KSWIN: Final = "river.drift.kswin"


def import_without_optional(*, drift: bool) -> None:
    """Import LightGBM, and river for drift, as if their optional dependencies were not installed.

    Both libraries import scikit-learn and pandas when those are installed, and river also SQLAlchemy and, for
    one detector, scipy.stats. That doubles a worker's start-up time: after a crash, half of the time without
    any score. Other code can import these libraries afterwards; the integrations of them in LightGBM and
    river stay unavailable in this process, and so does river's KSWIN.
    """
    hidden = [name for name in _BESIDE if name not in sys.modules]
    # None in sys.modules makes Python's import system report a missing module.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        importlib.import_module("lightgbm")
        if drift:
            stand_in = ModuleType(_KSWIN)
            stand_in.KSWIN = None  # type: ignore[attr-defined]
            sys.modules.setdefault(_KSWIN, stand_in)
            importlib.import_module("river.drift")
    finally:
        for name in hidden:
            del sys.modules[name]
