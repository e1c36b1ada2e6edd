"""A Docker engine of our own, and base images made on this machine, since no image registry need be in reach."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from stream.kafka.local.apache import _libraries
from support.helpers import wait_until
from support.paths import ROOT

if TYPE_CHECKING:
    from types import TracebackType

IMAGES = Path(__file__).parent / "images"
PACKAGES = {"dockerd": "docker.io", "docker-compose": "docker-compose", "debootstrap": "debootstrap"}
SUITE = "bookworm"
#: What the rest of Debian comes from; the compose file's images have it too.
INCLUDED = "ca-certificates,python3,python3-venv,python-is-python3"
#: The names by which docker-compose.yml knows the stand-ins.
STAND_INS = {"PYTHON_IMAGE": "python", "KAFKA_IMAGE": "kafka", "PROMETHEUS_IMAGE": "prometheus"}


def install() -> None:
    """Install what is missing of Debian's packages."""
    if os.geteuid() != 0:
        sys.exit("compose-test: needs root, for the Docker engine and debootstrap")
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if missing:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        command = ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *missing]
        subprocess.run(command, check=True, env=environment)


class Engine:
    """dockerd as a child process, with its own data and socket; nothing of the machine's own engine is touched."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._folder = Path(tempfile.mkdtemp(prefix="riskstream-", dir="/run"))
        # docker-compose is a Python program too, and must not find our modules.
        self._environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
            "DOCKER_HOST": f"unix://{self._folder}/docker.sock",
            "DOCKER_BUILDKIT": "0",
            "COMPOSE_DOCKER_CLI_BUILD": "0",
        }

    def __enter__(self) -> Self:
        self._bridge = Path("/sys/class/net/docker0").exists()
        command = ["dockerd", "--host", self._environment["DOCKER_HOST"], "--data-root", str(self._data)]
        command += ["--exec-root", str(self._folder / "exec"), "--pidfile", str(self._folder / "pid")]
        log = self._folder / "log"
        with log.open("wb") as file:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

        def ready() -> bool:
            assert self._process.poll() is None, log.read_text()
            return self.run("docker", "version", check=False).returncode == 0

        wait_until(ready, "the Docker engine does not answer")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(60)
        if not self._bridge:
            subprocess.run(["ip", "link", "delete", "docker0"], check=False, capture_output=True)
        # The engine leaves the mount of its own network namespace behind.
        subprocess.run(["umount", str(self._folder / "exec/netns/default")], check=False, capture_output=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(
        self, *command: str, check: bool = True, show: bool = False, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that talks to this engine."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=None if show else subprocess.PIPE,
            stderr=None if show else subprocess.STDOUT,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return done

    def inspect(self, container: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.run("docker", "inspect", container).stdout)
        return found[0]

    def build(self, tag: str, context: Path, **arguments: str) -> None:
        options = [part for pair in arguments.items() for part in ("--build-arg", "=".join(pair))]
        # The host's network: what the machine reaches is what the build reaches.
        self.run("docker", "build", "--network", "host", "--tag", tag, *options, str(context))

    def make_stand_ins(self, work: Path) -> dict[str, str]:
        """Make base images; returns the variables that docker-compose.yml takes them by."""
        if not self.run("docker", "images", "--quiet", "riskstream-test/debian").stdout:
            folder = work / "debian"
            if not (folder / "etc/debian_version").exists() or not (folder / ".whole").exists():
                shutil.rmtree(folder, ignore_errors=True)
                self.run(
                    "debootstrap", "--variant=minbase", f"--include={INCLUDED}", SUITE, str(folder), _mirror()
                )
                (folder / ".whole").touch()
            packing = f"tar --create --one-file-system --directory {folder} . | docker import - riskstream-test/debian"
            self.run("sh", "-c", packing)
        for name in STAND_INS.values():
            with tempfile.TemporaryDirectory(dir=work) as made:
                context = Path(made)
                shutil.copytree(IMAGES / name, context, dirs_exist_ok=True)
                if name == "kafka":
                    shutil.copytree(_libraries(), context / "libs")
                if name == "python":
                    shutil.copy("/etc/ssl/certs/ca-certificates.crt", context)
                    (context / "pip.conf").write_text(_pip_settings(), encoding="utf-8")
                self.build(f"riskstream-test/{name}", context)
        return {variable: f"riskstream-test/{name}" for variable, name in STAND_INS.items()}


def _mirror() -> str:
    """Return where this machine gets Debian's packages from."""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if path.is_file() and (found := re.search(r"https?://\S+/debian/?(?=\s)", path.read_text() + "\n")):
            return found[0]
    return "http://deb.debian.org/debian"


def _pip_settings() -> str:
    """Return pip's settings here, but for folders that the image does not have."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    lines = ["[global]"]
    for name, value in re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE):
        if name != "find-links":
            lines.append(f"{name} = {value}")
    return "\n".join(dict.fromkeys(lines)) + "\n"
