"""The card recipe on simulated worlds not used to choose it, and on a world in which the frauds change.

Each world is simulated from its seed, by the process of the *Reproducible Machine Learning for Credit Card
Fraud Detection - Practical Handbook*: customers with individual habits buy at terminals near them; large
amounts are fraud; so is every purchase at a compromised terminal, for four weeks, and a third of the
purchases with a leaked card, for two weeks, at five times the amount. In the changed world, from half-way on,
a terminal is compromised for ten days with half of its purchases, and a leaked card makes small purchases, at
night.

    python -m benchmarks.card_worlds --seeds 11 12 13
    python -m benchmarks.card_worlds --seeds 11 --change
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.environment import describe, environment
from offline.data.table import TransactionTable
from offline.evaluation.prequential import (
    Protocol,
    evaluate_weeks,
    fold_metrics,
    knowledge_scores,
    week_fold,
    weekly_features,
)
from offline.training.recipes import CARDS
from stream.events.fields import MS_PER_DAY
from stream.features.spec import MISSING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

_START_MS: Final = round(datetime(2018, 4, 1, tzinfo=UTC).timestamp() * 1000)
_RADIUS: Final = 5.0
_LARGE_MINOR: Final = 22_000


@dataclass(frozen=True, slots=True)
class World:
    """What to draw; ``change_day`` is the first day of other frauds, None for never."""

    seed: int
    customers: int = 5_000
    terminals: int = 10_000
    days: int = 157
    change_day: int | None = None


def draw(world: World) -> tuple[TransactionTable, npt.NDArray[np.object_]]:
    """Return a world's transactions in the order of time, and the kind of fraud of each ("0" for none)."""
    rng = np.random.default_rng(world.seed)
    indexes = rng.uniform(0, 100, (world.customers, 2))
    shops = rng.uniform(0, 100, (world.terminals, 2))
    level = rng.uniform(5, 100, world.customers)
    daily = rng.uniform(0, 4, world.customers)
    count = rng.poisson(daily * world.days)
    user = np.repeat(np.arange(world.customers), count)
    day = rng.integers(0, world.days, len(user))
    second = rng.normal(43_200, 20_000, len(user))
    amount = rng.normal(level[user], level[user] / 2)
    amount = np.where(amount < 0, rng.uniform(0, 2 * level[user]), amount)
    terminal = np.concatenate(
        [
            rng.choice(near, number) if len(near) else np.full(number, -1)
            for index, number in zip(indexes, count.tolist(), strict=True)
            for near in [np.flatnonzero(((shops - index) ** 2).sum(axis=1) < _RADIUS**2)]
        ]
    )
    kept = (second > 0) & (second < MS_PER_DAY / 1000) & (terminal >= 0)
    user, day, second, amount, terminal = (x[kept] for x in (user, day, second, amount, terminal))
    kind = np.zeros(len(user), np.int64)
    kind[amount > _LARGE_MINOR / 100] = 1
    _compromise(rng, world, day, terminal, kind)
    _leak(rng, world, day, user, kind, amount, second)
    order = np.argsort(day * 86_400.0 + second, kind="stable")
    user, day, second, amount, terminal, kind = (
        x[order] for x in (user, day, second, amount, terminal, kind)
    )
    times = _START_MS + day * MS_PER_DAY + (second * 1000).astype(np.int64)
    rows = len(user)

    def constant(text: str) -> npt.NDArray[np.object_]:
        return np.full(rows, text, np.object_)

    table = TransactionTable(
        transaction_id=np.arange(rows).astype(str).astype(np.object_),
        user_id=user.astype(str).astype(np.object_),
        channel=constant("card"),
        transaction_type=constant("purchase"),
        currency=constant("EUR"),
        event_time_ms=times,
        amount_minor=np.rint(amount * 100).astype(np.int64),
        minor_units=np.full(rows, 100, np.int64),
        pre_balance_minor=np.full(rows, MISSING, np.int64),
        post_balance_minor=np.full(rows, MISSING, np.int64),
        merchant_id=terminal.astype(str).astype(np.object_),
        is_fraud=(kind > 0).astype(np.int8),
        label_time_ms=times + 7 * MS_PER_DAY,
    )
    return table, kind.astype(str).astype(np.object_)


def _rows_by(who: npt.NDArray[np.int64], count: int) -> list[npt.NDArray[np.int64]]:
    order = np.argsort(who, kind="stable")
    return np.split(order, np.cumsum(np.bincount(who, minlength=count))[:-1])


def _struck(
    rng: np.random.Generator,
    world: World,
    day: npt.NDArray[np.int64],
    rows_of: list[npt.NDArray[np.int64]],
    count: int,
    lasting: tuple[int, int],
) -> Iterator[tuple[npt.NDArray[np.int64], bool]]:
    """Yield the rows of each of ``count`` struck every day, and whether frauds have changed by then.

    ``lasting`` is for how many days one is struck, before the change and after it.
    """
    for today in range(world.days):
        changed = world.change_day is not None and today >= world.change_day
        for which in rng.choice(len(rows_of), count, replace=False).tolist():
            rows = rows_of[which]
            yield rows[(day[rows] >= today) & (day[rows] < today + lasting[changed])], changed


def _compromise(
    rng: np.random.Generator,
    world: World,
    day: npt.NDArray[np.int64],
    terminal: npt.NDArray[np.int64],
    kind: npt.NDArray[np.int64],
) -> None:
    for rows, changed in _struck(rng, world, day, _rows_by(terminal, world.terminals), 2, (28, 10)):
        kind[rng.choice(rows, len(rows) // 2, replace=False) if changed else rows] = 2


def _leak(
    rng: np.random.Generator,
    world: World,
    day: npt.NDArray[np.int64],
    user: npt.NDArray[np.int64],
    kind: npt.NDArray[np.int64],
    amount: npt.NDArray[np.float64],
    second: npt.NDArray[np.float64],
) -> None:
    for these, changed in _struck(rng, world, day, _rows_by(user, world.customers), 3, (14, 14)):
        rows = rng.choice(these, len(these) // 3, replace=False)
        kind[rows] = 3
        amount[rows] *= 0.1 if changed else 5.0
        if changed:
            second[rows] = rng.uniform(0, 18_000, len(rows))


def judge(
    world: World, *, first_day: int, folds: int, retrain: Sequence[bool], threads: int
) -> Iterator[dict[str, Any]]:
    """Yield the result of :func:`.evaluate_weeks` for each of ``retrain``.

    Each fold has the average precision of an oracle that knows the kinds of fraud beside its own.
    """
    table, kind = draw(world)
    protocol = Protocol(_START_MS + first_day * MS_PER_DAY, folds)
    features = weekly_features(table, CARDS, protocol)
    knowing = [knowledge_scores(table, kind, protocol.label_delay_ms, seed=seed) for seed in range(5)]
    for anew in retrain:
        found = evaluate_weeks(
            table,
            CARDS,
            replace(protocol, retrain=anew),
            scenario=kind,
            ceiling=knowing,
            threads=threads,
            features=features,
        )
        for number, fold in enumerate(found["folds"]):
            week = week_fold(
                table,
                protocol.first_week_ms + 7 * number * MS_PER_DAY,
                label_delay_ms=protocol.label_delay_ms,
                training_days=None,
            )
            known = [fold_metrics(table, week, scores[week.test]) for scores in knowing]
            fold["knowing"] = float(np.mean([each["average_precision"] for each in known]))
        yield found


def main() -> None:
    """Print a table for the chosen worlds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument(
        "--change",
        action="store_true",
        help="let the frauds change, and evaluate with and without retraining",
    )
    parser.add_argument("--customers", type=int, default=5_000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print("\n".join(describe(environment())))
    print("\nAUC, average precision, card precision@100 (average precision of the oracle)")
    names = ("auc", "average_precision", "card_precision_100")
    for seed in options.seeds:
        # With a change on day 78, the weeks from 64 on are two before it and eleven after it.
        world = World(
            seed, options.customers, 2 * options.customers, change_day=78 if options.change else None
        )
        first_day, folds = (64, 13) if options.change else (129, 4)
        retrain = (True, False) if options.change else (True,)
        judged = judge(world, first_day=first_day, folds=folds, retrain=retrain, threads=options.threads)
        for anew, found in zip(retrain, judged, strict=True):
            print(f"\nseed {seed}" + ("" if anew else ", without retraining"))
            if options.change:
                for fold in found["folds"]:
                    figures = "  ".join(f"{fold[name]:.4f}" for name in names)
                    print(f"  {fold['week']}  {figures}  ({fold['knowing']:.4f})")
            print("  mean        " + "  ".join(f"{found['mean'][name]:.4f}" for name in names))
            print(
                "  ceiling     " + "  ".join(f"{found['knowledge_ceiling'][name]:.4f}" for name in names),
                flush=True,
            )


if __name__ == "__main__":
    main()
