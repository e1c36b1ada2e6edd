"""Nothing is left to compile once a worker is ready."""

from __future__ import annotations

from typing import Any


def test_no_transaction_waits_for_a_compiler(compilations: Any) -> None:
    by_warming_up, by_warming_up_stages, by_traffic = compilations
    assert by_warming_up, "there was nothing to compile"
    assert by_warming_up_stages, "there was nothing to compile for profiles"
    assert by_traffic == []
