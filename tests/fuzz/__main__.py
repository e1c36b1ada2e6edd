"""``make fuzz``: a million hostile inputs, seeded; then the decoder once more, guided by its coverage."""

from __future__ import annotations

import argparse
import faulthandler
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

from fuzz import batches, decoder, state

#: Of the inputs, so many are for the state reader, and for the reader of fetched batches.
_STATE_SHARE = 0.3
_BATCH_SHARE = 0.2
_USERS_A_BATCH = 25

#: A hang is an input, or a batch of them, that takes longer.
_HANG_SECONDS = 60

#: What the inputs may add to the process's memory. A head that says that it has 65,536 chunks gets room for
#: them, some 30 MiB, before they are found not to be there.
_MOST_GROWTH_MIB = 600


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guided-runs", type=int, default=0, help="inputs of atheris, which must be there")
    options = parser.parse_args()
    # Ends the process, with the place at which it hangs.
    faulthandler.enable()
    taken = _decoder(int(options.runs * (1 - _STATE_SHARE - _BATCH_SHARE)), options.seed)
    read = _batches(int(options.runs * _BATCH_SHARE), options.seed)
    refused = _state(int(options.runs * _STATE_SHARE), options.seed)
    print(
        f"{options.runs:,} hostile inputs, seed {options.seed}: {taken:,} records taken, {read:,} records of fetches "
        f"read, {refused:,} histories refused"
    )
    return _guided(options.guided_runs, options.seed) if options.guided_runs else 0


def _decoder(runs: int, seed: int) -> int:
    rng = random.Random(f"decoder {seed}")
    decoder.check(decoder.hostile(rng))
    before, started, taken = _peak_mib(), time.monotonic(), 0
    for at in range(runs):
        if at % 1_000 == 0:
            faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
        taken += decoder.check(decoder.hostile(rng))
    _report("decoder", runs, started, before)
    return taken


def _batches(runs: int, seed: int) -> int:
    rng = random.Random(f"batches {seed}")
    batches.check(batches.hostile(rng))
    before, started, read = _peak_mib(), time.monotonic(), 0
    for at in range(runs):
        if at % 1_000 == 0:
            faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
        read += batches.check(batches.hostile(rng))
    _report("batches", runs, started, before)
    return read


def _state(runs: int, seed: int) -> int:
    rng = random.Random(f"state {seed}")
    readers = [state.Reader(resident=False), state.Reader(resident=True)]
    faulthandler.dump_traceback_later(20 * _HANG_SECONDS, exit=True)  # the kernels are compiled first
    for reader in readers:
        reader.check([state.hostile(rng)], rng)
    before, started, refused = _peak_mib(), time.monotonic(), 0
    for at in range(0, runs, _USERS_A_BATCH):
        faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
        spoilt = [state.hostile(rng) for _ in range(_USERS_A_BATCH)]
        refused += readers[at // _USERS_A_BATCH % 2].check(spoilt, rng)
    _report("state", runs, started, before)
    return refused


def _report(name: str, runs: int, started: float, before: float) -> None:
    faulthandler.cancel_dump_traceback_later()
    growth = _peak_mib() - before
    seconds = time.monotonic() - started
    print(f"{name:<8} {runs:>9,} inputs in {seconds:.0f} s, memory grew by {growth:.0f} MiB", flush=True)
    assert growth < _MOST_GROWTH_MIB, f"the {name}'s memory grew by {growth:.0f} MiB"


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _guided(runs: int, seed: int) -> int:
    """Run atheris in a process of its own: libFuzzer ends the process that it runs in."""
    script = Path(__file__).with_name("guided.py")
    return subprocess.run(
        [sys.executable, str(script), f"-runs={runs}", f"-seed={seed}"], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
