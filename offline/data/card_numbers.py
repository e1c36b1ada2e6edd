"""Card numbers in the ids of a file: refused or replaced as a worker would."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stream.errors import InvalidRecordError

if TYPE_CHECKING:
    import numpy.typing as npt

    from offline.data.table import TransactionTable
    from stream.events.card_numbers import CardNumbers

__all__ = ["without_card_numbers"]

_COLUMNS: Final = ("transaction_id", "user_id", "merchant_id", "card_id", "device_id")


def without_card_numbers(table: TransactionTable, card_numbers: CardNumbers) -> TransactionTable:
    """Return the table with ids that are card numbers replaced, or with their rows marked as invalid."""
    if card_numbers.policy == "allow":
        return table
    changes: dict[str, Any] = {}
    invalid = dict(table.invalid)
    for name in _COLUMNS:
        column: npt.NDArray[np.object_] | None = getattr(table, name)
        if column is None:
            continue
        texts = column.tolist()
        known: dict[str, str] = {}
        refused: dict[str, InvalidRecordError] = {}
        for text in dict.fromkeys(texts):
            try:
                if text is not None and (token := card_numbers.replaced(name, text)) != text:
                    known[text] = token
            except InvalidRecordError as error:
                refused[text] = error
                known[text] = ""
        if not known:
            continue
        changed = np.empty(len(texts), np.object_)
        changed[:] = [known.get(text, text) for text in texts]
        changes[name] = changed
        for row, text in enumerate(texts):
            if text in refused:
                invalid.setdefault(row, refused[text])
    return replace(table, **changes, invalid=invalid) if changes else table
