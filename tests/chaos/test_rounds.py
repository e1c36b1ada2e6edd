"""A fixed part of ``make chaos`` that every run of the tests does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaos.faults import KNOWN, NEEDS_ROOT
from chaos.rounds import Lane
from support.required import without

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = [pytest.mark.kafka, pytest.mark.slow]


SEED = 7


#: Where the effects of a micro-batch or of two stages part, where partitions move, and what happens to files
#: and brokers. ``make chaos`` has every kind of fault, at every step.
SUBSET = (
    "SIGKILL at outputs_sent",
    "SIGKILL at changelog_acked",
    "SIGKILL at part_stored",
    "SIGTERM at changelog_sent",
    "dead letters not writable",
    "changelog compacted",
    "clock jumps",
    "disk full",
    "SIGSTOP at changelog_sent",
    "SIGKILL at requests_sent",
    "a worker joins",
    "broker SIGKILL",
)


#: Those of them that break a deployment of a model with profiles. The others break one without.
PROFILED = frozenset(
    {"SIGSTOP at changelog_sent", "SIGKILL at requests_sent", "a worker joins", "broker SIGKILL"}
)


#: One kind behind the other, so that there are few deployments.
ROUNDS = sorted(SUBSET, key=lambda name: name in PROFILED)


@pytest.fixture(scope="module")
def lane(
    kafka_tools: None, tmp_path_factory: pytest.TempPathFactory, bundles: dict[bool, Path]
) -> Iterator[Lane]:
    with Lane(tmp_path_factory.mktemp("chaos"), bundles, SEED) as made:
        yield made


@pytest.mark.parametrize("name", ROUNDS)
def test_nothing_is_lost_and_nothing_doubled(name: str, lane: Lane) -> None:
    result = lane.run(name, ROUNDS.index(name), profiled=name in PROFILED)
    if result.skipped == NEEDS_ROOT:
        pytest.skip(NEEDS_ROOT)
    if result.skipped:
        without(result.skipped)
    if result.problem and name in KNOWN:
        pytest.xfail(f"{KNOWN[name]}: {result.problem}")
    assert not result.problem, result.problem
    assert result.transactions > 0
    assert (result.lost, result.doubled) == (0, 0)
