"""Users' histories over a store of records: a batch of events in, features and writes out.

Users whose history fits the head (fewer than 64 events within the horizon) go through one compiled loop for
the whole batch. :mod:`stream.features.windows.long` handles users with sealed chunks.

Nothing here does I/O: a reader provides the records, and the caller receives the changed ones as a list, to
deliver in the order of its guarantees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stream.errors import StateError
from stream.features.windows import records as layout
from stream.features.windows.arrays import CHUNK, DEFERRED, H_SOURCE, HDR_SIZE, HEAD, LATE, new_header
from stream.features.windows.cache import HistoryCache
from stream.features.windows.drivers import run_heads
from stream.features.windows.events import FAILED, HistoryConfig, HistoryEvents, HistoryResult
from stream.features.windows.long import LongHistories
from stream.state.format import Words, describe_record, join
from stream.state.store import PartitionedReader, StateReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["advance"]


def advance(
    events: HistoryEvents,
    config: HistoryConfig,
    reader: StateReader | PartitionedReader,
    features: npt.NDArray[np.float64],
    *,
    learn: bool = True,
    cache: HistoryCache | None = None,
) -> HistoryResult:
    """Process a batch of events: write their features, and return the records to store.

    Parameters
    ----------
    features : float64[n, OUT_SIZE]
        Filled for events that are SCORED or LATE.
    learn
        Whether the events become part of the histories; False leaves the histories unchanged.
    cache
        Keeps long histories unpacked between batches; the caller must store the returned writes, or end.
    """
    count, users = len(events.user), len(events.users)
    if not isinstance(reader, PartitionedReader):
        reader = PartitionedReader([reader], [users])
    hdrs = np.empty((users, HDR_SIZE), np.int64)
    hdrs[:] = new_header()
    heads = np.empty((users, 4, HEAD), np.int64)
    pendings = np.empty((users, CHUNK + 1), np.int64)
    busy = np.zeros(users, np.bool_)
    status = np.zeros(users, np.uint8)
    errors: dict[int, StateError] = {}
    keys = [layout.head_key(user) for user in events.users]
    words, starts, sizes = join(_usable(keys, reader.read(keys, np.arange(users)), errors))
    checksums = np.zeros(users, np.int64)
    checksums[sizes > 1] = words[starts[sizes > 1] + 1]
    layout.unpack_heads(words, starts, sizes, hdrs, heads, pendings, busy, status)
    errors |= {index: _corrupt(keys[index]) for index in status.nonzero()[0].tolist()}
    failed = np.zeros(users, np.bool_)
    if errors:
        failed[list(errors)] = True
        busy |= failed
    other_source = (sizes > 0) & (hdrs[:, H_SOURCE] != events.source) & ~failed

    outcome = np.empty(count, np.uint8)
    outcome.fill(DEFERRED)
    if not busy.all():
        run_heads(
            hdrs, heads, busy, events.user, events.offset, events.source, events.time_ms,
            events.amount_minor, events.merchant, events.id_hash, events.minor_units, config.horizon_ms,
            config.lateness_ms, config.ttl_ms, learn, outcome, features,
        )  # fmt: skip
    writes: list[tuple[bytes, bytes | None]] = []
    owners: list[int] = []
    sealed: LongHistories | None = None
    chosen = (busy & ~failed).nonzero()[0]
    if len(chosen):
        deferred = ((outcome == DEFERRED) & ~failed[events.user]).nonzero()[0]
        sealed = LongHistories(
            events, chosen, (hdrs, heads, pendings), deferred, checksums, cache or HistoryCache(1 << 20)
        )
        sealed.take(config, reader, learn=learn, outcome=outcome, features=features)
        if sealed.errors:
            errors |= sealed.errors
            failed[list(errors)] = True
        if learn:
            writes, owners = sealed.writes()
    if errors:
        outcome[failed[events.user]] = FAILED
    if learn:
        touched = np.zeros(users, np.bool_)
        touched[events.user[outcome <= LATE]] = True
        stored = (touched & ~failed).nonzero()[0]
        checksums[stored] = _pack_heads((hdrs, heads, pendings), stored, keys, writes)
        owners += stored.tolist()
    if sealed is not None:
        sealed.store_checksums(checksums)
    truncated = np.zeros(count, np.bool_) if sealed is None else sealed.truncated
    return HistoryResult(outcome, writes, owners, errors, other_source, truncated)


def _corrupt(key: bytes) -> StateError:
    return StateError(f"{describe_record(key)} is corrupt: it does not match its checksum")


def _pack_heads(
    states: tuple[Words, Words, Words],
    chosen: npt.NDArray[np.int64],
    keys: list[bytes],
    writes: list[tuple[bytes, bytes | None]],
) -> Words:
    """Add the chosen users' head records to ``writes``; returns the checksum of each."""
    packed = np.empty(len(chosen) * layout.MAX_HEAD_WORDS, np.int64)
    lengths = np.empty(len(chosen), np.int64)
    total = layout.pack_heads(*states, chosen, packed, lengths)
    blob = packed[:total].tobytes()
    ends = lengths.cumsum()
    begin = 0
    for index, end in zip(chosen.tolist(), (8 * ends).tolist(), strict=True):
        writes.append((keys[index], blob[begin:end]))
        begin = end
    checksums: Words = packed[ends - lengths + 1]
    return checksums


def _usable(keys: list[bytes], stored: Sequence[bytes | None], errors: dict[int, StateError]) -> list[bytes]:
    """Return the records, empty for a missing one; old ones are migrated, unusable ones in ``errors``."""
    current = layout.HEAD_START
    records = []
    for index, record in enumerate(stored):
        usable = record or b""
        if record is not None and (record[:8] != current or len(record) % 8):
            try:
                usable = layout.migrate(record, keys[index])
            except StateError as error:
                errors[index] = error
                usable = b""
        records.append(usable)
    return records
