"""What a check found wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


_SHOWN = 12

_SHOWN_CHARACTERS = 3_000


@dataclass(slots=True)
class Findings:
    """What a check found wrong; all zero and empty where nothing is.

    Attributes
    ----------
    lost:
        Transactions without an answer or missing in a history, and alerts that are not there.
    doubled:
        Transactions that a history holds or counts more than once.
    wrong:
        A line for each thing wrong, the above included.
    """

    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, text: str, *, lost: int = 0, doubled: int = 0) -> None:
        self.lost += lost
        self.doubled += doubled
        self.wrong.append(text)

    def compare_kept(
        self, who: str, what: str, found: Sequence[Any], kept: Sequence[Any], *, counted: bool
    ) -> None:
        """Say how what is stored differs from what should be; ``counted`` unless a total has told of it."""
        if found == kept:
            return
        missing = len(set(kept) - set(found))
        extra = len(found) - len(kept) + missing
        self.add(
            f"{who} {len(found)} {what}, not {len(kept)}; {missing} missing",
            lost=missing if counted else 0,
            doubled=max(0, extra) if counted else 0,
        )

    def join(self, other: Findings) -> None:
        self.lost += other.lost
        self.doubled += other.doubled
        self.wrong += other.wrong

    def __bool__(self) -> bool:
        return bool(self.wrong)

    def __str__(self) -> str:
        more = [f"... and {len(self.wrong) - _SHOWN} more"] if len(self.wrong) > _SHOWN else []
        return "\n".join([*(line[:_SHOWN_CHARACTERS] for line in self.wrong[:_SHOWN]), *more])
