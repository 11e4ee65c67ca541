"""Connect to the configured clusters."""

from __future__ import annotations

from orchestrator.cluster.base import Cluster
from orchestrator.cluster.code_package import make_code_package
from orchestrator.cluster.ray_jobs import RayCluster
from orchestrator.control.config import ClusterConfig, ServiceConfig, get_token_path


def connect_clusters(config: ServiceConfig) -> dict[str, Cluster]:
    """Make a client for each cluster by name, without a request. Raise InputError."""
    return {
        name: connect_cluster(name, cluster_config)
        for name, cluster_config in config.clusters.items()
    }


def connect_cluster(name: str, cluster_config: ClusterConfig) -> RayCluster:
    """Make the client of a cluster. Raise InputError if its code cannot be packed."""
    return RayCluster(
        name,
        cluster_config.address,
        token=get_token_path(cluster_config),
        package=make_code_package(cluster_config.code),
        python=cluster_config.python,
    )
