"""``riskstream check`` against a broker: what is right, what is wrong, and the status it ends with."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from kafka import KafkaProducer

from stream.cli.commands.check import findings
from stream.kafka import admin
from stream.kafka.clients import client_config
from stream.kafka.local.base import free_port
from support.helpers import settings_for

if TYPE_CHECKING:
    from pathlib import Path

    from stream.kafka.local.base import Broker
    from stream.settings import Settings

COMMAND = [sys.executable, "-c", "from stream.cli import main; main()", "check"]


def states(settings: Settings, now_ms: int | None = None) -> dict[str, str]:
    """Return the worst state of each name."""
    worst: dict[str, str] = {}
    for found in findings(settings, now_ms):
        if worst.get(found.name) != "FAIL":
            worst[found.name] = found.state
    return worst


@pytest.fixture
def good(broker: Broker, bundle_folder: Path, tmp_path: Path) -> Settings:
    return settings_for(broker, bundle=bundle_folder, state_dir=tmp_path / "state")


def test_all_is_well(good: Settings, broker: Broker) -> None:
    admin.create_topics(good)
    assert states(good) == {
        "settings": "ok",
        "model": "ok",
        "signature": "note",
        "state": "ok",
        "broker": "ok",
        "topic": "ok",
        "fencing": "ok" if broker.kind == "kafka" else "note",
        "compression": "ok",
        "clock": "note",
        "partitioner": "note",
    }
    done = subprocess.run(COMMAND, env=good.child_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ok    topic: {good.topics.transactions}" in done.stdout
    assert not good.state_dir.exists(), "it changes nothing"


def test_missing_topics_are_a_note_where_a_worker_makes_them(good: Settings) -> None:
    assert states(good)["topic"] == "note"
    strict = good.model_copy(update={"topics": good.topics.model_copy(update={"create": False})})
    assert states(strict)["topic"] == "FAIL"
    done = subprocess.run(
        COMMAND, env=strict.child_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "does not exist" in done.stdout
    assert "Traceback" not in done.stderr


def test_topics_of_another_shape_are_wrong(good: Settings) -> None:
    admin.create_topics(good)
    other = good.model_copy(update={"topics": good.topics.model_copy(update={"partitions": 7})})
    wrong = [found for found in findings(other) if found.state == "FAIL"]
    assert wrong
    assert all("partitions, not 7" in found.text and found.exit_code == 4 for found in wrong)


def test_the_clock_is_compared_with_the_newest_transaction(good: Settings) -> None:
    admin.create_topics(good)
    producer = KafkaProducer(**client_config(good.kafka))
    try:
        for partition in range(2):
            producer.send(
                good.topics.transactions, key=b"u", value=json.dumps({}).encode(), partition=partition
            ).get(30)
    finally:
        producer.close()
    now = time.time_ns() // 1_000_000
    assert states(good)["clock"] == "ok"
    assert states(good, now - 3_600_000)["clock"] == "FAIL"


def test_no_broker(good: Settings) -> None:
    kafka = good.kafka.model_copy(
        update={"bootstrap_servers": f"127.0.0.1:{free_port()}", "request_timeout_seconds": 1.0}
    )
    found = list(findings(good.model_copy(update={"kafka": kafka})))
    assert (found[-1].name, found[-1].state, found[-1].exit_code) == ("broker", "FAIL", 4)
