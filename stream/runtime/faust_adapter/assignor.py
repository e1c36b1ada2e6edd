"""The assignor: takes an assignment made for an address that this worker had before."""

from __future__ import annotations

from typing import Any

from faust.assignor.client_assignment import ClientMetadata
from faust.assignor.partition_assignor import PartitionAssignor
from yarl import URL

__all__ = ["Assignor"]


class Assignor(PartitionAssignor):  # type: ignore[misc]
    """Takes an assignment with the address that this worker had before; the next rebalance corrects it."""

    _assigned_url: URL | None = None

    @property
    def _url(self) -> URL:
        return self._assigned_url or super()._url

    def on_assignment(self, assignment: Any) -> None:
        """Take an assignment."""
        self._assigned_url = URL(ClientMetadata.loads(self._decompress(assignment.user_data)).url)
        try:
            super().on_assignment(assignment)
        finally:
            self._assigned_url = None
