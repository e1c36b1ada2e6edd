"""Debian's Prometheus as a child process, and its promtool."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, Self

import pytest
import yaml

from stream.kafka.local.base import free_port
from support.helpers import wait_until
from support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

RULES = ROOT / "grafana/prometheus"


def tool(name: str) -> str:
    """Return the path of prometheus or promtool; skip where missing, fail with RISKSTREAM_REQUIRE_PROMETHEUS=1."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed (apt-get install prometheus)"
        if os.environ.get("RISKSTREAM_REQUIRE_PROMETHEUS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Prometheus:
    """Prometheus with the project's own configuration and rules, quickened, asking the given workers."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        self._config = folder / "prometheus.yml"
        self._configure(targets)
        self._folder = folder
        self.address = f"http://127.0.0.1:{free_port()}"

    def _configure(self, targets: list[str]) -> None:
        config = yaml.safe_load((RULES / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {
            "scrape_interval": "500ms",
            "scrape_timeout": "500ms",
            "evaluation_interval": "1s",
        }
        config["rule_files"] = [str(RULES / name) for name in config["rule_files"]]
        [job] = [job for job in config["scrape_configs"] if job["job_name"] == "riskstream"]
        config["scrape_configs"] = [job]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": targets}]
        self._config.write_text(yaml.safe_dump(config), encoding="utf-8")

    def watch(self, targets: list[str]) -> None:
        """Ask other workers from now on."""
        self._configure(targets)
        self._process.send_signal(signal.SIGHUP)

    def __enter__(self) -> Self:
        log = self._folder / "prometheus.log"
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [
                    tool("prometheus"),
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address={self.address.removeprefix('http://')}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

        def ready() -> bool:
            assert self._process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(self.address + "/-/ready", timeout=5) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        try:
            wait_until(ready, "Prometheus is not ready")
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def get(self, path: str, **parameters: str) -> Any:
        """Return an answer's data; fail with what Prometheus says is wrong."""
        try:
            url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return an instant query's series."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found
