"""``riskstream offsets``: move the offsets at which workers continue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from stream.cli.options import EVENT_TIME
from stream.settings import load_settings

if TYPE_CHECKING:
    from stream.kafka.offsets import Move, Target

__all__ = ["offsets", "reset"]

_ENDS: Final = ("earliest", "latest")


class _TargetType(click.ParamType):
    name = "earliest|latest|TIME"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value in _ENDS:
            return value
        return int(EVENT_TIME.convert(value, param, ctx))


@click.group()
def offsets() -> None:
    """Move the offsets at which workers continue."""


@offsets.command()
@click.option(
    "--to",
    "target",
    type=_TargetType(),
    required=True,
    help="Each partition's beginning, end, or first record that reached Kafka at TIME or later.",
)
@click.option("--dry-run", is_flag=True, help="Show the new offsets and change nothing.")
@click.option(
    "--reused",
    is_flag=True,
    help="The broker has lost records, and new ones have their offsets already; see below.",
)
def reset(target: Target, *, dry_run: bool, reused: bool) -> None:
    """Move the committed offsets of the transactions, while no worker runs.

    Records that workers read again are recognised by their offsets, or as duplicates by their ids. Records
    that the move skips are never scored.

    If the broker has lost records that were committed, it gives their offsets to other records. For such a
    partition the offsets begin anew: workers compare none of them with the offsets in the state, and
    recognise transactions that the state contains by their ids. If so many new records have arrived that the
    loss cannot be seen any more, say so with --reused.
    """
    from stream.kafka.offsets import move_offsets, plan_moves

    settings = load_settings()
    moves = plan_moves(settings, target)
    for move in moves:
        print(_line(move))
    if dry_run:
        print("Nothing was changed.")
        return
    move_offsets(settings, moves, reused=reused)
    print(f"Moved {sum(move.to != move.committed for move in moves)} of {len(moves)} partitions.")


def _line(move: Move) -> str:
    """Return what a move means, as one line."""
    begin = move.first if move.committed is None else move.committed
    effect = "no change"
    if move.to < min(begin, move.end):
        effect = f"{min(begin, move.end) - move.to} records again"
    elif move.to > max(begin, move.first):
        effect = f"{move.to - max(begin, move.first)} records skipped"
    lost = ""
    if move.lost:
        last = move.end + move.lost - 1
        lost = f"; offsets {move.end} to {last} were committed and are lost: offsets begin anew"
    shown = "nothing" if move.committed is None else str(move.committed)
    return f"{move.topic} [{move.partition}]: {shown} -> {move.to}, {effect}{lost}"
