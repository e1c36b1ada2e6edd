"""The kernels do compiled what the Python they are written in says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twin import digest

TESTS = Path(__file__).parent.parent


def test_compiled_kernels_equal_their_plain_python_twin() -> None:
    search = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    twin = subprocess.run(
        [sys.executable, str(TESTS / "twin.py"), "1", "2500"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": search},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert twin.stdout.strip() == digest(1, 2500)
