"""What all tests share: a broker of each kind and a trained model for the whole run, made when a test asks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from stream.kafka.local.apache import missing_tools
from support.run_folder import RunFolder, run_folder
from support.shared_brokers import SharedBroker, shared_broker, wait_for_hosts

if TYPE_CHECKING:
    from pathlib import Path

    from stream.scoring.bundle import Bundle

# The same examples on every run and every machine: a failure is a defect, not luck. Search further with
# --hypothesis-profile=search.
settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, max_examples=2_000)
settings.load_profile("same")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what is no test: with ``--doctest-modules`` every module here would be imported for one."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder that the run's processes share, in the one that controls them."""
    if not hasattr(config, "workerinput"):
        # Half of what a broker's short life costs is the second compiler, and its profiles in a file.
        os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:-UsePerfData")
        made = RunFolder()
        config.add_cleanup(lambda: made.end(wait_for_hosts))


def the_run_folder() -> Path:
    folder = run_folder()
    assert folder is not None
    return folder


BROKER_KINDS = ["embedded", pytest.param("kafka", marks=pytest.mark.kafka)]


@pytest.fixture(scope="session")
def kafka_tools() -> None:
    """Skip where Java or Maven is missing; fail there with RISKSTREAM_REQUIRE_KAFKA=1."""
    missing = missing_tools()
    if missing is not None:
        if os.environ.get("RISKSTREAM_REQUIRE_KAFKA") == "1":
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.fixture(scope="session")
def embedded_broker() -> SharedBroker:
    return shared_broker("embedded", the_run_folder())


@pytest.fixture(scope="session")
def kafka_broker(kafka_tools: None) -> SharedBroker:
    return shared_broker("kafka", the_run_folder())


@pytest.fixture(scope="session", params=BROKER_KINDS)
def broker(request: pytest.FixtureRequest) -> SharedBroker:
    """Each kind in turn; its topics are shared, so use ``support.helpers.settings_for``."""
    shared: SharedBroker = request.getfixturevalue(f"{request.param}_broker")
    return shared


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """A trained model; the same in every run."""
    from support.bundles import trained_bundle

    return trained_bundle()


@pytest.fixture(scope="session")
def compilations() -> Any:
    """What warming up compiles; once it is there, a worker starts without compiling anything."""
    from support.compilations import compile_once

    return compile_once(the_run_folder())
