"""docker-compose.yml agrees with the code: settings, ports, versions, mounts."""

from __future__ import annotations

import copy
import json
import re
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest
from click import Context
from jsonschema import Draft202012Validator

from stream.cli import _cli
from stream.kafka.local.apache import KAFKA_VERSION
from stream.runtime.worker import STOP_SECONDS
from stream.scoring.bundle import _META_FILE
from stream.settings import _known_variables, load_settings
from support.deployment_files import COMPOSE, DATASOURCES, PROMETHEUS, SERVICES, environment, texts
from support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

#: Variables that the compose file may ask for; its head says what each is.
VARIABLES = {
    "GRAFANA_ADMIN_PASSWORD",
    "BUNDLE_DIR",
    "ALERT_WEBHOOK_URL",
    "PYTHON_IMAGE",
    "KAFKA_IMAGE",
    "PROMETHEUS_IMAGE",
    "GRAFANA_IMAGE",
}

OWN = ("topics-init", "model-init", "worker", "demo")

CONFIGURED = ("topics-init", "worker", "demo")

#: Ports that are not the product's to choose, by service: the images' own, and what the compose file
#: itself gives Kafka to listen on.
IMAGE_PORTS = {"kafka": {"9092", "9093", "29092"}, "prometheus": {"9090"}, "grafana": {"3000"}}

#: What docker-compose 1.29, as Debian has it, knows of the Compose Specification.
COMPOSE_KEYS = {
    *("build", "cap_drop", "command", "cpus", "depends_on", "entrypoint", "environment", "healthcheck"),
    *("hostname", "image", "init", "mem_limit", "networks", "pids_limit", "ports", "profiles", "read_only"),
    *("restart", "security_opt", "stop_grace_period", "tmpfs", "volumes"),
}


# --- docker-compose.yml ---


def test_services() -> None:
    assert set(SERVICES) == {"kafka", *OWN, "prometheus", "grafana"}
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["demo"]


def image_of(name: str) -> str:
    """Return a service's image where no variable says otherwise."""
    image: str = SERVICES[name]["image"]
    return re.sub(r"^\$\{\w+_IMAGE:-(.*)\}$", r"\1", image)


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "cpus", "pids_limit"} <= set(service)
    assert "container_name" not in service


@pytest.mark.parametrize("name", ["kafka", "worker", "prometheus", "grafana"])
def test_what_goes_on_is_looked_after(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_a_stop_is_longer_than_the_drain() -> None:
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > 2 * STOP_SECONDS


def test_workers_can_be_scaled() -> None:
    """No port of the host, and a volume of its own for what two workers cannot share."""
    service = SERVICES["worker"]
    assert not {"ports", "hostname", "container_name"} & set(service)
    chosen = environment(service)
    assert chosen["RISKSTREAM_STATE_DIR"] in service["volumes"]
    assert "RISKSTREAM_KAFKA__GROUP_INSTANCE_ID" not in chosen
    made = re.search(r"install --directory --owner=riskstream[^&]*", (ROOT / "Dockerfile").read_text())
    assert made is not None
    for name in ("RISKSTREAM_STATE_DIR", "RISKSTREAM_BUNDLE"):
        assert chosen[name] in made[0].split(), "the user could not write there"


def test_the_model_is_where_the_worker_looks() -> None:
    [mount] = [mount for mount in SERVICES["model-init"]["volumes"] if mount.startswith("$")]
    assert f"{mount}:ro" in SERVICES["worker"]["volumes"]
    assert mount == f"${{BUNDLE_DIR:-bundle}}:{environment(SERVICES['worker'])['RISKSTREAM_BUNDLE']}"
    assert environment(SERVICES["model-init"])["RISKSTREAM_BUNDLE"] in mount
    script = SERVICES["model-init"]["command"][0]
    assert f"$$RISKSTREAM_BUNDLE/{_META_FILE}" in script


@pytest.mark.parametrize("name", ["model-init", "demo"])
def test_scripts_use_verbs_and_options_that_exist(name: str) -> None:
    lines = re.findall(r"riskstream (\w+)(.*)", SERVICES[name]["command"][0])
    assert lines
    for verb, rest in lines:
        command = _cli.get_command(Context(_cli), verb)
        assert command is not None
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known


def compose_problems(compose: dict[str, Any]) -> list[str]:
    """Return what the Compose Specification's own schema has against it."""
    vendored = resources.files("check_jsonschema.builtin_schemas.vendor") / "compose-spec.json"
    schema = json.loads(vendored.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return [
        f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(compose)
    ]


def test_is_what_the_compose_specification_allows() -> None:
    assert compose_problems(COMPOSE) == []


def test_what_the_compose_specification_does_not_know_is_found() -> None:
    wrong = copy.deepcopy(COMPOSE)
    wrong["services"]["worker"]["heathcheck"] = {}
    wrong["services"]["kafka"]["depends_on"] = {"worker": {"condition": "service_well"}}
    found = compose_problems(wrong)
    assert {problem.partition(":")[0].split(".")[2] for problem in found} == {"worker", "kafka"}


def test_the_oldest_compose_that_is_packaged_knows_every_key() -> None:
    keys = {key for service in SERVICES.values() for key in service}
    assert keys <= COMPOSE_KEYS
    assert set(COMPOSE) == {"services", "networks", "volumes", "x-confined", "x-riskstream"}


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    _, _, tag = image_of(name).rpartition(":")
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), SERVICES[name]["image"]


def test_broker_is_the_version_that_the_tests_run_on() -> None:
    assert image_of("kafka") == f"apache/kafka:{KAFKA_VERSION}"


def test_base_image_is_pinned_alike() -> None:
    default = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert default is not None
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", default[1])
    assert SERVICES["worker"]["build"]["args"]["PYTHON_IMAGE"] == f"${{PYTHON_IMAGE:-{default[1]}}}"


@pytest.mark.parametrize("name", SERVICES)
def test_mounts_exist(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        source = mount.partition(":/")[0]
        if mount.startswith("/"):
            continue  # a volume without a name
        if source.startswith("${"):
            variable, _, default = source.strip("${}").partition(":-")
            assert variable in VARIABLES
            assert default in COMPOSE["volumes"]
        elif source.startswith("."):
            assert (ROOT / source).exists()
            assert mount.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


def test_variables_are_documented() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    asked = set(re.findall(r"\$\{(\w+)", text))
    assert asked == VARIABLES
    head = text.partition("\nx-confined:")[0]
    for name in asked:
        assert re.search(rf"^#   {name}\s", head, re.MULTILINE), f"{name} is not in the file's head"


@pytest.mark.parametrize("name", CONFIGURED)
def test_settings_are_known_and_valid(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no .env
    chosen = environment(SERVICES[name])
    assert {variable for variable in chosen if variable.startswith("RISKSTREAM_")} <= _known_variables()
    for variable, value in chosen.items():
        monkeypatch.setenv(variable, value)
    assert load_settings().kafka.bootstrap_servers == "kafka:9092"


def test_dockerfile_names_known_settings() -> None:
    named = set(re.findall(r"\b(RISKSTREAM_\w+)=", (ROOT / "Dockerfile").read_text()))
    assert named
    assert named <= _known_variables()


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_published_beyond_this_machine(name: str) -> None:
    for published in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", published)
    assert "network_mode" not in SERVICES[name]


def test_ports_are_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every port in the files is the worker's by its settings, or an image's own."""
    monkeypatch.chdir(tmp_path)
    known = {str(load_settings().metrics.port)}.union(*IMAGE_PORTS.values())
    sources = [*texts(SERVICES), *texts(PROMETHEUS), *texts(DATASOURCES)]
    named = {port for text in sources for port in re.findall(r"(?<=:)\d{4,5}(?=\b)", text)}
    named |= {text for text in sources if re.fullmatch(r"\d{4,5}", text)}
    named |= set(re.findall(r"^EXPOSE (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert named <= known
    assert str(load_settings().metrics.port) in named


def test_published_ports_are_listened_on() -> None:
    for name, service in SERVICES.items():
        for published in service.get("ports", []):
            assert published.rpartition(":")[2] in IMAGE_PORTS[name]
    for listener in environment(SERVICES["kafka"])["KAFKA_LISTENERS"].split(","):
        assert listener.rpartition(":")[2] in IMAGE_PORTS["kafka"]


def test_worker_is_checked_where_it_listens() -> None:
    chosen = environment(SERVICES["worker"])
    assert chosen["RISKSTREAM_METRICS__HOST"] == "0.0.0.0"
    check = " ".join(SERVICES["worker"]["healthcheck"]["test"])
    assert f"http://127.0.0.1:{chosen['RISKSTREAM_METRICS__PORT']}/readyz" in check
    assert "ports" not in SERVICES["worker"]


def test_the_image_runs_as_a_user_without_rights() -> None:
    users = re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert users == ["riskstream"]


def test_everything_starts_after_what_it_needs() -> None:
    assert SERVICES["topics-init"]["command"] == ["topics", "create"]
    assert SERVICES["topics-init"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert SERVICES["worker"]["depends_on"] == {
        "topics-init": {"condition": "service_completed_successfully"},
        "model-init": {"condition": "service_completed_successfully"},
    }


def test_compiled_code_has_a_writable_place() -> None:
    cache = re.findall(r"NUMBA_CACHE_DIR=(\S+)", (ROOT / "Dockerfile").read_text())
    assert len(set(cache)) == 1
    for name in ("model-init", "worker", "demo"):
        assert cache[0] in SERVICES[name]["volumes"]


def test_grafana_needs_a_password_from_the_environment() -> None:
    chosen = environment(SERVICES["grafana"])
    assert chosen["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_ADMIN_PASSWORD:?")
    assert chosen["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


def test_build_context_has_what_the_image_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert names == {"requirements.image.lock", "pyproject.toml", "README.md", "stream", "offline"}
    assert {f"!{name}" for name in names} <= set(ignored)
