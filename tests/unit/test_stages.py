"""The benchmark's table of stages names functions of the product, which are renamed now and then."""

from __future__ import annotations

from benchmarks.stages import _STAGES


def test_every_stage_is_still_there() -> None:
    missing = [
        (stage, name)
        for stage, functions in _STAGES.items()
        for owner, name in functions
        if not hasattr(owner, name)
    ]
    assert missing == []
