"""The HTTP endpoint: loopback, and a token where one is wanted."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from stream.serving.health import Endpoint
from stream.settings import MetricsSettings

if TYPE_CHECKING:
    from pathlib import Path


def answers(settings: MetricsSettings, path: str, token: str | None = None, *, good: bool = True) -> int:
    """Return the status of one request."""

    def ask(port: int) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    async def run() -> int:
        endpoint = Endpoint(settings, lambda: b"figures 1\n", lambda: good, lambda: good)
        await endpoint.start()
        try:
            return await asyncio.to_thread(ask, endpoint.port)
        finally:
            await endpoint.stop()

    return asyncio.run(run())


def test_without_a_token_everybody_on_loopback_may_look() -> None:
    settings = MetricsSettings(port=0)
    assert settings.host == "127.0.0.1"
    assert answers(settings, "/metrics") == 200
    assert answers(settings, "/healthz") == 200
    assert answers(settings, "/healthz", good=False) == 503
    assert answers(settings, "/readyz", good=False) == 503


@pytest.mark.parametrize("from_file", [False, True])
def test_with_a_token_only_the_probes_are_open(tmp_path: Path, from_file: bool) -> None:
    secret = "correct horse"
    file = tmp_path / "token"
    file.write_text(secret + "\n")
    given = {"token_file": file} if from_file else {"token": secret}
    settings = MetricsSettings.model_validate({"port": 0, **given})
    assert answers(settings, "/metrics") == 401
    assert answers(settings, "/metrics", "wrong horse") == 401
    assert answers(settings, "/metrics", secret) == 200
    assert answers(settings, "/nothing") == 401  # not even what there is
    assert answers(settings, "/healthz") == 200
    assert answers(settings, "/readyz", good=False) == 503
