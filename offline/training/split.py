"""Splits in order of time: the data that a model may know at each time, and the data that judges it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stream.errors import DataError
from stream.events.fields import MS_PER_DAY, format_event_time

if TYPE_CHECKING:
    import numpy.typing as npt

    from offline.data.table import TransactionTable

__all__ = ["TimeSplit", "split_by_time"]


_PARTS: Final = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Three parts of a table in order of event time, with a gap before each later part.

    Attributes
    ----------
    train, validation, test:
        Masks of shape ``(n,)``; rows in a gap, invalid rows and rows without a label are in none.
    validation_start_ms, test_start_ms:
        Every earlier part contains the data known at that time.
    """

    train: npt.NDArray[np.bool_]
    validation: npt.NDArray[np.bool_]
    test: npt.NDArray[np.bool_]
    validation_start_ms: int
    test_start_ms: int

    def restricted_to(self, rows: npt.NDArray[np.bool_], labels: npt.NDArray[Any]) -> TimeSplit:
        """Return the same split, its boundaries unmoved, of the rows of a mask of shape ``(n,)`` only.

        Raises
        ------
        DataError
            A part is left without a fraud or without a legitimate row.
        """
        parts = {name: getattr(self, name) & rows for name in _PARTS}
        for name, mask in parts.items():
            _check_part(name, labels[mask])
        return TimeSplit(
            **parts, validation_start_ms=self.validation_start_ms, test_start_ms=self.test_start_ms
        )


def split_by_time(
    table: TransactionTable,
    *,
    train_until_ms: int | None = None,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.15,
    label_delay_ms: int = 7 * MS_PER_DAY,
) -> TimeSplit:
    """Return train | gap | validation | gap | test.

    1. The test part begins at ``train_until_ms``, or with the last ``test_fraction`` of the rows.
    2. A row before it is known then if its event is at least ``label_delay_ms`` older, and its label's own
       time, if the file has one, has come. Only such rows can be validation.
    3. The validation part is the last ``validation_fraction`` (of all labelled rows) of these.
    4. The same rule, applied at the start of validation, leaves the training part.

    So neither training nor the choice of a threshold uses a label that was not known at the time.

    Raises
    ------
    DataError
        There are no labels, or a part is empty or lacks a class; the text suggests a change.
    """
    if table.is_fraud is None:
        raise DataError("the file has no labels: it needs is_fraud, or a mapping with a [label] section")
    labelled = (table.is_fraud >= 0) & table.valid
    if not labelled.any():
        raise DataError("no row has a label")
    times = table.event_time_ms
    ordered = np.sort(times[labelled])
    if train_until_ms is None:
        train_until_ms = int(ordered[min(len(ordered) - 1, int(len(ordered) * (1 - test_fraction)))])

    def known_at(moment_ms: int) -> npt.NDArray[np.bool_]:
        known: npt.NDArray[np.bool_] = labelled & (times < moment_ms - label_delay_ms)
        return known if table.label_time_ms is None else known & (table.label_time_ms < moment_ms)

    test = labelled & (times >= train_until_ms)
    before = known_at(train_until_ms)
    earlier = np.sort(times[before])
    if not len(earlier):
        raise DataError(
            f"no label is known at {format_event_time(train_until_ms)}, where the test part "
            "begins: use a shorter --label-delay, a later --train-until, or a longer file"
        )
    wanted = max(1, round(len(ordered) * validation_fraction))
    validation_start_ms = int(earlier[max(0, len(earlier) - wanted)])
    validation = before & (times >= validation_start_ms)
    split = TimeSplit(
        train=known_at(validation_start_ms),
        validation=validation,
        test=test,
        validation_start_ms=validation_start_ms,
        test_start_ms=train_until_ms,
    )
    return split.restricted_to(labelled, table.is_fraud)


def _check_part(name: str, labels: npt.NDArray[Any]) -> None:
    frauds = int((labels == 1).sum())
    if not frauds or frauds == len(labels):
        raise DataError(
            f"the {name} part has {len(labels)} rows, {frauds} of them fraud; it needs both "
            "kinds: use other fractions, a shorter --label-delay, or a longer file"
        )
