"""A transaction costs no more calls and bytes than it did: counted, not timed (:mod:`support.call_counts`)."""

from __future__ import annotations

import json

import pytest

from support.call_counts import BASELINE, VERSION, measured

GROWTH = 1.10


@pytest.fixture(scope="module")
def runs() -> list[dict[str, float]]:
    measured()  # a process's first run fills caches
    return [measured(), measured()]


def test_a_transaction_costs_no_more_than_it_did(runs: list[dict[str, float]]) -> None:
    baseline = json.loads(BASELINE.read_text(encoding="utf-8"))
    found = runs[0]
    allowed = baseline["any"] | baseline.get(VERSION, {})
    grown = {
        name: (round(found[name], 3), before)
        for name, before in allowed.items()
        if found[name] > GROWTH * before
    }
    assert not grown, f"more than 10 % above the baseline (found, before): {grown}; see make guard-baseline"
    if VERSION not in baseline:
        pytest.skip(f"calls have no baseline on Python {VERSION}; make guard-baseline writes one")


def test_the_counts_are_the_same_in_every_run(runs: list[dict[str, float]]) -> None:
    assert runs[0] == runs[1]
