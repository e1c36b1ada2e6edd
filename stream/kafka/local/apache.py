"""Apache Kafka in KRaft mode, one node, on this machine's Java; for tests, benchmarks and development.

Maven downloads the jars from Maven Central once; a second start needs no network.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from stream.errors import BrokerError
from stream.kafka.local.base import HOST, START_TIMEOUT_SECONDS, Broker, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stream.settings import KafkaSettings

__all__ = ["KAFKA_VERSION", "KafkaBroker", "missing_tools"]


#: The newest release with every module on Maven Central.
KAFKA_VERSION: Final = "4.3.1"

#: Kafka's own version of Log4j. Its modules name the API and the core, but not the bridge from SLF4J.
_LOG4J_VERSION: Final = "2.25.4"

#: The oldest Java that Kafka 4's broker runs on (KIP-1013).
_JAVA_VERSION: Final = 17

#: Some 45 jars, 100 MB, at a slow 200 KB/s.
_DOWNLOAD_TIMEOUT_SECONDS: Final = 600

#: Formatting an empty folder starts Java once.
_FORMAT_TIMEOUT_SECONDS: Final = 120

_DEPENDENCY_PLUGIN: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"

_POM: Final = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>riskstream</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>{_LOG4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

_LOGGING: Final = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %p %m%n%ex
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = ${sys:riskstream.logs}/server.log
appender.file.filePattern = ${sys:riskstream.logs}/server.log.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{ISO8601} %p [%t] %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 20MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 2
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
rootLogger.appenderRef.console.ref = console
rootLogger.appenderRef.console.level = error
"""


def missing_tools() -> str | None:
    """Return which tools this machine lacks to run Apache Kafka and how to install them, or None."""
    try:
        _java()
        if not (_libraries_folder() / "libs").is_dir():
            _maven()
    except BrokerError as error:
        return str(error)
    return None


class KafkaBroker(Broker):
    """Apache Kafka in a child process; see :class:`stream.kafka.local.base.Broker`.

    Parameters
    ----------
    data_dir:
        Folder of the topics; created if it is missing, and kept. Without it the topics are in a temporary
        folder, which ``stop`` removes and ``kill`` leaves for the next start.
    listeners:
        Further listeners by name, each with its security protocol, such as ``{"TLS": "SSL"}``; ``address``
        returns their addresses. The listener at ``port`` is named ``CLIENT`` and is plain text.
    extra_config:
        Properties of ``server.properties`` that override the defaults here, including those of listeners
        (``listener.name.tls.ssl.keystore.location``).
    port, client, start_timeout_seconds:
        See the base class.
    """

    kind: ClassVar[str] = "kafka"

    def __init__(
        self,
        *,
        port: int = 0,
        data_dir: Path | None = None,
        listeners: Mapping[str, str] | None = None,
        extra_config: Mapping[str, str] | None = None,
        client: KafkaSettings | None = None,
        start_timeout_seconds: float = START_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(port=port, client=client, start_timeout_seconds=start_timeout_seconds)
        self._data_dir = data_dir
        self._temporary: Path | None = None
        self._listeners = dict(listeners or {})
        self._ports: dict[str, int] = {}
        self._extra_config = dict(extra_config or {})

    def address(self, listener: str) -> str:
        """Return where a further listener is, as host:port; it stays there over restarts."""
        return f"{HOST}:{self._ports[listener]}"

    def _prepare(self) -> tuple[list[str], Path]:
        java = _java()
        libraries = _libraries()
        folder = self._folder()
        properties, logging = folder / "server.properties", folder / "log4j2.properties"
        try:
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            properties.write_text(_to_properties(self._config(folder)), encoding="ascii")
            logging.write_text(_LOGGING, encoding="ascii")
        except OSError as error:
            raise BrokerError(f"cannot write to the data folder {folder}: {error.strerror}") from error
        base = [
            java,
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={logging}",
            f"-Driskstream.logs={folder / 'logs'}",
            "-cp",
            f"{libraries}/*",
        ]
        if not (folder / "storage" / "meta.properties").exists():
            _format(base, properties)
        # The serial collector: the default one takes a third more of a small, shared machine.
        options = ["-Xms256m", "-Xmx1g", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"]
        return [*base[:1], *options, *base[1:], "kafka.Kafka", str(properties)], folder / "console.log"

    def _folder(self) -> Path:
        if self._data_dir is not None:
            return self._data_dir.resolve()
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="riskstream-kafka-"))
        return self._temporary

    def _config(self, folder: Path) -> dict[str, str]:
        controller = free_port()
        for name in self._listeners:
            self._ports.setdefault(name, free_port())
        clients = {"CLIENT": self.port, **self._ports}
        protocols = {"CLIENT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **self._listeners}
        addresses = ",".join(f"{name}://{HOST}:{port}" for name, port in clients.items())
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{HOST}:{controller}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "CLIENT",
            "listeners": f"{addresses},CONTROLLER://{HOST}:{controller}",
            "advertised.listeners": addresses,
            "listener.security.protocol.map": ",".join(f"{name}:{how}" for name, how in protocols.items()),
            "log.dirs": str(folder / "storage"),
            "auto.create.topics.enable": "false",
            # A single node: topics that are replicated by default are not.
            "default.replication.factor": "1",
            "min.insync.replicas": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # After a crash the node may register again only when its old session is over.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            # The cleaner's buffer alone would take an eighth of the heap.
            "log.cleaner.dedupe.buffer.size": str(32 * 1024 * 1024),
            **self._extra_config,
        }

    def _clean_up(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None


def _to_properties(config: Mapping[str, str]) -> str:
    """Return the text of a Java properties file, which is ASCII with escapes."""

    def escaped(text: str) -> str:
        units = text.replace("\\", "\\\\").replace("\n", "\\n").encode("utf-16-be")
        codes = [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]
        return "".join(chr(code) if code < 128 else f"\\u{code:04x}" for code in codes)  # noqa: PLR2004

    return "".join(f"{name}={escaped(value)}\n" for name, value in config.items())


def _format(base: list[str], properties: Path) -> None:
    # Kafka's own ids are 22 letters of base64; an id that begins with a dash would be taken for an option.
    cluster_id = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii")[1:22]
    tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted"]
    result = _run(
        [*base, *tool, "--cluster-id", cluster_id, "--config", str(properties)],
        properties.parent,
        _FORMAT_TIMEOUT_SECONDS,
    )
    if result.returncode != 0:
        raise BrokerError(f"Kafka cannot format {properties.parent}: {_last_message(result.stdout)}")


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home, "bin"))) if home else shutil.which("java")
    advice = f"install Java {_JAVA_VERSION} or newer, such as Debian's openjdk-17-jre-headless"
    if java is None:
        where = f"JAVA_HOME ({home})" if home else "PATH"
        raise BrokerError(f"Apache Kafka needs Java, but {where} contains none: {advice}")
    text = _run([java, "-version"], Path.cwd(), _FORMAT_TIMEOUT_SECONDS).stdout
    found = re.search(r'version "(?:1\.)?(\d+)', text)
    if found is None or int(found.group(1)) < _JAVA_VERSION:
        raise BrokerError(f"Apache Kafka {KAFKA_VERSION} cannot run on {java} ({text[:40]!r}): {advice}")
    return str(Path(java).absolute())


def _maven() -> str:
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerError(
            "Apache Kafka's jars are downloaded with Maven, but PATH contains no mvn: install "
            "Maven, such as Debian's maven"
        )
    return maven


def _libraries_folder() -> Path:
    cache = os.environ.get("RISKSTREAM_CACHE_DIR")
    root = Path(cache) if cache else Path.home() / ".cache" / "riskstream"
    recipe = hashlib.sha256(_POM.encode()).hexdigest()[:8]
    return root.absolute() / f"kafka-{KAFKA_VERSION}-{recipe}"


def _libraries() -> Path:
    """Return the folder of jars; Maven fills it if it does not exist.

    The folder is filled under another name and renamed when it is complete, so an existing folder is
    complete. Two processes at once do the work twice but never see each other's partial folder.
    """
    folder = _libraries_folder()
    libraries = folder / "libs"
    if libraries.is_dir():
        return libraries
    maven = _maven()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise BrokerError(f"cannot write to the cache folder {folder.parent}: {error.strerror}") from error
    try:
        (making / "pom.xml").write_text(_POM, encoding="ascii")
        goal = f"{_DEPENDENCY_PLUGIN}:copy-dependencies"
        options = ["-B", "-q", "-Dstyle.color=never", "-DincludeScope=runtime"]
        command = [maven, *options, f"-DoutputDirectory={making / 'libs'}", goal]
        result = _run(command, making, _DOWNLOAD_TIMEOUT_SECONDS)
        if result.returncode != 0:
            raise BrokerError(
                f"Maven cannot fetch Apache Kafka {KAFKA_VERSION}: {_first_message(result.stdout)}; "
                "check the network and Maven's settings"
            )
        try:
            making.rename(folder)
        except OSError:
            if not libraries.is_dir():  # otherwise another process was first, with the same content
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return libraries


def _run(command: list[str], folder: Path, timeout_seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end and return its output, errors included."""
    try:
        return subprocess.run(  # noqa: S603 - the command is our own
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_seconds,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BrokerError(f"{command[0]} did not finish within {timeout_seconds:g} s") from error
    except OSError as error:
        raise BrokerError(f"{command[0]} cannot be run: {error.strerror}") from error


def _first_message(output: str) -> str:
    messages = [line.removeprefix("[ERROR] ").strip() for line in output.splitlines() if "[ERROR]" in line]
    return messages[0] if messages else _last_message(output)


def _last_message(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("\t")]
    return lines[-1] if lines else "(no output)"
