"""deploy/k8s agrees with the code, the image and itself."""

from __future__ import annotations

import copy
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models import prometheus_operator
from pydantic import ValidationError

from stream.runtime.worker import STOP_SECONDS
from stream.serving.health import HEALTH_PATH, READY_PATH
from stream.settings import _known_variables, load_settings
from support.paths import ROOT
from support.prometheus_tools import tool

FOLDER = ROOT / "deploy/k8s"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
OBJECTS: dict[str, dict[str, Any]] = {
    found["kind"]: found
    for name in KUSTOMIZATION["resources"]
    for found in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
}
SET = OBJECTS["StatefulSet"]["spec"]
POD = SET["template"]["spec"]
[WORKER] = POD["containers"]
CONFIG = dict(line.split("=", 1) for line in (FOLDER / "config.env").read_text().split())


#: The oldest and the newest Kubernetes that this is held to; what lies between them as well.
VERSIONS = [f"1.{minor}" for minor in range(29, 38)]
#: Not Kubernetes' own but the Prometheus operator's.
OPERATORS = ("ServiceMonitor", "PrometheusRule")


def operator_problems(found: dict[str, Any]) -> list[str]:
    """Return what the operator's custom resource definitions, as models, have against an object."""
    model = getattr(prometheus_operator.v1, found["kind"])
    try:
        known = model.model_validate(found).model_dump(by_alias=True, exclude_unset=True, mode="json")
    except ValidationError as error:
        return [str(problem["loc"]) for problem in error.errors()]
    # The models pass over what they do not know.
    return [] if known == found else ["not all of it is known"]


@pytest.mark.parametrize("kind", OPERATORS)
def test_the_operators_objects_are_what_its_definitions_say(kind: str) -> None:
    assert operator_problems(OBJECTS[kind]) == []


def test_what_the_operators_definitions_do_not_allow_is_found() -> None:
    monitor = copy.deepcopy(OBJECTS["ServiceMonitor"])
    monitor["spec"]["endpoints"][0]["intervall"] = "15s"
    assert operator_problems(monitor) == ["not all of it is known"]
    rules = copy.deepcopy(OBJECTS["PrometheusRule"])
    rules["spec"]["groups"][0]["interval"] = "fifteen seconds"
    del rules["spec"]["groups"][1]["rules"][0]["expr"]
    assert operator_problems(rules) == [
        "('spec', 'groups', 0, 'interval')",
        "('spec', 'groups', 1, 'rules', 0, 'expr')",
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_what_the_api_says(version: str) -> None:
    for kind, found in OBJECTS.items():
        if kind not in OPERATORS:
            kubernetes_validate.validate(found, version, strict=True)


def test_what_the_api_does_not_know_is_found() -> None:
    wrong = copy.deepcopy(OBJECTS["StatefulSet"])
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_the_operators_rules_are_the_rules() -> None:
    source: dict[str, Any] = runpy.run_path(str(ROOT / "grafana/build.py"))
    written = (FOLDER / "prometheus-rule.yaml").read_text(encoding="utf-8")
    assert written == source["operator_rules"](), "write it anew with 'python grafana/build.py'"
    groups = [
        group
        for name in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((ROOT / "grafana/prometheus" / name).read_text())["groups"]
    ]
    assert OBJECTS["PrometheusRule"]["spec"] == {"groups": groups}


def test_prometheus_takes_the_operators_rules(tmp_path: Path) -> None:
    """The operator hands the groups on as they are."""
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump(OBJECTS["PrometheusRule"]["spec"]), encoding="utf-8")
    done = subprocess.run(
        [tool("promtool"), "check", "rules", str(rules)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def overlays() -> list[str]:
    """Return the overlays of the README: as it begins with, and without the Prometheus operator."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    whole, added = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    return [whole, whole + added]


def build(folder: Path, overlay: str) -> list[dict[str, Any]]:
    """Return what ``kubectl apply --kustomize`` would send for an overlay."""
    shutil.copytree(FOLDER, folder / "deploy/k8s")
    (folder / "overlay").mkdir()
    (folder / "overlay/kustomization.yaml").write_text(overlay, encoding="utf-8")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("kubectl")), "kustomize", str(folder / "overlay")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("overlay", overlays(), ids=["whole", "without the operator"])
def test_the_overlays_of_the_docs_can_be_built(overlay: str, tmp_path: Path) -> None:
    chosen = yaml.safe_load(overlay)
    built = {found["kind"]: found for found in build(tmp_path, overlay)}
    without = set(OPERATORS) if "patches" in chosen else set()
    assert set(built) == (set(OBJECTS) | {"ConfigMap"}) - without
    for kind, found in built.items():
        if kind not in OPERATORS:
            kubernetes_validate.validate(found, VERSIONS[-1], strict=True)
            kubernetes_validate.validate(found, VERSIONS[0], strict=True)
        assert found["metadata"].get("namespace", "riskstream") == "riskstream"
    [literal] = chosen["configMapGenerator"][0]["literals"]
    assert built["ConfigMap"]["data"] == CONFIG | dict([literal.split("=", 1)])
    assert built["StatefulSet"]["spec"]["replicas"] == chosen["replicas"][0]["count"]
    [image] = chosen["images"]
    for kind in ("StatefulSet", "Job"):
        pod = built[kind]["spec"]["template"]["spec"]
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            assert container["image"] == f"{image['newName']}:{image['newTag']}"
        [settings] = [one for one in pod["containers"][0]["envFrom"] if "configMapRef" in one]
        assert settings["configMapRef"]["name"] == built["ConfigMap"]["metadata"]["name"]


def pods() -> list[dict[str, Any]]:
    return [POD, OBJECTS["Job"]["spec"]["template"]["spec"]]


def test_every_file_is_listed() -> None:
    there = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert there == set(KUSTOMIZATION["resources"])
    assert KUSTOMIZATION["configMapGenerator"] == [{"name": "riskstream", "envs": ["config.env"]}]


def test_settings_are_known_and_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = CONFIG | {item["name"]: item.get("value", "riskstream-worker-0") for item in WORKER["env"]}
    assert set(chosen) <= _known_variables()
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.kafka.group_instance_id == "riskstream-worker-0"
    assert settings.metrics.port == WORKER["ports"][0]["containerPort"]
    assert SET["replicas"] <= settings.topics.partitions


def test_what_the_docs_name_is_known() -> None:
    text = (FOLDER / "README.md").read_text()
    assert set(re.findall(r"RISKSTREAM_\w+", text)) <= _known_variables()
    mounted = {mount["mountPath"] for mount in WORKER["volumeMounts"]}
    for path in re.findall(r"=(/etc/\S+)/[\w.]+", text):
        assert path in mounted
    secrets = {source["secretRef"]["name"] for source in WORKER["envFrom"] if "secretRef" in source}
    secrets |= {volume["secret"]["secretName"] for volume in POD["volumes"] if "secret" in volume}
    assert secrets == set(re.findall(r"create secret generic (\S+)", text))


def test_each_worker_has_its_own_volume_and_name() -> None:
    [claim] = SET["volumeClaimTemplates"]
    paths = {mount["name"]: mount["mountPath"] for mount in WORKER["volumeMounts"]}
    values = {item["name"]: item.get("value") for item in WORKER["env"]}
    assert paths[claim["metadata"]["name"]] == values["RISKSTREAM_STATE_DIR"]
    assert paths["bundle"] == values["RISKSTREAM_BUNDLE"]
    [instance] = [item for item in WORKER["env"] if item["name"] == "RISKSTREAM_KAFKA__GROUP_INSTANCE_ID"]
    assert instance["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"


def test_every_mount_has_its_volume() -> None:
    claims = {claim["metadata"]["name"] for claim in SET["volumeClaimTemplates"]}
    for pod in pods():
        volumes = {volume["name"] for volume in pod["volumes"]} | claims
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_pods_have_no_rights() -> None:
    user = re.search(r"useradd --uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert user is not None
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == int(user[1])
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] == OBJECTS["ServiceAccount"]["metadata"]["name"]
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"requests", "limits"} <= set(container["resources"])


def test_probes_ask_what_the_endpoint_answers() -> None:
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = WORKER[probe]["httpGet"]
        assert asked["path"] in {HEALTH_PATH, READY_PATH}
        assert asked["port"] == WORKER["ports"][0]["name"]
    assert WORKER["livenessProbe"]["httpGet"]["path"] == HEALTH_PATH
    assert WORKER["readinessProbe"]["httpGet"]["path"] == READY_PATH


def test_selectors_meet_the_pods() -> None:
    labels = SET["template"]["metadata"]["labels"]
    assert SET["serviceName"] == OBJECTS["Service"]["metadata"]["name"]
    for selector in (
        SET["selector"]["matchLabels"],
        OBJECTS["Service"]["spec"]["selector"],
        OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector == labels
    assert OBJECTS["Job"]["spec"]["template"]["metadata"]["labels"] != labels


def test_prometheus_calls_the_job_as_the_rules_do() -> None:
    monitor = OBJECTS["ServiceMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"] == OBJECTS["Service"]["metadata"]["labels"]
    assert monitor["endpoints"][0]["port"] == OBJECTS["Service"]["spec"]["ports"][0]["name"]
    [common] = KUSTOMIZATION["labels"]
    assert common["pairs"][monitor["jobLabel"]] == "riskstream"
    assert 'job="riskstream"' in (ROOT / "grafana/prometheus/alerts.yml").read_text()


def test_a_stop_is_longer_than_the_drain() -> None:
    assert POD["terminationGracePeriodSeconds"] > 2 * STOP_SECONDS
