"""``riskstream serve``: requests need the token, and a bad one stops the start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from stream.errors import ConfigError
from support.bundles import made_bundle
from support.helpers import wait_until
from support.pipelines import transaction

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-c", "from stream.cli import main; main()", "serve", "--port", "0"]
TOKEN = "a-token-of-more-than-16-characters"
CARD = "4111111111111111"


def started(folder: Path, **variables: str) -> subprocess.Popen[bytes]:
    made_bundle().save(folder / "bundle")
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [*COMMAND, "--bundle", str(folder / "bundle")],
            cwd=folder,
            env=os.environ | variables,
            stdout=log,
            stderr=log,
        )


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "token").write_text(TOKEN + "\n", "ascii")
    process = started(
        tmp_path,
        RISKSTREAM_SCORING__TOKEN_FILE=str(tmp_path / "token"),
        RISKSTREAM_CARD_NUMBERS__POLICY="hmac",
        RISKSTREAM_CARD_NUMBERS__KEY="k" * 32,
    )

    def found() -> re.Match[str] | None:
        assert process.poll() is None, (tmp_path / "log").read_text()
        return re.search(r"Listening on (\S+)/predict", (tmp_path / "log").read_text())

    try:
        wait_until(found, "it does not listen")
        match = found()
        assert match is not None
        yield match[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()


def status(url: str, token: str | None, body: object = None) -> tuple[int, object]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_only_requests_with_the_token_are_let_in(address: str, tmp_path: Path) -> None:
    body = transaction(1, CARD)
    for wrong in (None, "", TOKEN[:-1], TOKEN + "x"):
        assert status(address + "/predict", wrong, body)[0] == 401
        assert status(address + "/openapi.json", wrong)[0] == 401
    code, answer = status(address + "/predict", TOKEN, body)
    assert code == 200
    assert isinstance(answer, dict)
    assert answer["user_id"].startswith("pan-")
    assert status(address + "/openapi.json", TOKEN)[0] == 200
    (tmp_path / "token").write_text("", "ascii")
    assert status(address + "/predict", TOKEN, body)[0] == 401
    assert CARD not in (tmp_path / "log").read_text()


def test_a_short_token_stops_the_start(tmp_path: Path) -> None:
    process = started(tmp_path, RISKSTREAM_SCORING__TOKEN="too-short")
    assert process.wait(60) == ConfigError.exit_code
    log = (tmp_path / "log").read_text()
    assert "RISKSTREAM_SCORING" in log
    assert "Traceback" not in log
    assert "too-short" not in log
