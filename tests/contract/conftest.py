"""Deployments for the contract's tests; the bundle is trained once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from support.bundles import made_bundle, trained_bundle
from support.profiles import PROFILES
from support.streams import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from stream.kafka.local.base import Broker


@pytest.fixture(scope="session")
def bundle_folder(compilations: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    trained_bundle().save(folder)
    return folder


@pytest.fixture(scope="session")
def profiled_folder(compilations: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiled")
    made_bundle(entities=PROFILES).save(folder)
    return folder


@pytest.fixture(scope="session")
def shared(broker: Broker, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stream]:
    """A deployment with a worker that runs; for tests that end nothing and bring their own users."""
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    stream = Stream(broker, tmp_path_factory.mktemp("shared"), bundle_folder, core=core)
    try:
        stream.start()
        yield stream
    finally:
        stream.close()


@pytest.fixture
def make_stream(broker: Broker, bundle_folder: Path, tmp_path: Path) -> Iterator[Callable[..., Stream]]:
    """Make deployments that end with the test."""
    made: list[Stream] = []

    def make(**overrides: Any) -> Stream:
        made.append(Stream(broker, tmp_path, overrides.pop("bundle", bundle_folder), **overrides))
        return made[-1]

    yield make
    for stream in made:
        stream.close()
