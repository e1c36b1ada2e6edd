"""Nothing is left to compile once a worker is ready."""

from __future__ import annotations

import json
import subprocess
import sys

from support.paths import ROOT, SEARCH_PATH


def test_no_transaction_waits_for_a_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "support.compilations"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": SEARCH_PATH, "PATH": ""},
    )
    by_warming_up, by_warming_up_stages, by_traffic = json.loads(done.stdout)
    assert by_warming_up, "there was nothing to compile"
    assert by_warming_up_stages, "there was nothing to compile for profiles"
    assert by_traffic == []
