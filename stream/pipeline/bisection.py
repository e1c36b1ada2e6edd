"""Unforeseen exceptions: a micro-batch that raises one is decided again in halves, down to the record.

A defect of the pipeline that one record brings out must neither end every worker that meets the record nor
lose its neighbours. The halves are decided from the same stored state, the second one with the writes of the
first, so all other records get the effects that they would have had without the record. Each is decided at
most log2(n) + 1 times.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from stream.errors import InternalError, InvalidRecordError, RiskStreamError
from stream.pipeline.effects import Batch, BatchEffects
from stream.state.store import StateReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.pipeline.transactions import TransactionPipeline

__all__ = ["MAX_INTERNAL_ERRORS", "decide"]

#: Internal errors in one micro-batch above which the worker ends: a fault of ours, not of the records, must
#: not empty a topic into the dead letters.
MAX_INTERNAL_ERRORS: Final = 10


_Parts = list[tuple[Batch, StateReader]]


def decide(
    pipeline: TransactionPipeline, batches: Sequence[Batch], readers: Sequence[StateReader], now_ms: int
) -> list[tuple[Batch, BatchEffects]]:
    """Return batches and their effects, see :meth:`.TransactionPipeline.process_all`.

    The batches are the given ones; after an exception they are parts of them, in order. A record that raises
    an unforeseen exception becomes a dead letter; its neighbours are decided.

    Raises
    ------
    InternalError
        More than :data:`MAX_INTERNAL_ERRORS` records raise one.
    RiskStreamError, OSError
        The state cannot be read.
    """
    bisection = _Bisection(pipeline, now_ms)
    bisection.decide(list(zip(batches, readers, strict=True)))
    return bisection.decided


class _Written:
    """Reads a partition's state with the writes of the parts that were decided before."""

    def __init__(self, writes: dict[bytes, bytes | None], reader: StateReader) -> None:
        self._writes = writes
        self._reader = reader

    def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the value of each key, None for a missing key."""
        stored = self._reader.read(keys)
        return [self._writes.get(key, value) for key, value in zip(keys, stored, strict=True)]


class _Bisection:
    def __init__(self, pipeline: TransactionPipeline, now_ms: int) -> None:
        self._pipeline = pipeline
        self._now_ms = now_ms
        self._bisecting = False
        self._writes: dict[int, dict[bytes, bytes | None]] = {}
        self._failures = 0
        self.decided: list[tuple[Batch, BatchEffects]] = []

    def decide(self, parts: _Parts) -> None:
        """Decide a part of the micro-batch, in halves if it raises an exception."""
        batches = [batch for batch, _ in parts]
        try:
            found = self._pipeline.process_all(batches, self._readers(parts), self._now_ms)
        except InvalidRecordError as error:
            self._halve(parts, error)
        except (RiskStreamError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - nobody has foreseen it
            self._halve(parts, error)
        else:
            for batch, effects in zip(batches, found, strict=True):
                self._add(batch, effects)

    def _readers(self, parts: _Parts) -> list[StateReader]:
        return [
            _Written(self._writes[batch.partition], reader) if batch.partition in self._writes else reader
            for batch, reader in parts
        ]

    def _add(self, batch: Batch, effects: BatchEffects) -> None:
        self.decided.append((batch, effects))
        if self._bisecting and effects.writes:
            self._writes.setdefault(batch.partition, {}).update(effects.writes)

    def _halve(self, parts: _Parts, error: Exception) -> None:
        self._bisecting = True
        self._pipeline.roll_back()
        count = sum(len(batch.records) for batch, _ in parts)
        if count > 1:
            first, second = _halves(parts, count // 2)
            self.decide(first)
            self.decide(second)
            return
        for batch, _ in parts:
            if not batch.records:
                continue
            [record] = batch.records
            self._failures += 1
            where = f"{batch.topic} [{batch.partition}] at offset {record.offset}"
            if self._failures > MAX_INTERNAL_ERRORS:
                raise InternalError(
                    f"more than {MAX_INTERNAL_ERRORS} records of one micro-batch raise an unforeseen "
                    f"exception, the last one {where}: {error!r}; this is a defect of RiskStream or of its "
                    "installation: report it"
                ) from error
            self._add(batch, self._pipeline.reject_internal_error(batch, error, self._now_ms))


def _halves(parts: _Parts, count: int) -> tuple[_Parts, _Parts]:
    """Return the first ``count`` records of batches, and the rest."""
    first: _Parts = []
    second: _Parts = []
    for batch, reader in parts:
        head, tail = batch.records[:count], batch.records[count:]
        count -= len(head)
        if head:
            first.append((replace(batch, records=head), reader))
        if tail:
            second.append((replace(batch, records=tail), reader))
    return first, second
