"""Validation of a file of transactions: its faults, where they are, and how many rows they affect.

The reader checks every cell against the Transaction's schema (:mod:`offline.data.readers`). This module
collects its findings and checks everything that only the whole file shows: duplicates, the order of time,
labels, ranges.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stream.events.fields import MS_PER_DAY, format_event_time
from stream.features.spec import MISSING

if TYPE_CHECKING:
    import numpy.typing as npt

    from offline.data.table import TransactionTable

__all__ = ["check_quality"]


#: Row numbers in a finding, the first ones.
_NAMED: Final = 5

_OPTIONAL: Final = ("merchant_id", "card_id", "device_id", "ip", "country")

#: The reader's text about a cell ends with its position, often with its value: neither is the kind of fault.
_WHERE: Final = re.compile(r" \(row \d+, column ([^)]*)\)$")

_VALUE: Final = re.compile(r"(, not |: )(['\"]).*$", re.DOTALL)


def check_quality(table: TransactionTable, *, allowed_lateness_ms: int) -> dict[str, Any]:
    """Return a file's findings, worst first, and a description of its columns, as JSON values.

    Parameters
    ----------
    allowed_lateness_ms
        How far a user's transaction may lie behind the user's latest, as the worker's
        ``history.allowed_lateness_days``; a later transaction gets no score.

    Returns
    -------
    dict
        ``rows``, ``valid_rows``; ``findings``: ``severity`` (``error``: the rows are not used; ``warning``:
        they are used, but deserve a look), ``field``, ``column`` (of the file, or None), ``what``, ``rows``,
        ``share`` of all rows and ``first_rows``, numbered from 1; ``columns``: a description of each field.
    """
    findings = _invalid(table)
    findings += _duplicates(table)
    findings += _order(table, allowed_lateness_ms)
    findings += _labels(table)
    findings += _amounts(table)
    findings.sort(key=lambda item: (item["severity"] != "error", -item["rows"], item["field"], item["what"]))
    return {
        "rows": len(table),
        "valid_rows": int(table.valid.sum()),
        "findings": findings,
        "columns": _columns(table),
    }


def _finding(
    table: TransactionTable, severity: str, field: str, description: str, rows: npt.NDArray[np.int64]
) -> list[dict[str, Any]]:
    if not len(rows):
        return []
    return [
        {
            "severity": severity,
            "field": field,
            "column": None,
            "what": description,
            "rows": len(rows),
            "share": len(rows) / len(table),
            "first_rows": (rows[:_NAMED] + 1).tolist(),
        }
    ]


def _invalid(table: TransactionTable) -> list[dict[str, Any]]:
    kinds: dict[tuple[str, str | None, str], list[int]] = {}
    for row, error in table.invalid.items():
        where = _WHERE.search(error.reason)
        message = _VALUE.sub("", _WHERE.sub("", error.reason))
        kinds.setdefault((error.field, where[1] if where else None, message), []).append(row)
    return [
        found | {"column": column}
        for (field, column, message), rows in kinds.items()
        for found in _finding(table, "error", field, message, np.array(sorted(rows), np.int64))
    ]


def _duplicates(table: TransactionTable) -> list[dict[str, Any]]:
    rows = np.flatnonzero(table.valid)
    _, first, index = np.unique(
        table.transaction_id[rows].astype(str), return_index=True, return_inverse=True
    )
    again = first[index] != np.arange(len(rows))
    later, earlier = rows[again], rows[first[index[again]]]
    same = np.ones(len(later), np.bool_)
    for column in (table.user_id, table.event_time_ms, table.amount_minor):
        same &= np.asarray(column[later] == column[earlier], np.bool_)
    # The stream identifies a transaction by its user and id, so only the same user's duplicate counts.
    other = np.asarray(table.user_id[later] != table.user_id[earlier], np.bool_)
    return [
        *_finding(table, "error", "transaction_id", "repeats an earlier row", later[same]),
        *_finding(
            table,
            "error",
            "transaction_id",
            "repeats an earlier row, with another time or amount",
            later[~same & ~other],
        ),
        *_finding(
            table, "warning", "transaction_id", "repeats an earlier row, of another user", later[other]
        ),
    ]


def _order(table: TransactionTable, allowed_lateness_ms: int) -> list[dict[str, Any]]:
    rows = np.flatnonzero(table.valid)
    times = table.event_time_ms[rows]
    behind = np.maximum.accumulate(times) - times if len(rows) else times
    users = np.unique(table.user_id[rows].astype(str), return_inverse=True)[1]
    order = np.argsort(users, kind="stable")
    latest = np.zeros(len(rows), np.int64)
    # A running maximum of each user: the users' times lie in bands that do not meet.
    low = int(times.min(initial=0))
    band = int(times.max(initial=0)) - low + 1
    lifted = users[order] * band + times[order] - low
    latest[order] = np.maximum.accumulate(lifted) - users[order] * band + low if len(rows) else 0
    late = latest - times
    days = allowed_lateness_ms / MS_PER_DAY
    most = "" if not len(rows) else f" (by up to {_duration(int(behind.max()))})"
    return [
        *_finding(
            table,
            "error",
            "event_time",
            f"lies more than the allowed {days:g} days behind the user's latest",
            rows[late > allowed_lateness_ms],
        ),
        *_finding(
            table,
            "warning",
            "event_time",
            "is older than the previous row of the same user",
            rows[(late > 0) & (late <= allowed_lateness_ms)],
        ),
        *_finding(table, "warning", "event_time", f"is older than an earlier row{most}", rows[behind > 0]),
    ]


def _labels(table: TransactionTable) -> list[dict[str, Any]]:
    if table.is_fraud is None:
        return _finding(
            table, "warning", "is_fraud", "has no column: no model can be trained", np.arange(len(table))
        )
    unknown = np.flatnonzero(table.valid & (table.is_fraud < 0))
    found = _finding(table, "warning", "is_fraud", "is unknown", unknown)
    if table.label_time_ms is not None:
        early = table.valid & (table.is_fraud >= 0) & (table.label_time_ms < table.event_time_ms)
        found += _finding(
            table, "warning", "label_time", "lies before the transaction itself", np.flatnonzero(early)
        )
    return found


def _amounts(table: TransactionTable) -> list[dict[str, Any]]:
    zero = np.flatnonzero(table.valid & (table.amount_minor == 0))
    negative = np.flatnonzero(table.valid & (table.amount_minor < 0))
    found = _finding(table, "warning", "amount", "is zero", zero)
    found += _finding(
        table, "warning", "amount", "is negative: a refund, with a history apart from payments", negative
    )
    known = (table.pre_balance_minor != MISSING) & (table.post_balance_minor != MISSING) & table.valid
    moved = np.abs(table.post_balance_minor - table.pre_balance_minor)
    wrong = np.flatnonzero(known & (moved != np.abs(table.amount_minor)))
    return found + _finding(
        table, "warning", "post_balance", "does not differ from the previous balance by the amount", wrong
    )


def _columns(table: TransactionTable) -> dict[str, dict[str, Any]]:
    valid = table.valid
    times = table.event_time_ms[valid]
    money = table.amount_minor[valid] / np.maximum(table.minor_units[valid], 1)
    found: dict[str, dict[str, Any]] = {
        "event_time": {
            "kind": "time",
            "missing": 0,
            "least": format_event_time(int(times.min())) if len(times) else None,
            "most": format_event_time(int(times.max())) if len(times) else None,
        },
        "amount": _numbers(money),
    }
    for name in ("user_id", "channel", "transaction_type", "currency", *_OPTIONAL):
        column = getattr(table, name)
        if column is not None:
            found[name] = _texts(column[valid])
    for name in ("pre_balance", "post_balance"):
        minor = getattr(table, f"{name}_minor")[valid]
        if (minor != MISSING).any():
            units = np.maximum(table.minor_units[valid], 1)
            found[name] = _numbers(np.where(minor == MISSING, np.nan, minor / units))
    for name, column in table.attributes.items():
        values = column[valid]
        found[f"attributes.{name}"] = _texts(values) if values.dtype == np.object_ else _numbers(values)
    if table.is_fraud is not None:
        labels = table.is_fraud[valid]
        found["is_fraud"] = {
            "kind": "label",
            "missing": int((labels < 0).sum()),
            "frauds": int((labels == 1).sum()),
            "legitimate": int((labels == 0).sum()),
        }
    return found


def _numbers(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    least, middle, most = (
        (float(known.min()), float(np.median(known)), float(known.max())) if len(known) else (None,) * 3
    )
    return {
        "kind": "number",
        "missing": len(values) - len(known),
        "least": least,
        "median": middle,
        "most": most,
    }


def _texts(values: npt.NDArray[np.object_]) -> dict[str, Any]:
    known = [value for value in values.tolist() if value is not None]
    return {"kind": "text", "missing": len(values) - len(known), "distinct": len(set(known))}


def _duration(milliseconds: int) -> str:
    for unit, length in (("days", MS_PER_DAY), ("hours", 3_600_000), ("minutes", 60_000)):
        if milliseconds >= length:
            return f"{milliseconds / length:.1f} {unit}"
    return f"{milliseconds / 1000:.3f} seconds"
