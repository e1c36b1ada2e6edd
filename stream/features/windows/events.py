"""The input and the result of a batch of events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stream.events.fields import MS_PER_DAY
from stream.features.spec import WINDOW_MS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from stream.errors import StateError

__all__ = ["FAILED", "MAX_CHUNKS", "HistoryConfig", "HistoryEvents", "HistoryResult"]


#: Chunks that a history keeps at most: 2,097,152 events within the horizon. Its oldest chunks go beyond that.
MAX_CHUNKS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class HistoryConfig:
    """The configuration of histories.

    Attributes
    ----------
    lateness_ms:
        An event up to this far behind its user's newest event is scored exactly; a history keeps 30 days and
        this.
    ttl_ms:
        A user's history begins anew with the first event after this long without one; 0 for never.
    max_chunks:
        The newest chunks of 32 events that a history keeps.
    """

    lateness_ms: int = 3 * MS_PER_DAY
    ttl_ms: int = 0
    max_chunks: int = MAX_CHUNKS

    def __post_init__(self) -> None:
        if 0 < self.ttl_ms < self.horizon_ms:
            msg = f"a time to live of {self.ttl_ms} ms is shorter than the {self.horizon_ms} ms that are kept"
            raise ValueError(msg)

    @property
    def horizon_ms(self) -> int:
        """How far behind a user's newest event the log reaches."""
        return WINDOW_MS[-1] + self.lateness_ms


@dataclass(frozen=True, slots=True)
class HistoryEvents:
    """The events of a batch: n events of u users, in arrival order within each source partition.

    A user with events in two partitions counts as two users, one per partition.

    Attributes
    ----------
    users:
        The u distinct user ids, UTF-8.
    user:
        int64[n], each event's index in ``users``.
    time_ms, amount_minor, merchant, id_hash, minor_units, offset:
        int64[n]; ``merchant`` is 0 for an unknown merchant.
    source:
        int64[u], the incarnation of each user's source partition; offsets of different incarnations are not
        comparable.
    """

    users: Sequence[bytes]
    user: npt.NDArray[np.int64]
    time_ms: npt.NDArray[np.int64]
    amount_minor: npt.NDArray[np.int64]
    merchant: npt.NDArray[np.int64]
    id_hash: npt.NDArray[np.int64]
    minor_units: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HistoryResult:
    """The result of a batch.

    Attributes
    ----------
    outcome:
        uint8[n]: SCORED, LATE, DUPLICATE, REPLAYED, or FAILED for events of the users in ``errors``.
    writes, owners:
        Records to store, None to delete, and the index of each record's user; empty without ``learn``.
    errors:
        By the user's index, why its state cannot be used.
    other_source:
        bool[u]: whether a user's stored offset belongs to another incarnation of the source.
    truncated:
        bool[n]: whether an event's features lack older events, which the history had no room for.
    """

    outcome: npt.NDArray[np.uint8]
    writes: list[tuple[bytes, bytes | None]]
    owners: list[int]
    errors: dict[int, StateError]
    other_source: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]


FAILED: Final = 6
