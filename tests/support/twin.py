"""What the kernels make of a fixed stream, as one digest: run compiled and as plain Python, they must agree.

``PYTHONPATH=tests python -m support.twin SEED COUNT``; with ``NUMBA_DISABLE_JIT=1`` every kernel is the plain Python that it is written in.
"""

from __future__ import annotations

import hashlib
import random
import sys
import warnings

import numpy as np

from stream.features.windows.cache import HistoryCache
from support.histories import DAY, HOUR, Engine, Event, Taken

_START = 1_700_000_000_000


def stream_of(seed: int, count: int) -> list[Taken]:
    """A user with many events and some with few; late ones, ties, repeated ids, extreme amounts."""
    rng = random.Random(seed)
    clock = [_START] * 4
    taken: list[Taken] = []
    for number in range(count):
        user = rng.choice([0, 0, 0, 0, 1, 1, 2, 3])
        clock[user] += rng.choice([0, 1, HOUR, rng.randrange(DAY)])
        time = clock[user] - rng.choice([0] * 12 + [HOUR, 2 * DAY, 5 * DAY, 40 * DAY])
        id_hash = f"t{rng.randrange(number + 1) if rng.random() < 0.05 else number}"
        amount = rng.choice([0, 1, 10**15, rng.randrange(10**6)])
        merchant = rng.choice([None, f"m{rng.randrange(40)}"])
        taken.append((f"user-{user}", Event(id_hash, max(0, time), amount, merchant, rng.choice([1, 100]))))
    return taken


def digest(seed: int, count: int) -> str:
    """Return a digest of every outcome, feature bit and stored byte."""
    engine = Engine(3 * DAY, cache=HistoryCache(1 << 18))
    found = hashlib.sha256()
    taken = stream_of(seed, count)
    for begin in range(0, count, 37):
        outcomes, features = engine.take(taken[begin : begin + 37])
        found.update(repr(outcomes).encode())
        found.update(np.ascontiguousarray(features).tobytes())
    for key in sorted(engine.memory):
        found.update(key + engine.memory[key])
    return found.hexdigest()


if __name__ == "__main__":
    # Plain Python notices what machine words do silently.
    warnings.simplefilter("ignore", RuntimeWarning)
    sys.stdout.write(digest(int(sys.argv[1]), int(sys.argv[2])) + "\n")
