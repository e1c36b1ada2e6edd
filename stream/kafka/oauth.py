"""Access tokens for SASL OAUTHBEARER: the client credentials grant of RFC 6749, section 4.4."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from aiokafka.abc import AbstractTokenProvider as AsyncTokenProvider
from kafka.net.sasl.oauth import AbstractTokenProvider

from stream.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stream.settings import KafkaSettings

__all__ = ["AsyncTokens", "TokenSource", "Tokens", "token_source"]

_TIMEOUT_SECONDS: Final = 10.0

#: Life of a token whose response does not tell; its endpoint may say otherwise with ``expires_in``.
_DEFAULT_SECONDS: Final = 300.0

#: Share of its life after which a token is replaced.
_USED_SHARE: Final = 0.8

_MAX_BYTES: Final = 1 << 20


class TokenSource:
    """Fetches access tokens and keeps each until it is close to its end. Threads may share it."""

    def __init__(self, kafka: KafkaSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._kafka = kafka
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._until = float("-inf")

    def token(self) -> str:
        """Return a token that is valid for some time; it may have to be fetched first.

        Raises
        ------
        BrokerError
            The endpoint cannot be reached, refuses, or does not respond with a token.
        """
        with self._lock:
            if self._clock() >= self._until:
                asked = self._clock()
                self._token, seconds = self._fetch()
                self._until = asked + _USED_SHARE * seconds
            return self._token

    def _fetch(self) -> tuple[str, float]:
        kafka = self._kafka
        url, secret = kafka.oauth_token_url or "", kafka.oauth_secret() or ""
        form = {"grant_type": "client_credentials"} | (
            {"scope": kafka.oauth_scope} if kafka.oauth_scope else {}
        )
        # RFC 6749, 2.3.1: both parts are form-encoded before they are joined.
        pair = f"{urllib.parse.quote_plus(kafka.oauth_client_id or '')}:{urllib.parse.quote_plus(secret)}"
        request = urllib.request.Request(  # noqa: S310 - the settings allow http and https only
            url,
            data=urllib.parse.urlencode(form).encode(),
            headers={
                "Authorization": "Basic " + b64encode(pair.encode()).decode(),
                "Accept": "application/json",
            },
        )
        ca_file = kafka.oauth_ca_file
        context = None
        if url.startswith("https"):
            context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, context=context) as response:  # noqa: S310
                answer = json.loads(response.read(_MAX_BYTES))
        except urllib.error.HTTPError as error:
            raise BrokerError(
                f"the token endpoint {url} refuses client {kafka.oauth_client_id!r} with HTTP status "
                f"{error.code}: check RISKSTREAM_KAFKA__OAUTH_CLIENT_ID, its secret and the scope"
            ) from error
        except (OSError, ValueError) as error:
            raise BrokerError(f"the token endpoint {url} gives no token: {error}") from error
        return _token_in(answer, url)


def _token_in(answer: Any, url: str) -> tuple[str, float]:
    token = answer.get("access_token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise BrokerError(f"the token endpoint {url} responds without an access_token")
    seconds = answer.get("expires_in", _DEFAULT_SECONDS)
    if not isinstance(seconds, int | float) or not seconds > 0:
        seconds = _DEFAULT_SECONDS
    return token, float(seconds)


@cache
def token_source(kafka: KafkaSettings) -> TokenSource:
    """Return the process's source of tokens for a connection."""
    return TokenSource(kafka)


class Tokens(AbstractTokenProvider):  # type: ignore[misc]
    """What kafka-python's clients ask for tokens."""

    def __init__(self, source: TokenSource) -> None:
        super().__init__()
        self._source = source

    def token(self) -> str:
        """Return a valid token."""
        return self._source.token()


class AsyncTokens(AsyncTokenProvider):  # type: ignore[misc]
    """What aiokafka's clients ask for tokens; the event loop goes on meanwhile."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source

    async def token(self) -> str:
        """Return a valid token."""
        return await asyncio.to_thread(self._source.token)
