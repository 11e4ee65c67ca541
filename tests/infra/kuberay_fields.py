"""What KubeRay's `ray.io/v1` resources may hold, as JSON Schema, strict about unknown fields.

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


def closed(needed: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(needed),
        "additionalProperties": False,
    }


def one_of(*words: str) -> dict[str, Any]:
    return {"enum": list(words)}


HEAD = closed(
    ("rayStartParams", "template"),
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    headService=KUBERNETES,
    enableIngress=FLAG,
    rayStartParams=TEXTS,
    template=KUBERNETES,
)
WORKERS = closed(
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
    scaleStrategy=closed(workersToDelete={"type": "array", "items": TEXT}),
)
AUTOSCALER = closed(
    version=one_of("v1", "v2"),
    resources=KUBERNETES,
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    env={"type": "array", "items": KUBERNETES},
    envFrom={"type": "array", "items": KUBERNETES},
    volumeMounts={"type": "array", "items": KUBERNETES},
    securityContext=KUBERNETES,
    idleTimeoutSeconds=COUNT,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
)
CLUSTER_SPEC = closed(
    ("headGroupSpec",),
    authOptions=closed(mode=one_of("disabled", "token")),
    autoscalerOptions=AUTOSCALER,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=KUBERNETES,
    headGroupSpec=HEAD,
    headServiceAnnotations=TEXTS,
    managedBy=TEXT,
    rayVersion=TEXT,
    suspend=FLAG,
    upgradeStrategy=closed(type=one_of("Recreate", "None")),
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
JOB_SPEC = closed(
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
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterConfig=closed(backoffLimit=COUNT),
    submitterPodTemplate=KUBERNETES,
    suspend=FLAG,
    ttlSecondsAfterFinished=COUNT,
)


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=KUBERNETES,
        spec=spec,
    )


SCHEMAS = {
    "RayCluster": resource("RayCluster", CLUSTER_SPEC),
    "RayJob": resource("RayJob", JOB_SPEC),
}
