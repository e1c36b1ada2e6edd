"""Settings of the connection to Kafka and of the topics."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from stream.settings.section import Section

__all__ = ["KafkaSettings", "Partitioner", "TopicSettings"]


#: How producers choose the partition of a key.
Partitioner = Literal["murmur2", "crc32", "any"]


def _secret(value: SecretStr | None, path: Path | None) -> str | None:
    if value is not None:
        return value.get_secret_value()
    return None if path is None else path.read_text(encoding="utf-8").strip()


class KafkaSettings(Section):
    """Connection to the Kafka brokers, consumer group and producer timeouts."""

    bootstrap_servers: str = Field(
        default="127.0.0.1:9092", description="Addresses of brokers as host:port, separated by commas"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="Protocol of the connections: with or without TLS and SASL"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        default="PLAIN", description="SASL mechanism, used with a SASL protocol"
    )
    sasl_username: str | None = Field(
        default=None, description="SASL user name, required with PLAIN and SCRAM"
    )
    sasl_password: SecretStr | None = Field(
        default=None, description="SASL password; takes precedence over sasl_password_file"
    )
    sasl_password_file: Path | None = Field(default=None, description="File that contains the SASL password")
    oauth_token_url: str | None = Field(
        default=None,
        pattern=r"^(https://[^\s/]+|http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?)(/\S*)?$",
        description="With OAUTHBEARER: address of the token endpoint for the client credentials grant; "
        "https, or http on this machine",
    )
    oauth_client_id: str | None = Field(default=None, description="With OAUTHBEARER: id of the client")
    oauth_client_secret: SecretStr | None = Field(
        default=None,
        description="With OAUTHBEARER: secret of the client; takes precedence over oauth_client_secret_file",
    )
    oauth_client_secret_file: Path | None = Field(
        default=None, description="File that contains the secret of the client"
    )
    oauth_scope: str | None = Field(default=None, description="With OAUTHBEARER: scope to ask for")
    oauth_ca_file: Path | None = Field(
        default=None,
        description="PEM file of the authorities that verify the token endpoint's certificate; without it "
        "the system's authorities",
    )
    ssl_ca_file: Path | None = Field(
        default=None,
        description="PEM file of the authorities that verify the brokers' certificates; without it the "
        "system's authorities",
    )
    ssl_cert_file: Path | None = Field(
        default=None, description="PEM file with the client certificate for mutual TLS"
    )
    ssl_key_file: Path | None = Field(
        default=None, description="PEM file with the client certificate's key for mutual TLS"
    )
    ssl_key_password: SecretStr | None = Field(
        default=None,
        description="Password of an encrypted ssl_key_file; takes precedence over ssl_key_password_file",
    )
    ssl_key_password_file: Path | None = Field(
        default=None, description="File that contains the password of an encrypted ssl_key_file"
    )
    session_timeout_seconds: float = Field(
        default=6.0, ge=1, description="The group reassigns the partitions of a worker silent for this long"
    )
    rebalance_timeout_seconds: float = Field(
        default=6.0, ge=1, description="How long the group waits for members to rejoin during a rebalance"
    )
    request_timeout_seconds: float = Field(
        default=15.0, ge=1, description="How long a client waits for the response to a request"
    )
    delivery_timeout_seconds: float = Field(
        default=30.0, ge=1, description="A worker exits if a record is not acknowledged within this time"
    )
    group_instance_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]{1,200}$",
        description="Permanent name of this worker in the group; a restart within the session then causes no "
        "rebalance",
    )
    fetch_max_wait_ms: int = Field(
        default=20, ge=1, le=10_000, description="How long the broker may hold a fetch that has no records"
    )
    max_poll_records: int = Field(
        default=2000, ge=1, le=100_000, description="Maximum number of records of a partition in a batch"
    )
    max_batch_mib: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Record batches with more uncompressed MiB are decompressed in pieces and read record by "
        "record, which is slower and bounds the worker's memory",
    )
    isolation_level: Literal["read_committed", "read_uncommitted"] = Field(
        default="read_committed",
        description="Whether consumers leave out records of aborted and open transactions",
    )

    @model_validator(mode="after")
    def _check(self) -> KafkaSettings:
        if self.security_protocol.startswith("SASL"):
            self._require_credentials()
        if (self.ssl_cert_file is None) != (self.ssl_key_file is None):
            msg = "ssl_cert_file and ssl_key_file: require each other"
            raise ValueError(msg)
        for name in (
            "sasl_password_file", "oauth_client_secret_file", "oauth_ca_file", "ssl_ca_file", "ssl_cert_file",
            "ssl_key_file", "ssl_key_password_file",
        ):  # fmt: skip
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_file():
                msg = f"{name}: {path} is not a readable file"
                raise ValueError(msg)
        return self

    def _require_credentials(self) -> None:
        """Raise an error unless the settings have what the SASL mechanism needs."""
        mechanism = self.sasl_mechanism
        if mechanism == "OAUTHBEARER":
            needed = [
                ["oauth_token_url"],
                ["oauth_client_id"],
                ["oauth_client_secret", "oauth_client_secret_file"],
            ]
        else:
            needed = [["sasl_username"], ["sasl_password", "sasl_password_file"]]
        for names in needed:
            if not any(getattr(self, name) for name in names):
                choice = " (or ".join(names) + ")" * (len(names) - 1)
                msg = f"{choice}: is required with sasl_mechanism={mechanism}"
                raise ValueError(msg)

    def password(self) -> str | None:
        """Return the SASL password, from the setting or its file."""
        return _secret(self.sasl_password, self.sasl_password_file)

    def oauth_secret(self) -> str | None:
        """Return the secret of the OAuth client, from the setting or its file."""
        return _secret(self.oauth_client_secret, self.oauth_client_secret_file)

    def key_password(self) -> str | None:
        """Return the password of the client certificate's key, from the setting or its file."""
        return _secret(self.ssl_key_password, self.ssl_key_password_file)

    @property
    def identity(self) -> str:
        """Who asks for access with SASL, for a message."""
        if self.sasl_mechanism == "OAUTHBEARER":
            return f"client {self.oauth_client_id!r}"
        return f"user {self.sasl_username!r}"


class TopicSettings(Section):
    """Names, partitions and retention of the topics."""

    transactions: str = Field(default="transactions", description="Topic of the transactions to score")
    alerts: str = Field(default="risk-alerts", description="Topic of the alerts")
    decisions: str = Field(default="risk-decisions", description="Topic of the decisions")
    labels: str = Field(default="labels", description="Topic of the labels, used with entity profiles")
    dead_letters: str = Field(default="transactions-dlq", description="Topic of the rejected records")
    control: str = Field(default="risk-control", description="Compacted topic of control messages")
    partitions: int = Field(
        default=4, ge=1, le=10_000, description="Partitions of every keyed topic; fixed once there is state"
    )
    partitioner: Partitioner = Field(
        default="murmur2",
        description="Hash by which all producers choose the partition of a key: murmur2 (Kafka's own "
        "clients), crc32 (librdkafka's default), or any if producers choose partitions themselves",
    )
    replication_factor: int | None = Field(
        default=None,
        ge=1,
        le=10,
        description="Replicas of each topic; by default 3, or one on each broker if there are fewer",
    )
    min_insync_replicas: int | None = Field(
        default=None,
        ge=1,
        le=10,
        description="Replicas that must have a record before it is acknowledged (min.insync.replicas); by "
        "default one less than the replicas, and at least 1",
    )
    create: bool = Field(default=True, description="Whether a worker creates missing topics at its start")
    retention_days: float = Field(
        default=7, gt=0, description="Retention of transactions, alerts, decisions and labels"
    )
    dead_letter_retention_days: float = Field(default=30, gt=0, description="Retention of dead letters")

    @model_validator(mode="after")
    def _check(self) -> Self:
        replicas, needed = self.replication_factor, self.min_insync_replicas
        if replicas is not None and needed is not None and needed > replicas:
            msg = f"min_insync_replicas: {needed} replicas cannot have a record if there are {replicas}"
            raise ValueError(msg)
        return self
