"""What is deployed: manifests that clusters accept, containers without rights, no secret, deadlines that agree."""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support import SKILL

import serve_gateway

DEPLOY = SKILL / "deploy"
MANIFESTS = DEPLOY / "kubernetes"
TEST_OVERLAY = SKILL / "tests" / "e2e" / "gateway-kubernetes"
IMAGES = yaml.safe_load((SKILL / "versions.yaml").read_text())["images"]["inference_service"]
GATEWAY = IMAGES["gateway"]
NAME = {"app.kubernetes.io/name": "tao-gateway"}
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
NO_RIGHTS = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def documents(folder: Path) -> list[dict[str, Any]]:
    """The objects of a folder of manifests."""
    files = [file for file in sorted(folder.glob("*.yaml")) if file.name != "kustomization.yaml"]
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def one(kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents(MANIFESTS) if document["kind"] == kind]
    return found


def drain_seconds() -> float:
    seconds: float = serve_gateway.parser().parse_args([]).drain
    return seconds


@pytest.mark.parametrize("version", ["1.30", "1.32", "1.34"])
@pytest.mark.parametrize("folder", [MANIFESTS, TEST_OVERLAY], ids=["deploy", "test overlay"])
def test_every_manifest_is_what_the_published_schemas_of_kubernetes_say(folder: Path, version: str) -> None:
    assert documents(folder)
    for document in documents(folder):
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders kustomizations, and is not here")
@pytest.mark.parametrize("folder", [MANIFESTS, TEST_OVERLAY], ids=["deploy", "test overlay"])
def test_what_kustomize_makes_of_it_is_valid_and_whole(folder: Path) -> None:
    rendered = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True).stdout
    objects = list(yaml.safe_load_all(rendered))
    for item in objects:
        kubernetes_validate.validate(item, "1.34", strict=True)
    kinds = {item["kind"] for item in objects if item["metadata"]["name"] == "tao-gateway"}
    assert kinds == {
        *("Deployment", "Service", "ServiceAccount", "ConfigMap"),
        *("HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"),
    }
    (settings,) = [item for item in objects if item["kind"] == "ConfigMap"]
    assert json.loads(settings["data"]["services.json"]) == {}


def test_each_object_selects_the_gateways_pods_and_no_others() -> None:
    assert one("Deployment")["spec"]["selector"]["matchLabels"] == NAME
    assert NAME.items() <= one("Deployment")["spec"]["template"]["metadata"]["labels"].items()
    assert one("Service")["spec"]["selector"] == NAME
    assert one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == NAME
    assert one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == NAME
    assert one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == one("Deployment")["metadata"]["name"]


def test_the_gateways_pod_has_no_rights_and_writes_nowhere_but_to_its_volumes() -> None:
    pod = one("Deployment")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == NO_RIGHTS
    assert container["image"] == GATEWAY
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    written = {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert all("emptyDir" in volumes[name] and volumes[name]["emptyDir"]["sizeLimit"] for name in written)


def test_a_pod_that_ends_has_the_time_that_the_gateway_gives_to_running_answers() -> None:
    pod = one("Deployment")["spec"]["template"]["spec"]
    _sleep, notice = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] >= float(notice) + drain_seconds() + 10
    assert one("Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    stop = COMPOSE["services"]["gateway"]["stop_grace_period"]
    assert float(stop.removesuffix("s")) >= drain_seconds() + 10


def test_a_pod_is_not_ended_for_what_its_upstream_fails_at() -> None:
    (container,) = one("Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["httpGet"]["path"].endswith("/liveness")
    assert container["startupProbe"]["httpGet"]["path"].endswith("/liveness")
    assert container["readinessProbe"]["httpGet"]["path"].endswith("/readiness")


def test_the_network_policy_lets_nothing_reach_a_nodes_metadata() -> None:
    blocks = [
        target["ipBlock"]
        for rule in one("NetworkPolicy")["spec"]["egress"]
        for target in rule.get("to", ())
        if "ipBlock" in target
    ]
    assert blocks
    for address in map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254")):
        allowing = [block for block in blocks if address in ipaddress.ip_network(block["cidr"])]
        assert allowing
        assert all(any(address in ipaddress.ip_network(spared) for spared in block["except"]) for block in allowing)


def test_every_secret_is_a_name_in_the_manifests_and_in_the_compose_file() -> None:
    (container,) = one("Deployment")["spec"]["template"]["spec"]["containers"]
    secret = {entry["name"] for entry in container["env"] if "secretKeyRef" in entry.get("valueFrom", {})}
    assert secret == {"ANTHROPIC_API_KEY", "TAO_GATEWAY_ADMIN_KEY", "PGPASSWORD"}
    assert not [document for document in documents(MANIFESTS) if document["kind"] == "Secret"]
    environment = COMPOSE["services"]["gateway"]["environment"]
    # From the environment as it is, or refused where it is not set.
    assert environment["ANTHROPIC_API_KEY"] is None
    for name in secret - {"ANTHROPIC_API_KEY"}:
        assert re.fullmatch(rf"\$\{{{name}:\?[^}}]+\}}", environment[name])
    assert all(set(source) == {"environment"} for source in COMPOSE["secrets"].values())
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            named = value is None or value.startswith("${") or name.endswith("_FILE")
            assert named or not re.search("PASSWORD|KEY", name), name


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_each_service_of_the_compose_file_has_no_rights_and_listens_on_this_machine_alone(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    for volume in service.get("volumes", ()):
        if volume["type"] == "bind":
            assert (DEPLOY / volume["source"]).exists(), volume["source"]
            assert volume["read_only"] is True
        else:
            assert volume["source"] in COMPOSE["volumes"]
    assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
    assert set(service["networks"]) <= set(COMPOSE["networks"])


def test_the_compose_file_builds_and_runs_the_gateway_of_this_release() -> None:
    gateway = COMPOSE["services"]["gateway"]
    assert gateway["image"] == GATEWAY
    assert (DEPLOY / gateway["build"]["context"]).resolve() == SKILL
    assert f" AS {gateway['build']['target']}\n" in (SKILL / "Dockerfile").read_text()
    assert COMPOSE["networks"]["inside"]["internal"] is True


def _has_compose() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0


@pytest.mark.skipif(not _has_compose(), reason="the docker compose plugin is not here")
def test_docker_compose_understands_the_file() -> None:
    secrets = dict.fromkeys(("ANTHROPIC_API_KEY", "TAO_GATEWAY_ADMIN_KEY", "PGPASSWORD"), "x" * 32)
    command = ["docker", "compose", "--file", str(DEPLOY / "compose.yaml"), "config", "--format", "json"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin", **secrets})
    assert set(json.loads(told.stdout)["services"]) == {"gateway", "postgresql", "prometheus", "grafana"}


def test_prometheus_scrapes_the_gateway_with_a_key_from_a_file() -> None:
    configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (scrape,) = configuration["scrape_configs"]
    assert scrape["authorization"] == {"type": "Bearer", "credentials_file": "/run/secrets/admin_key"}
    assert scrape["static_configs"] == [{"targets": ["gateway:8080"]}]
    assert "admin_key" in COMPOSE["services"]["prometheus"]["secrets"]


def test_grafana_finds_the_data_source_that_the_dashboard_names() -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana" / "datasources.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((DEPLOY / "grafana" / "dashboards.yaml").read_text())["providers"]
    targets = {volume["target"] for volume in COMPOSE["services"]["grafana"]["volumes"]}
    assert f"{provider['options']['path']}/gateway.json" in targets
    assert json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())["panels"]
    assert source["type"] == "prometheus"


def test_the_image_installs_what_the_gateway_postgresql_and_tracing_need() -> None:
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((SKILL / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = (SKILL / "Dockerfile").read_text().partition("AS build-gateway")[2].partition("COPY")[0]
    needs = [*extras["gateway"], *extras["postgresql"], *extras["tracing"]]
    assert [need for need in needs if f'"{need}"' not in installed] == []
