"""Connection settings of kafka-python's and aiokafka's clients, with TLS and SASL."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from stream.errors import BrokerError
from stream.kafka.oauth import AsyncTokens, Tokens, token_source

if TYPE_CHECKING:
    from stream.settings import KafkaSettings

__all__ = ["aiokafka_config", "bootstrap_servers", "client_config", "ssl_context"]


def bootstrap_servers(kafka: KafkaSettings) -> list[str]:
    """Return the brokers' addresses, each as ``host:port``."""
    return [part.strip() for part in kafka.bootstrap_servers.split(",") if part.strip()]


def client_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Return how to reach the broker, as keyword arguments of kafka-python's clients.

    With TLS the broker's certificate and its host name are both checked. Without ``ssl_ca_file`` the
    system's authorities count.
    """
    config: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers(kafka),
        "client_id": "riskstream",
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol.startswith("SASL"):
        config["sasl_mechanism"] = kafka.sasl_mechanism
        if kafka.sasl_mechanism == "OAUTHBEARER":
            config["sasl_oauth_token_provider"] = Tokens(token_source(kafka))
        else:
            config["sasl_plain_username"] = kafka.sasl_username
            config["sasl_plain_password"] = kafka.password()
    if kafka.security_protocol.endswith("SSL"):
        config["ssl_check_hostname"] = True
        config["ssl_context"] = ssl_context(kafka)
    return config


def ssl_context(kafka: KafkaSettings) -> ssl.SSLContext | None:
    """Return the TLS context of the settings, hostname check on, or None without TLS.

    Raises
    ------
    BrokerError
        The certificates or the key cannot be used.
    """
    if kafka.security_protocol not in {"SSL", "SASL_SSL"}:
        return None
    ca_file = kafka.ssl_ca_file
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:
        raise BrokerError(f"RISKSTREAM_KAFKA__SSL_CA_FILE: {ca_file} cannot be used: {error}") from error
    if kafka.ssl_cert_file is not None and kafka.ssl_key_file is not None:
        # A function, since without a password OpenSSL would ask for one at the terminal.
        password = kafka.key_password() or ""
        try:
            context.load_cert_chain(str(kafka.ssl_cert_file), str(kafka.ssl_key_file), lambda: password)
        except (OSError, ValueError) as error:
            raise BrokerError(
                f"RISKSTREAM_KAFKA__SSL_KEY_FILE: {kafka.ssl_key_file} cannot be used: {error}; check that "
                "it belongs to the certificate, and RISKSTREAM_KAFKA__SSL_KEY_PASSWORD_FILE if encrypted"
            ) from error
    return context


def aiokafka_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Return how to reach the broker, as keyword arguments of aiokafka's clients."""
    config: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers(kafka),
        "security_protocol": kafka.security_protocol,
        "ssl_context": ssl_context(kafka),
    }
    if kafka.security_protocol.startswith("SASL"):
        config["sasl_mechanism"] = kafka.sasl_mechanism
        if kafka.sasl_mechanism == "OAUTHBEARER":
            config["sasl_oauth_token_provider"] = AsyncTokens(token_source(kafka))
        else:
            config["sasl_plain_username"] = kafka.sasl_username
            config["sasl_plain_password"] = kafka.password()
    return config
