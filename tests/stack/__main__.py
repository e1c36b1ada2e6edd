"""Bring the stack up, score a replay, kill the worker and the broker, scale to two workers, take it down."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from offline.simulation.simulator import Simulation, simulate
from stack.engine import Engine, install
from support.helpers import wait_until
from support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

WORK = ROOT / "var/compose-test"
BROKER = "127.0.0.1:29092"
PROMETHEUS = "http://127.0.0.1:9090"
PARTITIONS = 4
#: Only a hang meets it: a start compiles, trains a model, and restores state.
PATIENCE_SECONDS = 300.0
#: So many of the demo's are seen until it is believed to stream.
DEMO_TRANSACTIONS = 1_000
#: Transactions a second that it sends, as the docs say.
DEMO_RATE = 200
#: Without its profile the demo would be left.
DOWN = ("--profile", "demo", "down", "--volumes", "--timeout", "30")
#: Grafana has no stand-in.
SERVICES = ("kafka", "topics-init", "model-init", "worker", "prometheus")


class Stack:
    """The compose file's services on an engine, and the records that went through them."""

    def __init__(self, engine: Engine, images: dict[str, str]) -> None:
        self.engine = engine
        self._variables = images | {"GRAFANA_ADMIN_PASSWORD": "not-started"}
        self._records = simulate(Simulation(transactions=12_000, users=300, seed=5)).to_records()
        self._producer: KafkaProducer | None = None
        self.sent: set[str] = set()

    def compose(self, *command: str, check: bool = True) -> str:
        base = ("docker-compose", "--project-name", "riskstream-test")
        return self.engine.run(*base, *command, check=check, **self._variables).stdout

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--quiet", service).split()

    def wait_healthy(self, service: str, count: int = 1) -> list[str]:
        def healthy() -> bool:
            found = [self.engine.inspect(one)["State"] for one in self.containers(service)]
            return [state.get("Health", {}).get("Status") for state in found] == ["healthy"] * count

        try:
            wait_until(healthy, f"{service} is not healthy", PATIENCE_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('ps')}\n{self.logs(service)}") from error
        return self.containers(service)

    def logs(self, *services: str) -> str:
        return self.compose("logs", "--no-color", "--tail", "40", *services, check=False)

    def send(self, count: int) -> None:
        """Send so many transactions more, and wait for the broker's word on each."""
        producer = KafkaProducer(bootstrap_servers=BROKER, acks="all", retries=100)
        futures = []
        for _, (key, value) in zip(range(count), self._records, strict=False):
            futures.append(producer.send("transactions", key=key, value=value))
            self.sent.add(json.loads(value)["transaction_id"])
        producer.flush(PATIENCE_SECONDS)
        for future in futures:
            future.get(PATIENCE_SECONDS)
        producer.close()

    def wait_decided(self) -> None:
        """Return once every transaction sent has its one decision, and every alert asked for is there."""
        decisions: dict[str, dict[str, Any]] = {}
        alerts: set[str] = set()

        def done() -> bool:
            for body in read("risk-decisions"):
                known = decisions.setdefault(body["transaction_id"], body)
                assert known == body, "decided twice, and not the same"
            alerts.update(body["alert_id"] for body in read("risk-alerts"))
            return decisions.keys() == self.sent

        wait_until(done, f"not every transaction was decided\n{self.logs('worker')}", PATIENCE_SECONDS)
        assert {body["outcome"] for body in decisions.values()} == {"scored"}
        assert alerts == {body["alert_id"] for body in decisions.values() if "alert_id" in body}
        assert alerts
        say(f"{len(decisions):,} transactions decided, each once; {len(alerts)} alerts")

    def strangers(self) -> int:
        """Return how many transactions are decided that were not sent from here."""
        return len({body["transaction_id"] for body in read("risk-decisions")} - self.sent)


def read(topic: str) -> Iterator[dict[str, Any]]:
    """Yield every record of a topic so far."""
    reader = KafkaConsumer(bootstrap_servers=BROKER, enable_auto_commit=False, auto_offset_reset="earliest")
    try:
        reader.assign([TopicPartition(topic, at) for at in range(PARTITIONS)])
        ends = reader.end_offsets(list(reader.assignment()))
        while any(reader.position(partition) < end for partition, end in ends.items()):
            for batch in reader.poll(timeout_ms=500).values():
                for record in batch:
                    yield json.loads(record.value)
    finally:
        reader.close()


def ask(query: str) -> list[float]:
    url = f"{PROMETHEUS}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return [float(series["value"][1]) for series in json.load(answer)["data"]["result"]]
    except OSError:
        return []


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def check_rights(stack: Stack) -> None:
    for service in ("kafka", "worker", "prometheus"):
        [container] = stack.containers(service)
        [user] = stack.engine.run("docker", "exec", container, "id", "-u").stdout.split()
        assert user != "0", f"{service} runs as root"
        refused = stack.engine.run("docker", "exec", container, "touch", "/usr/x", check=False)
        assert "Read-only file system" in refused.stdout, refused.stdout
        host = stack.engine.inspect(container)["HostConfig"]
        assert host["Memory"] > 0
        assert host["NanoCpus"] > 0
    say("no container runs as root, can write to its root, or take all memory")


def check_monitoring(stack: Stack, workers: int) -> None:
    stack.wait_healthy("prometheus")
    wait_until(
        lambda: ask('up{job="riskstream"}') == [1.0] * workers,
        "Prometheus does not see all workers",
        PATIENCE_SECONDS,
    )

    def shared_out() -> bool:
        held = ask("riskstream_assigned_partitions")
        return len(held) == workers and all(held) and sum(held) == PARTITIONS

    wait_until(shared_out, "not every worker has its share of the partitions", PATIENCE_SECONDS)
    with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/rules", timeout=10) as answer:
        rules = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert len(rules) > 10
    say(f"Prometheus asks {workers} worker(s), with {len(rules)} rules")


def check_what_the_docs_tell(stack: Stack) -> None:
    """Whoever wonders looks at the log and asks for a check, in the container itself."""
    report = stack.compose("exec", "-T", "worker", "riskstream", "check")
    assert "WRONG" not in report
    states = [line.partition(" ")[0] for line in report.splitlines()]
    assert states.count("ok") >= len(("settings", "model", "state", "broker", "topics")), report
    lines = [line.partition("| ")[2] for line in stack.compose("logs", "--no-color", "worker").splitlines()]
    told = [json.loads(line)["message"] for line in lines if line]
    assert "ready: state restored, accepting transactions" in told
    say("the check in the container finds nothing wrong, and its log is JSON")


def check_overview(stack: Stack) -> None:
    """What the docs say of the overview while the demo streams, by the dashboard's own queries."""
    dashboard = json.loads((ROOT / "grafana/dashboards/overview.json").read_text(encoding="utf-8"))
    asked = {}
    for panel in dashboard["panels"]:
        if panel["type"] == "stat":
            expression = panel["targets"][0]["expr"]
            for name, value in {"$job": ".*", "$instance": ".*", "$__rate_interval": "1m"}.items():
                expression = expression.replace(name, value)
            asked[panel["title"]] = expression

    def as_told() -> bool:
        rate, ready = ask(asked["Throughput"]), ask(asked["Workers ready"])
        return ready == [1.0] and len(rate) == 1 and abs(rate[0] - DEMO_RATE) < DEMO_RATE / 10

    wait_until(as_told, "the overview does not show what the docs say", PATIENCE_SECONDS)
    shown = {title: ask(expression) for title, expression in asked.items()}
    assert all(len(values) == 1 for values in shown.values()), shown
    say("the overview shows " + ", ".join(f"{title}: {value:g}" for title, [value] in shown.items()))


def crash(stack: Stack, service: str) -> None:
    """End a container's process from outside: its restart policy brings it back."""
    [container] = stack.containers(service)
    before = stack.engine.inspect(container)
    os.kill(before["State"]["Pid"], signal.SIGKILL)
    wait_until(
        lambda: stack.engine.inspect(container)["RestartCount"] > before["RestartCount"],
        f"{service} is not restarted",
        PATIENCE_SECONDS,
    )
    stack.wait_healthy(service)


def kill(stack: Stack, service: str) -> None:
    """``docker kill``, which Docker takes for a person's wish: it stays down until it is started again."""
    [container] = stack.containers(service)
    stack.engine.run("docker", "kill", container)
    stack.send(500) if service == "worker" else None
    stack.engine.run("docker", "start", container)
    stack.wait_healthy(service)


def exercise(stack: Stack) -> None:
    say("up")
    stack.compose("up", "--detach", *SERVICES)
    stack.wait_healthy("worker")
    check_rights(stack)
    stack.send(3_000)
    stack.wait_decided()
    check_what_the_docs_tell(stack)
    check_monitoring(stack, 1)

    say("docker kill of the worker; then its process dies")
    stack.send(1_000)
    kill(stack, "worker")
    crash(stack, "worker")
    stack.wait_decided()

    say("docker kill of the broker; then its process dies")
    stack.send(1_000)
    kill(stack, "kafka")
    stack.send(500)
    crash(stack, "kafka")
    stack.send(500)
    stack.wait_decided()

    say("two workers")
    stack.compose("up", "--detach", "--no-recreate", "--scale", "worker=2", *SERVICES)
    one, two = stack.wait_healthy("worker", 2)
    volumes = [
        {
            mount["Name"]
            for mount in stack.engine.inspect(worker)["Mounts"]
            if "/state" in mount["Destination"]
        }
        for worker in (one, two)
    ]
    assert volumes[0]
    assert not volumes[0] & volumes[1], "two workers share a state volume"
    check_monitoring(stack, 2)
    stack.send(2_000)
    stack.wait_decided()

    say("one of the two goes for good")
    stack.compose("up", "--detach", "--no-recreate", "--scale", "worker=1", *SERVICES)
    stack.send(1_000)
    stack.wait_decided()

    say("the demo's own transactions")
    stack.compose("--profile", "demo", "up", "--detach", "--no-recreate", "demo")
    wait_until(
        lambda: stack.strangers() > DEMO_TRANSACTIONS,
        "the demo streams nothing",
        PATIENCE_SECONDS,
    )
    check_overview(stack)
    stack.compose("--profile", "demo", "stop", "demo")

    say("stop")
    [worker] = stack.containers("worker")
    stack.compose("stop", "worker")
    state = stack.engine.inspect(worker)["State"]
    assert state["ExitCode"] == 0, f"a stop ended with {state['ExitCode']}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="make compose-test", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep images and layers for the next run")
    options = parser.parse_args()
    # However it is told to end, it takes down what it has brought up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit("compose-test: ended before its time"))
    install()
    for port in (int(BROKER.rpartition(":")[2]), int(PROMETHEUS.rpartition(":")[2])):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} is taken"
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        with Engine(WORK / "engine") as engine:
            say("base images")
            images = engine.make_stand_ins(WORK)
            say("the image, from Dockerfile")
            engine.build("riskstream:0.1.0", ROOT, PYTHON_IMAGE=images["PYTHON_IMAGE"])
            stack = Stack(engine, images)
            try:
                exercise(stack)
            except BaseException:
                print(stack.compose("ps", "--all", check=False), stack.logs(), sep="\n", flush=True)
                raise
            finally:
                stack.compose(*DOWN, check=False)
    finally:
        if not options.keep:
            shutil.rmtree(WORK, ignore_errors=True)
    say("passed")


if __name__ == "__main__":
    main()
