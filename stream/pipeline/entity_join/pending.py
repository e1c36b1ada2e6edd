"""Cases: transactions that wait for answers, and when they have them all.

A case is opened by its record and closed by the last answer that it asked for, or by a *repeated* of an
entity whose true answer was not heard since: that one lies before the case, which was decided then. So
nothing needs to be stored; but the partition must be taken up again before the oldest open case.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from stream.pipeline.entity_join.messages import Case

if TYPE_CHECKING:
    from stream.pipeline.entity_join.messages import Answer


#: The epoch and mark of a partition where the broker keeps no owners apart: every case is believed.
_NOT_OWNED: Final = (-1, 2**62)


@dataclass(slots=True)
class OpenCase:
    """A case and the answers that there are, by the entity's code; ``offset`` is its record's."""

    case: Case
    offset: int
    answers: dict[int, Answer] = field(default_factory=dict)


class OpenCases:
    """The cases of a worker's partitions that lack answers."""

    def __init__(self) -> None:
        #: By partition, in the order of their offsets.
        self._open: dict[int, dict[int, OpenCase]] = {}
        #: By partition, the epoch of this owner and the offset of its mark.
        self._owned: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def forget(self) -> None:
        """Forget every case: partitions are taken up again before them."""
        self._open.clear()

    def own(self, partition: int, epoch: int, mark: int) -> None:
        """Believe no case of a former owner that stands behind the mark.

        One that was paused or cut off may still have opened it, and fallen before it asked: the transaction
        was taken again since, and nobody would answer this case.
        """
        self._owned[partition] = (epoch, mark)

    def epoch(self, partition: int) -> int:
        """Return the epoch under which a partition's cases are opened."""
        return self._owned.get(partition, _NOT_OWNED)[0]

    def hear(self, partition: int, offset: int, what: Case | Answer) -> OpenCase | None:
        """Take a record of the answers' topic; returns the case of which it was the last answer."""
        waiting = self._open.setdefault(partition, {})
        if isinstance(what, Case):
            epoch, mark = self._owned.get(partition, _NOT_OWNED)
            if offset < mark or what.epoch == epoch:
                # The same case again, before it was decided: nothing in it is new.
                waiting.setdefault(what.case, OpenCase(what, offset))
            return None
        one = waiting.get(what.case)
        if one is None:
            return None  # decided
        if what.features is None:
            if what.entity not in one.answers:
                del waiting[what.case]
            return None
        one.answers[what.entity] = what
        if sum(1 << code for code in one.answers) & one.case.asked != one.case.asked:
            return None
        return waiting.pop(what.case)

    def oldest(self, partition: int) -> int | None:
        """Return the offset of a partition's oldest open case, None where there is none."""
        first = next(iter(self._open.get(partition, {}).values()), None)
        return None if first is None else first.offset
