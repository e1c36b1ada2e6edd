"""Histories and stores as bytes have them, against the oracle's events."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import rocksdict

from chaos.entity_join import identity_of
from chaos.findings import Findings
from stream.features.windows import records as layout
from stream.features.windows.arrays import (
    CHUNK,
    H_COUNT,
    H_FIRST,
    H_FIRST_CHUNK,
    H_HEAD,
    H_MAX,
    H_NEWEST,
    H_NEXT_CHUNK,
    H_OFFSET,
    H_SQUARES,
    H_SUM,
    HEAD,
    new_header,
)
from support import unpacked
from support.oracle import DAY, Event, User

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from chaos.topics import Found


#: Where the store keeps the changelog offset that it reaches to.
OFFSET_KEY = b"__faust\0offset__"

#: And which changelog that is.
CHANGELOG_ID_KEY = b"__riskstream\0changelog-id__"

HORIZON_MS = 33 * DAY


@dataclass(slots=True)
class History:
    """What the source gives a user."""

    partition: int
    user: User = field(default_factory=User)
    #: Offset and newest event time after each applied event.
    applied: list[int] = field(default_factory=list)


def fold(state: dict[bytes, bytes], found: Found) -> None:
    if found.value is None:
        state.pop(found.key or b"", None)
    else:
        state[found.key or b""] = found.value


def content_of(path: Path) -> dict[bytes, bytes]:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(False)
    database = rocksdict.Rdict(str(path), options=options)
    try:
        return dict(database.items())
    finally:
        database.close()


class Stored(NamedTuple):
    """A user's history as its records have it."""

    offset: int
    events: list[tuple[int, int, int, int]]  # time, amount, merchant, transaction
    count: int
    sum: int
    squares: int
    largest: int
    newest: int
    first: int


def decode(user: bytes, records: dict[bytes, bytes]) -> Stored:
    head_record = records[layout.head_key(user)]
    hdr = np.array(new_header(), np.int64)
    head = np.zeros((4, HEAD), np.int64)
    pending = np.zeros(CHUNK + 1, np.int64)
    words = np.frombuffer(head_record, np.int64)
    assert layout.unpack_head(words, 0, len(words), hdr, head, pending) == 0, f"{user!r}: a damaged head"
    events: list[tuple[int, int, int, int]] = []
    for number in range(hdr[H_FIRST_CHUNK], hdr[H_NEXT_CHUNK]):
        key = layout.chunk_key(user, number)
        events += map(tuple, unpacked.unpack_chunk(records[key], key).T.tolist())
    events += map(tuple, head[:, : hdr[H_HEAD]].T.tolist())
    limbs = hdr.tolist()
    return Stored(
        offset=limbs[H_OFFSET],
        events=events,
        count=limbs[H_COUNT],
        sum=sum(limb << 25 * at for at, limb in enumerate(limbs[H_SUM : H_SUM + 2])),
        squares=sum(limb << 25 * at for at, limb in enumerate(limbs[H_SQUARES : H_SQUARES + 4])),
        largest=limbs[H_MAX],
        newest=limbs[H_NEWEST],
        first=limbs[H_FIRST],
    )


def compare(name: str, history: History, stored: Stored, findings: Findings) -> None:
    """Compare one user's stored history with the events that the oracle applied."""
    events: list[Event] = history.user.applied
    times = [event.time for event in events]
    amounts = [event.amount for event in events]
    more = stored.count - len(events)
    if more:
        findings.add(
            f"{name}: {stored.count} events counted, not {len(events)}",
            lost=max(0, -more),
            doubled=max(0, more),
        )
    gone = max(times) - HORIZON_MS
    kept = [
        (event.time, event.amount, identity_of(event.merchant), identity_of(event.transaction_id))
        for event in events
        if event.time > gone
    ]
    found = [event for event in stored.events if event[0] > gone]
    findings.compare_kept(f"{name}: keeps", "events", found, kept, counted=not more)
    profile = (stored.sum, stored.squares, stored.largest, stored.newest, stored.first, stored.offset)
    expected = (
        sum(amounts),
        sum(amount * amount for amount in amounts),
        max(amounts),
        max(times),
        min(times),
        history.applied[-1],
    )
    if profile != expected:
        findings.add(f"{name}: profile (sum, squares, max, newest, first, offset) {profile}, not {expected}")


def check_stores(
    reached_by: dict[int, int],
    state: dict[int, dict[bytes, bytes]],
    folders: Iterable[Path],
    scratch: Path,
    *,
    may_be_damaged: bool = False,
) -> Findings:
    """Compare the workers' RocksDB files, copied, with the changelog's fold, byte for byte.

    A store that some other worker took over is behind; of each partition one must be at the end.

    Parameters
    ----------
    may_be_damaged
        Whether RocksDB may say that a file is damaged, which is as good as having no store.
    """
    findings = Findings()
    wanted = {partition for partition, offset in reached_by.items() if offset >= 0}
    for place, folder in enumerate(folders):
        for path in sorted(folder.rglob("*.db")):
            partition = int(path.stem.rpartition("-")[2])
            copy = scratch / f"store-{place}-{partition}"
            _copy(path, copy)
            try:
                content = content_of(copy)
            except Exception as error:  # noqa: BLE001 - rocksdict has no type of its own
                if may_be_damaged:
                    wanted.discard(partition)
                else:
                    findings.add(f"store {path.name}: {error}")
                continue
            finally:
                shutil.rmtree(copy, ignore_errors=True)
            content.pop(CHANGELOG_ID_KEY, None)
            reached = int(content.pop(OFFSET_KEY, b"-1"))
            if reached != reached_by.get(partition, -1):
                continue
            wanted.discard(partition)
            expected = state.get(partition, {})
            if content != expected:
                differ = [
                    key for key in content.keys() | expected.keys() if content.get(key) != expected.get(key)
                ]
                findings.add(
                    f"store {path.name} is not the changelog's fold at {len(differ)} keys: {differ[:3]}"
                )
    findings.wrong += [f"no store of partition {partition} is at the changelog's end" for partition in wanted]
    return findings


def _copy(path: Path, copy: Path) -> None:
    """Copy a database's folder; a worker that has just opened it may be renaming and deleting files there."""
    for last in (False, False, False, True):
        shutil.rmtree(copy, ignore_errors=True)
        try:
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns("LOCK", "*.dbtmp"))
        except shutil.Error as error:
            if last or not all("No such file" in reason for _, _, reason in error.args[0]):
                raise
        else:
            return
