"""What every implementation of a protocol must do, whatever it is made of.

A new reader of state or a new scorer passes these before anything else is tried on it: call the check with it from
a test beside its module.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from stream.state.store import StateReader

__all__ = ["Scorer", "check_scorer", "check_state_reader"]


class Scorer(Protocol):
    """What gives each row a probability of fraud, and says what moved it."""

    def scores(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...

    def contributions(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...


#: Keys as they are: users' ids with a kind and a number behind them, one a prefix of another, zeros and 0xff in them.
RECORDS: Mapping[bytes, bytes] = {
    b"u\0H\0\0\0\0": b"head",
    b"u\0C\0\0\0\1": b"\0" * 3_000,
    b"u\0C\0\0\1\0": bytes(range(256)) * 40,
    b"u1\0H\0\0\0\0": b"another user, whose id begins alike",
    "üser-漢字\0H\0\0\0\0".encode(): b"x",
    b"\xff\x02" + b"\xff" * 8 + b"\0P\0\0\0\0": b"an entity's",
    b"\0O\0\0\0\0": b"an owner's",
    b"long" * 2_000: b"the longest key",
    b"empty\0H\0\0\0\0": b"",
}
MISSING = (b"u", b"u\0H", b"u\0H\0\0\0\1", b"v\0H\0\0\0\0", b"\0", b"")


def check_state_reader(make_reader: Callable[[Mapping[bytes, bytes]], StateReader]) -> None:
    """Check a reader of state.

    1. Every value comes in its key's place, whole; None where there is none, and no key is taken for its prefix.
    2. Keys may come in any order, more than once, or not at all.
    3. Reading changes nothing: the same question has the same answer.

    Parameters
    ----------
    make_reader
        Makes a reader of exactly these records.
    """
    reader = make_reader(RECORDS)
    keys = [*RECORDS, *MISSING]
    expected = [RECORDS.get(key) for key in keys]
    assert list(reader.read(keys)) == expected
    assert list(reader.read(keys)) == expected, "a read has changed what is read"
    assert list(reader.read([])) == []
    for key, value in zip(keys, expected, strict=True):
        assert list(reader.read([key])) == [value], key
    rng = random.Random(1)
    for _ in range(20):
        chosen = rng.choices(keys, k=rng.randint(1, 40))
        assert list(reader.read(chosen)) == [RECORDS.get(key) for key in chosen]
    assert list(make_reader({}).read(keys)) == [None] * len(keys)


def check_scorer(scorer: Scorer, features: int, seed: int = 1) -> None:
    """Check a scorer of rows with so many features.

    1. Scores are probabilities: finite, from 0 to 1, whatever the row; a missing value is not-a-number.
    2. They do not change from call to call, with the order of rows, or with which rows are scored together.
    3. Contributions have a column for each feature and one for the expectation, add up to the log-odds of the score,
       and do not depend on which rows are explained together either.
    4. No row is altered, and no rows are no scores.
    """
    random_rows = np.random.default_rng(seed)
    rows = random_rows.normal(scale=3.0, size=(97, features))
    rows[random_rows.random(rows.shape) < 0.2] = np.nan
    rows[0], rows[1], rows[2], rows[3] = np.nan, 0.0, 1e15, -1e15
    given = rows.copy()
    scores, moved = scorer.scores(rows), scorer.contributions(rows)
    assert scores.shape == (len(rows),)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert ((scores >= 0.0) & (scores <= 1.0)).all()
    assert moved.shape == (len(rows), features + 1)
    assert np.isfinite(moved).all()
    np.testing.assert_array_equal(scorer.scores(rows), scores)
    np.testing.assert_array_equal(scorer.contributions(rows), moved)
    order = random_rows.permutation(len(rows))
    np.testing.assert_array_equal(scorer.scores(rows[order]), scores[order])
    np.testing.assert_array_equal(scorer.contributions(rows[order]), moved[order])
    for size in (1, 2, 5):
        parts = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
        np.testing.assert_array_equal(np.concatenate([scorer.scores(part) for part in parts]), scores)
        np.testing.assert_array_equal(np.concatenate([scorer.contributions(part) for part in parts]), moved)
    np.testing.assert_allclose(1.0 / (1.0 + np.exp(-moved.sum(axis=1))), scores, rtol=1e-9)
    np.testing.assert_array_equal(rows, given)
    assert scorer.scores(rows[:0]).shape == (0,)
    assert scorer.contributions(rows[:0]).shape == (0, features + 1)
