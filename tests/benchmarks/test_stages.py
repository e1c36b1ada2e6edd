"""The table of stages: every function is timed wherever it is called from, and is itself again afterwards."""

from __future__ import annotations

from benchmarks.stages import _Clock, _places, _watched
from stream.features.vector import VectorBuilder
from stream.pipeline import columns, transactions
from stream.pipeline.entity_join import responses
from support.bundles import made_bundle


def test_what_a_stage_calls_is_timed_and_left_as_it_was() -> None:
    before, clock = vars(VectorBuilder)["empty"], _Clock()
    with _watched(clock):
        VectorBuilder(made_bundle().spec).empty(3)
        assert vars(VectorBuilder)["empty"] is not before
    assert clock.seconds["vector"] > 0
    assert clock.seconds["score"] == 0
    assert vars(VectorBuilder)["empty"] is before


def test_a_function_is_timed_in_every_module_that_has_it() -> None:
    places = _places(columns.events_of)
    assert {columns, transactions, responses} <= {*places}
