"""Batches of every codec, from librdkafka and from Kafka's Java client, are decided like any other."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import confluent_kafka
import pytest

from stream.cli.commands import check
from stream.kafka import compression
from stream.kafka.local.apache import _libraries_folder
from support.helpers import wait_until
from support.streams import Stream

if TYPE_CHECKING:
    from stream.kafka.local.base import Broker

CODECS = ("none", *compression.CODECS)
RECORDS = 25
START_MS = 1_750_000_000_000

pytestmark = pytest.mark.kafka


def values(client: str, codec: str) -> list[dict[str, object]]:
    return [
        {
            "transaction_id": f"{client}-{codec}-{number}",
            "user_id": f"user-{number % 5}",
            "event_time": START_MS + number * 60_000,
            "amount": "12.50",
            "currency": "EUR",
            "channel": "web",
            "transaction_type": "purchase",
            "memo": "compressible " * 20,
        }
        for number in range(RECORDS)
    ]


def send_librdkafka(servers: str, topic: str, codec: str) -> None:
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": servers, "compression.codec": codec, "linger.ms": 100}
    )
    for value in values("librdkafka", codec):
        producer.produce(topic, key=str(value["user_id"]), value=json.dumps(value))
    assert producer.flush(30) == 0


def send_java(servers: str, topic: str, codec: str, folder: Path) -> None:
    lines = folder / f"{codec}.txt"
    lines.write_text("\n".join(f"{value['user_id']}\t{json.dumps(value)}" for value in values("java", codec)))
    java = shutil.which("java")
    assert java is not None
    program = Path(__file__).with_name("Produce.java")
    subprocess.run(
        [java, "-cp", f"{_libraries_folder() / 'libs'}/*", program, servers, topic, codec, lines], check=True
    )


def test_every_codec_of_both_clients_is_decided(
    kafka_broker: Broker, bundle_folder: Path, tmp_path: Path
) -> None:
    stream = Stream(kafka_broker, tmp_path, bundle_folder)
    servers, topic = kafka_broker.bootstrap_servers, stream.settings.topics.transactions
    try:
        for codec in CODECS:
            send_librdkafka(servers, topic, codec)
            send_java(servers, topic, codec, tmp_path)
        wanted = {
            str(value["transaction_id"])
            for client in ("librdkafka", "java")
            for codec in CODECS
            for value in values(client, codec)
        }
        worker = stream.start()
        decided: set[str] = set()

        def done() -> bool:
            assert worker.process.poll() is None, worker.log
            decided.update(found.json["transaction_id"] for found in stream.read("decisions"))
            return decided >= wanted

        wait_until(done, "not every transaction is decided")
        assert decided == wanted
        assert stream.read("dead_letters") == []
        [finding] = [found for found in check.findings(stream.settings) if found.name == "compression"]
        assert (finding.state, finding.text) == ("ok", "can decode the topics' producer")
    finally:
        stream.close()


def test_a_codec_that_cannot_be_decoded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compression.undecodable(["producer", "uncompressed", "zstd"]) == []
    monkeypatch.setattr(compression.aiokafka_codec, "cramjam", None)
    assert compression.undecodable(["uncompressed"]) == []
    assert compression.undecodable(["gzip"]) == []
    assert compression.undecodable(["lz4"]) == ["lz4"]
    assert compression.undecodable(["producer"]) == ["lz4", "snappy", "zstd"]
