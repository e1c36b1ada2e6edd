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
    secret = "correct horse battery"
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


@pytest.mark.parametrize("content", ["", " \n\t", "x" * 15, "  " + "x" * 15 + "\n"])
def test_a_blank_or_short_token_stops_the_start(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    for given in ({"token_file": file}, {"token": content}):
        with pytest.raises(ValueError, match="must have at least 16 characters"):
            MetricsSettings.model_validate({"port": 0, **given})


def test_a_file_that_loses_its_token_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("correct horse battery")
    settings = MetricsSettings.model_validate({"port": 0, "token_file": file})
    assert answers(settings, "/metrics", "correct horse battery") == 200
    for content in ("", "short"):
        file.write_text(content)
        for token in (None, "", content, "correct horse battery"):
            assert answers(settings, "/metrics", token) == 401
        assert answers(settings, "/healthz") == 200
    file.unlink()
    assert answers(settings, "/metrics", "correct horse battery") == 401
    file.write_text("another horse battery")
    assert answers(settings, "/metrics", "another horse battery") == 200
