"""The manifests: valid by their schemas, consistent with each other, and locked down."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from jobs.spec.schema import RunSpec
from orchestrator.control.config import parse_config
from tests.infra.kuberay_fields import SCHEMAS

FOLDER = Path(__file__).parents[2] / "infra/kuberay"
KUBERNETES = "1.31"
RESOURCES = [
    pytest.param(resource, id=f"{path.name}:{resource['kind']}/{resource['metadata']['name']}")
    for path in sorted(FOLDER.glob("*.yaml"))
    for resource in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]


def find_resource(kind: str, name: str) -> dict[str, Any]:
    matches = [
        parameter.values[0]
        for parameter in RESOURCES
        if parameter.id and parameter.id.endswith(f":{kind}/{name}")
    ]
    assert len(matches) == 1
    resource: dict[str, Any] = matches[0]  # type: ignore[assignment]
    return resource


def iterate_pods(resource: Any) -> Iterator[dict[str, Any]]:
    """Yield the spec of every pod in a resource."""
    if isinstance(resource, dict):
        if "containers" in resource:
            yield resource
        for inner in resource.values():
            yield from iterate_pods(inner)
    elif isinstance(resource, list):
        for inner in resource:
            yield from iterate_pods(inner)


def check_resource(resource: dict[str, Any]) -> None:
    """Validate a resource by the schemas of KubeRay and Kubernetes."""
    if resource["kind"] not in SCHEMAS:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        return
    jsonschema.Draft202012Validator(SCHEMAS[resource["kind"]]).validate(resource)
    for pod in iterate_pods(resource):
        wrapped = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
        kubernetes_validate.validate(wrapped, KUBERNETES, strict=True)


@pytest.mark.parametrize("resource", RESOURCES)
def test_every_resource_matches_its_schema(resource: dict[str, Any]):
    check_resource(resource)


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
def test_an_unknown_field_is_rejected(path: tuple[Any, ...]):
    resource = copy.deepcopy(find_resource(path[0], path[1]))
    node = resource
    for step in path[2:]:
        node = node[step]
    node["replica"] = 3
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_resource(resource)


@pytest.mark.parametrize("resource", RESOURCES)
def test_containers_are_unprivileged_and_read_only(resource: dict[str, Any]):
    for pod in iterate_pods(resource):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"] + pod.get("initContainers", []):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"] and container["resources"]["requests"]


@pytest.mark.parametrize("resource", RESOURCES)
def test_secrets_are_files_and_never_variables(resource: dict[str, Any]):
    assert resource["kind"] != "Secret"
    for pod in iterate_pods(resource):
        for container in pod["containers"] + pod.get("initContainers", []):
            assert not container.get("envFrom")
            assert all("value" in variable for variable in container.get("env", []))


@pytest.mark.parametrize("resource", RESOURCES)
def test_every_mount_is_a_volume_of_its_pod(resource: dict[str, Any]):
    for pod in iterate_pods(resource):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        used = {
            mount["name"]
            for container in pod["containers"] + pod.get("initContainers", [])
            for mount in container.get("volumeMounts", [])
        }
        assert used == volumes


def test_ray_is_never_without_its_token():
    job = find_resource("RayJob", "slora-chat")["spec"]["rayClusterSpec"]
    for spec in (find_resource("RayCluster", "slora")["spec"], job):
        assert spec["authOptions"] == {"mode": "token"}


def test_the_service_reads_rays_token_where_kuberay_puts_it():
    config = yaml.safe_load(find_resource("ConfigMap", "slora-service")["data"]["service.yaml"])
    loaded = parse_config({**config, "stores": ["s3://bucket/store"]}).clusters["default"]
    (pod,) = iterate_pods(find_resource("Deployment", "slora-service"))
    (container,) = pod["containers"]
    mounts = {volume["name"]: volume["mountPath"] for volume in container["volumeMounts"]}
    secrets = {
        volume["name"]: volume["secret"]["secretName"]
        for volume in pod["volumes"]
        if "secret" in volume
    }
    cluster = find_resource("RayCluster", "slora")["metadata"]["name"]
    # KubeRay names the Secret of the token, and the service of the head, after the cluster.
    assert secrets["ray"] == cluster
    assert loaded.token_file == f"{mounts['ray']}/auth_token"
    assert loaded.address == f"http://{cluster}-head-svc:8265"


def list_secrets(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [volume for volume in pod["volumes"] if "secret" in volume]


def test_the_job_has_a_valid_spec():
    spec = yaml.safe_load(find_resource("ConfigMap", "slora-chat-spec")["data"]["spec.yaml"])
    loaded = RunSpec.model_validate(spec)
    workers = find_resource("RayJob", "slora-chat")["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    (container,) = workers["template"]["spec"]["containers"]
    assert loaded.cluster.workers == workers["replicas"]
    assert loaded.cluster.gpus_per_worker == int(container["resources"]["limits"]["nvidia.com/gpu"])


def test_the_probes_use_the_services_health_routes():
    (pod,) = iterate_pods(find_resource("Deployment", "slora-service"))
    (container,) = pod["containers"]
    port = container["ports"][0]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert f"--port={port['containerPort']}" in container["args"]
