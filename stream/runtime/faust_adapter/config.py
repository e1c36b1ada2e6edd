"""The Faust app and its table, from the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import faust
from faust.types.auth import SASLMechanism

from stream.kafka.clients import bootstrap_servers, ssl_context
from stream.kafka.oauth import AsyncTokens, token_source
from stream.kafka.topics import HISTORY_TABLE
from stream.pipeline.encode import MAX_DEAD_LETTER_BYTES
from stream.runtime.faust_adapter.app import PassThroughSchema, StreamApp
from stream.runtime.faust_adapter.assignor import Assignor
from stream.runtime.faust_adapter.records import FetchLimits, install_records
from stream.runtime.faust_adapter.store import HistoryTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stream.runtime.faust_adapter.hooks import WorkerHooks
    from stream.settings import KafkaSettings, Settings

__all__ = ["build_faust_app"]


def _faust_credentials(kafka: KafkaSettings) -> Any:
    context = ssl_context(kafka)
    if kafka.security_protocol.startswith("SASL") and kafka.sasl_mechanism == "OAUTHBEARER":
        return faust.OAuthCredentials(oauth_cb=AsyncTokens(token_source(kafka)), ssl_context=context)
    if kafka.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=kafka.sasl_username,
            password=kafka.password(),
            mechanism=SASLMechanism(kafka.sasl_mechanism),
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)


def build_faust_app(
    settings: Settings, topics: Sequence[str], hooks: WorkerHooks
) -> tuple[StreamApp, Any, Any]:
    """Return the Faust app, the channel of the consumed topics, and the table of histories."""
    kafka = settings.kafka
    # A dead letter carries no more bytes of a record than these.
    max_field_bytes = max(MAX_DEAD_LETTER_BYTES, settings.max_record_bytes) + 1
    install_records(FetchLimits(kafka.max_batch_mib << 20, max_field_bytes, hooks))
    app = StreamApp(
        settings.app_id,
        hooks=hooks,
        fetch_max_wait_ms=kafka.fetch_max_wait_ms,
        isolation_level=kafka.isolation_level,
        broker="kafka://" + ";".join(bootstrap_servers(kafka)),
        broker_credentials=_faust_credentials(kafka),
        store="rocksdb://",
        datadir=str(settings.state_dir),
        Table=HistoryTable,
        PartitionAssignor=Assignor,
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        topic_partitions=settings.topics.partitions,
        topic_replication_factor=settings.topics.replication_factor or 1,
        table_standby_replicas=0,
        # The embedded broker may report an end before the last acknowledged record; upstream takes that for a
        # damaged store and crashes (ConsistencyError).
        recovery_consistency_check=False,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=kafka.group_instance_id,
        broker_max_poll_records=kafka.max_poll_records,
        broker_session_timeout=kafka.session_timeout_seconds,
        broker_rebalance_timeout=kafka.rebalance_timeout_seconds,
        broker_heartbeat_interval=min(2.0, kafka.session_timeout_seconds / 3),
        broker_request_timeout=max(kafka.request_timeout_seconds, kafka.session_timeout_seconds),
        broker_commit_interval=1.0,
        # Batches, not records. Fetches wait for room (see BatchConsumer.getmany), so this is never full.
        stream_buffer_maxsize=64,
        stream_wait_empty=True,
        worker_redirect_stdouts=False,
    )
    schema = PassThroughSchema(allow_empty=True)
    source = app.topic(*topics, schema=schema, partitions=settings.topics.partitions)
    table = app.Table(
        HISTORY_TABLE,
        schema=schema,
        key_type=bytes,
        value_type=bytes,
        partitions=settings.topics.partitions,
        # Whole fetched batches; with 1 Faust would keep reading the changelog after recovery.
        recovery_buffer_size=2,
        options={
            "block_cache_bytes": settings.rocksdb.block_cache_mib << 20,
            "write_buffer_bytes": settings.rocksdb.write_buffer_mib << 20,
        },
    )
    return app, source, table
