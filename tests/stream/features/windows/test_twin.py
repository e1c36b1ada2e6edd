"""The kernels do compiled what the Python they are written in says."""

from __future__ import annotations

import os
import subprocess
import sys

from support.paths import SEARCH_PATH
from support.twin import digest


def test_compiled_kernels_equal_their_plain_python_twin() -> None:
    twin = subprocess.run(
        [sys.executable, "-m", "support.twin", "1", "2500"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": SEARCH_PATH},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert twin.stdout.strip() == digest(1, 2500)
