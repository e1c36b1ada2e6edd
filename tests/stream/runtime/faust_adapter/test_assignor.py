"""The assignor: an assignment with a former address of this worker.

A test named ``test_upstream_…`` that fails means that Faust has changed, and that the override may go.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from faust.assignor.client_assignment import ClientAssignment, ClientMetadata
from faust.assignor.partition_assignor import PartitionAssignor

from stream.runtime.faust_adapter.assignor import Assignor
from support.faust_apps import TOPIC, make_app

if TYPE_CHECKING:
    from pathlib import Path

# --- 9. an assignment with a former address of this worker -----------------------------------------------


def assignment_of(url: str) -> ConsumerProtocolMemberAssignment:
    told = ClientMetadata(
        assignment=ClientAssignment(actives={}, standbys={}),
        url=url,
        changelog_distribution={url: {"changelog": [0]}},
        external_topic_distribution={},
        topic_groups={},
    )
    return ConsumerProtocolMemberAssignment(4, [], zlib.compress(told.dumps()))


def test_upstream_dies_of_a_former_address(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        assignor = PartitionAssignor(make_app(tmp_path, canonical_url="http://here:2"))
        with pytest.raises(AssertionError):
            assignor.on_assignment(assignment_of("http://here:1"))

    run(main())


def test_ours_takes_it_and_tells_its_own_when_it_joins(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        assignor = Assignor(make_app(tmp_path, canonical_url="http://here:2"))
        assignor.on_assignment(assignment_of("http://here:1"))
        assert assignor.table_metadata("changelog") == {"http://here:1": {"changelog": [0]}}
        assert ClientMetadata.loads(assignor.metadata({TOPIC}).user_data).url == "http://here:2"

    run(main())
