"""Models for the deployments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from chaos.rounds import save_bundles

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def bundles(compilations: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    return save_bundles(tmp_path_factory.mktemp("bundles"))
