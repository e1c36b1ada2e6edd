"""Where the project's files lie, and what a child process needs to import its modules and these helpers."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
SCHEMAS = ROOT / "docs" / "reference" / "schemas"
#: For ``PYTHONPATH``. The root comes first: ``tests/stream`` must not be taken for the package.
SEARCH_PATH = os.pathsep.join([str(ROOT), str(TESTS)])
