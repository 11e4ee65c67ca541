"""The manifests: valid by their schemas, of one piece with each other, and locked down."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from jobs.spec import Spec
from orchestrator.service.config import check_config
from tests.infra.kuberay_fields import SCHEMAS

FOLDER = Path(__file__).parents[2] / "infra/kuberay"
KUBERNETES = "1.31"
RESOURCES = [
    pytest.param(resource, id=f"{path.name}:{resource['kind']}/{resource['metadata']['name']}")
    for path in sorted(FOLDER.glob("*.yaml"))
    for resource in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]


def named(kind: str, name: str) -> dict[str, Any]:
    found = [one.values[0] for one in RESOURCES if one.id and one.id.endswith(f":{kind}/{name}")]
    assert len(found) == 1
    resource: dict[str, Any] = found[0]  # type: ignore[assignment]
    return resource


def pods(resource: Any) -> Iterator[dict[str, Any]]:
    """Every pod's own spec in a resource, wherever it is."""
    if isinstance(resource, dict):
        if "containers" in resource:
            yield resource
        for inner in resource.values():
            yield from pods(inner)
    elif isinstance(resource, list):
        for inner in resource:
            yield from pods(inner)


def check(resource: dict[str, Any]) -> None:
    """By KubeRay's fields where it is KubeRay's, and by Kubernetes' schemas."""
    if resource["kind"] not in SCHEMAS:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        return
    jsonschema.Draft202012Validator(SCHEMAS[resource["kind"]]).validate(resource)
    for pod in pods(resource):
        wrapped = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
        kubernetes_validate.validate(wrapped, KUBERNETES, strict=True)


@pytest.mark.parametrize("resource", RESOURCES)
def test_every_resource_holds_to_its_schema(resource: dict[str, Any]):
    check(resource)


@pytest.mark.parametrize(
    "path",
    [
        ("RayCluster", "slora", "spec", "headGroupSpec"),
        ("RayCluster", "slora", "spec", "headGroupSpec", "template", "spec", "containers", 0),
        ("RayJob", "slora-chat", "spec"),
        ("Deployment", "slora-service", "spec", "template", "spec"),
        ("NetworkPolicy", "slora-ray", "spec"),
    ],
    ids=lambda path: ".".join(map(str, path)),
)
def test_a_field_that_nobody_knows_is_refused(path: tuple[Any, ...]):
    resource = copy.deepcopy(named(path[0], path[1]))
    place = resource
    for step in path[2:]:
        place = place[step]
    place["replica"] = 3
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(resource)


@pytest.mark.parametrize("resource", RESOURCES)
def test_no_container_is_root_or_may_become_it_or_writes_to_its_image(resource: dict[str, Any]):
    for pod in pods(resource):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"] + pod.get("initContainers", []):
            mine = container["securityContext"]
            assert mine["readOnlyRootFilesystem"] and not mine["allowPrivilegeEscalation"]
            assert mine["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"] and container["resources"]["requests"]


@pytest.mark.parametrize("resource", RESOURCES)
def test_secrets_come_as_files_and_never_as_variables(resource: dict[str, Any]):
    assert resource["kind"] != "Secret"
    for pod in pods(resource):
        for container in pod["containers"] + pod.get("initContainers", []):
            assert not container.get("envFrom")
            assert all("value" in variable for variable in container.get("env", []))


@pytest.mark.parametrize("resource", RESOURCES)
def test_what_is_mounted_is_a_volume_of_its_pod(resource: dict[str, Any]):
    for pod in pods(resource):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        used = {
            mount["name"]
            for container in pod["containers"] + pod.get("initContainers", [])
            for mount in container.get("volumeMounts", [])
        }
        assert used == volumes


def test_ray_is_never_without_its_token():
    job = named("RayJob", "slora-chat")["spec"]["rayClusterSpec"]
    for spec in (named("RayCluster", "slora")["spec"], job):
        assert spec["authOptions"] == {"mode": "token"}


def test_the_service_reads_rays_token_where_kuberay_puts_it():
    config = yaml.safe_load(named("ConfigMap", "slora-service")["data"]["service.yaml"])
    found = check_config({**config, "stores": ["s3://bucket/store"]}).clusters["default"]
    (pod,) = pods(named("Deployment", "slora-service"))
    (container,) = pod["containers"]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    secrets = {
        one["name"]: one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one
    }
    cluster = named("RayCluster", "slora")["metadata"]["name"]
    # KubeRay names the token's Secret as the cluster, and the head's service after it.
    assert secrets["ray"] == cluster
    assert found.token_file == f"{mounts['ray']}/auth_token"
    assert found.address == f"http://{cluster}-head-svc:8265"


def _secrets(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [volume for volume in pod["volumes"] if "secret" in volume]


def test_the_job_trains_by_a_valid_spec():
    spec = yaml.safe_load(named("ConfigMap", "slora-chat-spec")["data"]["spec.yaml"])
    found = Spec.model_validate(spec)
    workers = named("RayJob", "slora-chat")["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    (container,) = workers["template"]["spec"]["containers"]
    assert found.cluster.workers == workers["replicas"]
    assert found.cluster.gpus_per_worker == int(container["resources"]["limits"]["nvidia.com/gpu"])


def test_the_service_is_asked_on_the_probes_it_answers():
    (pod,) = pods(named("Deployment", "slora-service"))
    (container,) = pod["containers"]
    port = container["ports"][0]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert f"--port={port['containerPort']}" in container["args"]
