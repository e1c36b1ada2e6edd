"""Tokens are fetched once and replaced before they end; every failure is one line."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from stream.errors import BrokerError
from stream.kafka.oauth import AsyncTokens, Tokens, TokenSource, _token_in
from stream.settings import KafkaSettings
from support.token_endpoint import TokenEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "an odd secret: ä&=%+"


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    with TokenEndpoint("the client", SECRET, "kafka") as endpoint:
        yield endpoint


def settings(url: str, secret: str = SECRET) -> KafkaSettings:
    return KafkaSettings.model_validate(
        {
            "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER", "oauth_token_url": url,
            "oauth_client_id": "the client", "oauth_client_secret": secret, "oauth_scope": "kafka",
        }
    )  # fmt: skip


def test_a_token_serves_for_most_of_its_life(endpoint: TokenEndpoint) -> None:
    now = 1_000.0
    source = TokenSource(settings(endpoint.url), lambda: now)
    endpoint.seconds = 100.0
    first = Tokens(source).token()
    now += 79
    assert asyncio.run(AsyncTokens(source).token()) == first
    assert endpoint.served == 1
    now += 1
    source.token()
    assert endpoint.served == 2


def test_threads_share_one_request(endpoint: TokenEndpoint) -> None:
    source = TokenSource(settings(endpoint.url))
    with ThreadPoolExecutor(8) as pool:
        tokens = {*pool.map(lambda _: source.token(), range(40))}
    assert len(tokens) == endpoint.served == 1


def test_a_refusal_names_the_client_and_not_the_secret(endpoint: TokenEndpoint) -> None:
    wrong = "a-wrong-secret"
    with pytest.raises(BrokerError, match="refuses client 'the client' with HTTP status 401") as refused:
        TokenSource(settings(endpoint.url, wrong)).token()
    assert wrong not in str(refused.value)


def test_an_endpoint_that_does_not_respond_is_named() -> None:
    with pytest.raises(BrokerError, match=r"http://127.0.0.1:9/token gives no token"):
        TokenSource(settings("http://127.0.0.1:9/token")).token()


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"access_token": ""}, {"access_token": 5}, {"access_token": "a\nb"}]
)
def test_an_answer_without_a_token_is_an_error(answer: object) -> None:
    with pytest.raises(BrokerError, match="without an access_token"):
        _token_in(answer, "https://id.example/token")


@pytest.mark.parametrize("life", ["soon", -1, 0, None, float("nan")])
def test_a_life_that_makes_no_sense_is_five_minutes(life: object) -> None:
    assert _token_in({"access_token": "t", "expires_in": life}, "u") == ("t", 300.0)


@pytest.mark.parametrize(
    "url", ["http://id.example/token", "ftp://127.0.0.1/x", "file:///etc/passwd", "id.example"]
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="oauth_token_url"):
        settings(url)
