"""``riskstream demo`` with data of one's own: broker, training, worker and figures, by a mapping alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from stream.scoring.bundle import Bundle
from support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_another_generators_data_goes_through_the_whole_job(tmp_path: Path) -> None:
    command = [
        sys.executable, "-c", "from stream.cli import main; main()", "demo",
        "--data", str(ROOT / "tests" / "data" / "synccfd.parquet"),
        "--mapping", str(ROOT / "docs" / "examples" / "synccfd.toml"),
        "--folder", str(tmp_path / "demo"), "--json", str(tmp_path / "figures.json"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_bytes())
    assert figures["transactions"] == figures["scored"] == 6_762
    assert (figures["lost"], figures["duplicates"], figures["dead_letters"]) == (0, 0, 0)
    assert figures["auc"] > 0.6
    assert figures["alerts"] > 0
    # Its further columns are features of the model that was served.
    assert "attributes.terminal_latitude" in Bundle.load(tmp_path / "demo" / "bundle").spec.names
