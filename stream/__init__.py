"""RiskStream: real-time transaction risk on Kafka.

The public API is the names below; everything else is private and may change without notice. Names load on
first use, so that ``import stream`` costs nothing.

>>> from stream import Transaction
>>> transaction = Transaction(
...     transaction_id="t-1", user_id="u-1", event_time="2026-01-31T12:00:00Z", amount="49.90",
...     currency="EUR", channel="online", transaction_type="purchase",
... )
>>> transaction.event_time  # milliseconds since 1970, UTC
1769860800000
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from stream._version import __version__

if TYPE_CHECKING:
    from stream.events.models import Alert, Decision, Label, Transaction
    from stream.runtime.wiring import build_app
    from stream.scoring.bundle import Bundle
    from stream.settings import Settings

__all__ = ["Alert", "Bundle", "Decision", "Label", "Settings", "Transaction", "__version__", "build_app"]

_MODULES: Final = {
    "Alert": "stream.events.models",
    "Bundle": "stream.scoring.bundle",
    "Decision": "stream.events.models",
    "Label": "stream.events.models",
    "Settings": "stream.settings",
    "Transaction": "stream.events.models",
    "build_app": "stream.runtime.wiring",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
