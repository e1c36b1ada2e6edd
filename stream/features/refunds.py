"""Refunds and reversals: money that comes back has a history of its own, apart from the user's payments.

A transaction is a refund if its amount is negative or its type is one of the spec's ``refund_types``. Its
windows and lifetime features are those of the user's refunds, with amounts taken as positive; windows of
payments do not contain it, and entity profiles neither see it nor answer it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["REFUND_TYPES", "history_key", "history_name", "is_refund"]

#: Transaction types that are refunds unless a spec says otherwise.
REFUND_TYPES: Final = ("refund", "reversal")

#: Behind the user's name in the name of the history of refunds. It becomes byte 255, which no text in UTF-8
#: contains, so no user has this name.
_REFUNDS: Final = "\udcff"


def is_refund(amount_minor: int, transaction_type: str, refund_types: Collection[str]) -> bool:
    """Return whether a transaction is a refund.

    Examples
    --------
    >>> [is_refund(-1, "purchase", ()), is_refund(1, "refund", ("refund",)), is_refund(1, "purchase", ())]
    [True, True, False]
    """
    return amount_minor < 0 or transaction_type in refund_types


def history_name(user_id: str, *, refund: bool) -> str:
    """Return the name of a user's history: of payments, or of refunds."""
    return user_id + _REFUNDS if refund else user_id


def history_key(name: str) -> bytes:
    """Return the prefix of the keys of a history's records."""
    return name.encode(errors="surrogateescape")
