"""``riskstream check``: whether a worker with these settings would find everything as it must be."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import click
import psutil

from stream.errors import ConfigError, RiskStreamError, StateError, TopicMismatchError
from stream.events.fields import MS_PER_DAY, format_event_time
from stream.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from stream.settings import Settings

__all__ = ["Finding", "check", "findings"]


#: RocksDB needs room to compact in.
_LEAST_FREE_BYTES: Final = 1 << 30

_READ_SECONDS: Final = 5.0

#: Settings of brokers that limit fencing, Kafka's defaults in days, and the effect of less.
_FENCING: Final = (
    (
        "producer.id.expiration.ms",
        1,
        "a worker paused for longer may write to a changelog partition that received nothing meanwhile",
    ),
    (
        "transactional.id.expiration.ms",
        7,
        "a worker that has owned a partition for longer may still write after another one has taken over",
    ),
)

#: Records of each partition whose keys are compared with the partitioner.
_NEWEST_RECORDS: Final = 200

_DAY_SECONDS: Final = 86_400


class Finding(NamedTuple):
    """The result of one check.

    Attributes
    ----------
    state
        "ok", "note" if a worker would run but an operator should know, "FAIL" if it would not run, or if its
        scores would be wrong.
    exit_code
        Exit status of the error that would end a worker.
    """

    name: str
    state: Literal["ok", "note", "FAIL"]
    text: str
    exit_code: int = 0


@click.command()
def check() -> None:
    """Check settings, model, state folder, broker, topics, clock and partitioner; changes nothing.

    Prints a line for each. Exits with 0 where a worker could start, and otherwise with the status that it
    would end with: 2 settings, 3 model, 4 broker or topics, 6 state.
    """
    status = 0
    for found in findings(load_settings()):
        print(f"{found.state:<6}{found.name}: {found.text}", flush=True)
        status = status or found.exit_code
    sys.exit(status)


def findings(settings: Settings, now_ms: int | None = None) -> Iterator[Finding]:
    """Check everything; a check that depends on a failed one is left out.

    Parameters
    ----------
    now_ms
        The time to check against; by default this machine's clock.
    """
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    yield Finding("settings", "ok", f"app {settings.app_id}, broker {settings.kafka.bootstrap_servers}")
    yield from _guarded("mapping", lambda: _mapping(settings))
    yield from _guarded("model", lambda: _model(settings, now))
    yield from _guarded("state", lambda: _state(settings))
    reached = True
    for found in _guarded("broker", lambda: _broker(settings)):
        reached = found.state != "FAIL"
        yield found
    if reached:
        yield from _guarded("topics", lambda: _topics(settings))
        yield from _guarded("fencing", lambda: _fencing(settings))
        yield from _guarded("compression", lambda: _compression(settings))
        yield from _guarded("transactions", lambda: _transactions(settings, now))


def _guarded(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except RiskStreamError as error:
        yield Finding(name, "FAIL", str(error), error.exit_code)


def _mapping(settings: Settings) -> Iterator[Finding]:
    """Load the mapping of the transactions' messages, if there is one."""
    if settings.mapping is None:
        return
    from stream.events.mapping import load_mapping
    from stream.events.message_mapping import MessageMapping

    mapping = load_mapping(settings.mapping)
    MessageMapping(mapping)
    members = ", ".join(mapping.used_columns())
    yield Finding("mapping", "ok", f"{settings.mapping} takes the members {members} of each message")


def _model(settings: Settings, now_ms: int) -> Iterator[Finding]:
    """Load the bundle as a worker does, down to the compiled trees."""
    from stream.pipeline.effects import PipelineConfig
    from stream.pipeline.transactions import TransactionPipeline
    from stream.scoring.bundle import Bundle, describe_ttl

    bundle = Bundle.load(settings.bundle, settings.bundle_public_key)
    TransactionPipeline(bundle, PipelineConfig())
    trained = bundle.trained_at_seconds
    age = "" if trained is None else f", {(now_ms / 1000 - trained) / _DAY_SECONDS:.1f} days old"
    yield Finding(
        "model",
        "ok",
        f"{bundle.model_version}, {len(bundle.spec.names)} features (spec {bundle.spec.hash}){age}",
    )
    seal = bundle.seal
    if seal is not None and seal.signed_by:
        yield Finding("signature", "ok", f"signed by key {seal.signed_by}, sha256:{seal.digest}")
    else:
        yield Finding("signature", "note", "none is required: see RISKSTREAM_BUNDLE_PUBLIC_KEY")
    lateness = settings.history.allowed_lateness_days
    if bundle.allowed_lateness_ms not in {None, int(lateness * _DAY_SECONDS * 1000)}:
        yield Finding(
            "model",
            "note",
            f"it was trained with an allowed lateness of {bundle.allowed_lateness_ms / MS_PER_DAY:.3g} days, "
            f"RISKSTREAM_HISTORY__ALLOWED_LATENESS_DAYS is {lateness:.3g}",
        )
    user_ttl_ms = round((settings.history.user_ttl_days or 0) * MS_PER_DAY)
    if bundle.user_ttl_ms != user_ttl_ms:
        yield Finding(
            "model",
            "note",
            f"it was trained with a time to live of users of {describe_ttl(bundle.user_ttl_ms)}, with "
            f"RISKSTREAM_HISTORY__USER_TTL_DAYS it is {describe_ttl(user_ttl_ms)}",
        )
    if trained is not None and now_ms / 1000 < trained:
        yield Finding(
            "clock",
            "FAIL",
            (
                f"this machine's clock shows {format_event_time(now_ms)}, before the model was "
                "trained: set the clock"
            ),
            ConfigError.exit_code,
        )


def _state(settings: Settings) -> Iterator[Finding]:
    """Write a file into the state folder, or into the folder that would contain it."""
    folder = settings.state_dir.absolute()
    there = folder.is_dir()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".riskstream-check-") as file:
            file.write(b"check")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StateError(
            f"RISKSTREAM_STATE_DIR: {folder} cannot be written to: {error.strerror or error}"
        ) from error
    free = psutil.disk_usage(str(folder)).free
    text = f"{settings.state_dir} {'exists' if there else 'will be created'}, {free >> 30} GiB free"
    yield Finding("state", "ok" if free >= _LEAST_FREE_BYTES else "note", text)


def _broker(settings: Settings) -> Iterator[Finding]:
    from stream.kafka.admin import probe

    begun = time.monotonic()
    probe(settings.kafka, settings.kafka.request_timeout_seconds)
    yield Finding(
        "broker",
        "ok",
        f"responds in {(time.monotonic() - begun) * 1000:.0f} ms over {settings.kafka.security_protocol}",
    )


def _topics(settings: Settings) -> Iterator[Finding]:
    from stream.kafka.admin import topic_states

    for name, (_, problems, weaknesses) in topic_states(settings).items():
        missing = problems == ["does not exist"]
        if not problems and weaknesses:
            yield Finding("topic", "note", f"{name} {'; '.join(weaknesses)}")
        elif not problems:
            yield Finding("topic", "ok", name)
        elif missing and settings.topics.create:
            yield Finding("topic", "note", f"{name} does not exist; a worker will create it")
        else:
            yield Finding("topic", "FAIL", f"{name} {'; '.join(problems)}", TopicMismatchError.exit_code)


def _fencing(settings: Settings) -> Iterator[Finding]:
    """Read for how long the brokers recognise the writes of a former owner."""
    from stream.kafka.admin import broker_configs

    for setting, least_days, forgotten in _FENCING:
        values = broker_configs(settings, setting)
        if not values:
            yield Finding("fencing", "note", f"the brokers do not report {setting}")
            continue
        least_ms = least_days * MS_PER_DAY
        short = {broker: value for broker, value in values.items() if int(value) < least_ms}
        if short:
            listed = ", ".join(f"{value} on broker {broker}" for broker, value in short.items())
            text = f"{setting} is {listed}, less than Kafka's default of {least_ms}: {forgotten}"
            yield Finding("fencing", "note", text)
        else:
            days = min(map(int, values.values())) / MS_PER_DAY
            yield Finding("fencing", "ok", f"{setting} is {days:.3g} d on every broker")


def _compression(settings: Settings) -> Iterator[Finding]:
    """Compress and decompress with every codec that the topics may contain."""
    from stream.kafka.admin import compression_types
    from stream.kafka.compression import undecodable

    topics = settings.topics
    names = (topics.transactions, topics.labels, topics.alerts, topics.dead_letters)
    types = compression_types(settings, names)
    missing = undecodable(types.values())
    if missing:
        yield Finding(
            "compression",
            "FAIL",
            f"this installation cannot decode {', '.join(missing)}, which {', '.join(types)} may contain: "
            "install RiskStream with its locked requirements",
            ConfigError.exit_code,
        )
    elif types:
        yield Finding("compression", "ok", f"can decode the topics' {', '.join(sorted(set(types.values())))}")


def _transactions(settings: Settings, now_ms: int) -> Iterator[Finding]:
    """Compare the newest transactions with the clock and the partitioner."""
    from stream.cli.check_partitioner import partitioner_findings
    from stream.kafka.reader import TopicReader

    topics = settings.topics
    with TopicReader(settings, topics.transactions) as reader:
        partitions = len(reader.partitions())
        records = reader.last_records(_READ_SECONDS, _NEWEST_RECORDS)
    yield from _clock(settings, now_ms, records)
    for found in partitioner_findings(records, partitions, topics.partitioner):
        yield Finding("partitioner", *found)


def _clock(settings: Settings, now_ms: int, records: list[Any]) -> Iterator[Finding]:
    """Compare the clock with the newest transactions' timestamps, which cannot be of the future."""
    newest = max((record.timestamp for record in records), default=None)
    allowed = int(settings.history.max_future_seconds * 1000)
    if newest is None:
        yield Finding(
            "clock",
            "note",
            (
                f"this machine's clock shows {format_event_time(now_ms)}; there is no transaction to "
                "compare it with"
            ),
        )
    elif newest > now_ms + allowed:
        yield Finding(
            "clock",
            "FAIL",
            f"this machine's clock shows {format_event_time(now_ms)}, and a transaction arrived "
            f"at {format_event_time(newest)}: set this machine's clock, or the producer's; "
            "workers reject transactions from the future",
            ConfigError.exit_code,
        )
    else:
        yield Finding(
            "clock",
            "ok",
            (
                f"this machine's clock shows {format_event_time(now_ms)}; the last transaction is of "
                f"{format_event_time(newest)}"
            ),
        )
