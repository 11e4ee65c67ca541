"""JSON Schema of KubeRay's `ray.io/v1` resources, strict about unknown fields.

Written from the field lists of KubeRay's API (ray-project/kuberay, ray-operator/apis/ray/v1,
Apache-2.0), as of the release with `authOptions` (1.5.1). What is Kubernetes' own in it (pod
templates, resources, security contexts) is checked against Kubernetes' own schemas, beside it.
"""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
FLAG: dict[str, Any] = {"type": "boolean"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
SHARE: dict[str, Any] = {"type": "number", "minimum": 0}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}
KUBERNETES: dict[str, Any] = {"type": "object"}
"""Checked elsewhere."""


def make_object(needed: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(needed),
        "additionalProperties": False,
    }


def make_enum(*words: str) -> dict[str, Any]:
    return {"enum": list(words)}


HEAD = make_object(
    ("rayStartParams", "template"),
    serviceType=make_enum("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    headService=KUBERNETES,
    enableIngress=FLAG,
    rayStartParams=TEXTS,
    template=KUBERNETES,
)
WORKERS = make_object(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    suspend=FLAG,
    rayStartParams=TEXTS,
    template=KUBERNETES,
    scaleStrategy=make_object(workersToDelete={"type": "array", "items": TEXT}),
)
AUTOSCALER = make_object(
    version=make_enum("v1", "v2"),
    resources=KUBERNETES,
    image=TEXT,
    imagePullPolicy=make_enum("Always", "IfNotPresent", "Never"),
    env={"type": "array", "items": KUBERNETES},
    envFrom={"type": "array", "items": KUBERNETES},
    volumeMounts={"type": "array", "items": KUBERNETES},
    securityContext=KUBERNETES,
    idleTimeoutSeconds=COUNT,
    upscalingMode=make_enum("Default", "Aggressive", "Conservative"),
)
CLUSTER_SPEC = make_object(
    ("headGroupSpec",),
    authOptions=make_object(mode=make_enum("disabled", "token")),
    autoscalerOptions=AUTOSCALER,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=KUBERNETES,
    headGroupSpec=HEAD,
    headServiceAnnotations=TEXTS,
    managedBy=TEXT,
    rayVersion=TEXT,
    suspend=FLAG,
    upgradeStrategy=make_object(type=make_enum("Recreate", "None")),
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
JOB_SPEC = make_object(
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT,
    clusterSelector=TEXTS,
    deletionStrategy=KUBERNETES,
    entrypoint=TEXT,
    entrypointNumCpus=SHARE,
    entrypointNumGpus=SHARE,
    entrypointResources=TEXT,
    jobId=TEXT,
    managedBy=TEXT,
    metadata=TEXTS,
    rayClusterSpec=CLUSTER_SPEC,
    runtimeEnvYAML=TEXT,
    shutdownAfterJobFinishes=FLAG,
    submissionMode=make_enum("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterConfig=make_object(backoffLimit=COUNT),
    submitterPodTemplate=KUBERNETES,
    suspend=FLAG,
    ttlSecondsAfterFinished=COUNT,
)


def make_resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return make_object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=KUBERNETES,
        spec=spec,
    )


SCHEMAS = {
    "RayCluster": make_resource("RayCluster", CLUSTER_SPEC),
    "RayJob": make_resource("RayJob", JOB_SPEC),
}
