"""Tools that a test needs: it is skipped where one is missing, and fails where the tools are required."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

#: With 1, a missing tool fails the test; CI sets it.
VARIABLE = "RISKSTREAM_REQUIRE_TOOLS"


def without(reason: str) -> NoReturn:
    """Skip the test, or fail it with RISKSTREAM_REQUIRE_TOOLS=1."""
    if os.environ.get(VARIABLE) == "1":
        pytest.fail(f"{reason}; {VARIABLE}=1 requires it")
    pytest.skip(reason)
