"""Files of labels: JSON lines of the very records of the topic, in the order in which they arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from offline.data.table import Labels
from stream.errors import DataError, InvalidRecordError
from stream.events.decode import decode_label

if TYPE_CHECKING:
    from pathlib import Path

    from offline.data.table import TransactionTable

__all__ = ["read_labels"]


def read_labels(path: Path, table: TransactionTable) -> tuple[Labels, int]:
    """Return a file's labels of a table's transactions, and the number of labels of unknown transactions.

    A transaction is identified by its user and its id. If the table has it several times, its label belongs
    to the first row, which is the scored one.

    Raises
    ------
    DataError
        A line is no label, or the file cannot be read.
    """
    rows: dict[tuple[str, str], int] = {}
    names = zip(table.user_id.tolist(), table.transaction_id.tolist(), strict=True)
    for row, (name, valid) in enumerate(zip(names, table.valid.tolist(), strict=True)):
        if valid:
            rows.setdefault(name, row)
    found: list[tuple[int, bool, int]] = []
    unknown = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    label, _ = decode_label(line.strip())
                except InvalidRecordError as error:
                    raise DataError(f"{path}: line {number}, {error}") from error
                name = (label.user_id, label.transaction_id)
                if name in rows:
                    found.append((rows[name], label.is_fraud, label.label_time))
                else:
                    unknown += 1
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    columns = np.array(found, np.int64).reshape(-1, 3)
    return Labels(columns[:, 0], columns[:, 1].astype(np.int8), columns[:, 2]), unknown
