"""Connect to the configured clusters."""

from __future__ import annotations

from orchestrator.cluster.base import Cluster
from orchestrator.cluster.code_package import make_code_package
from orchestrator.cluster.ray_jobs import RayCluster
from orchestrator.control.config import ServiceConfig


def connect_clusters(config: ServiceConfig) -> dict[str, Cluster]:
    """Make a client for each cluster by name, without a request.

    Raise InputError if its code cannot be packed.
    """
    return {
        name: RayCluster(
            name,
            cluster_config.address,
            token=cluster_config.token_path,
            package=make_code_package(cluster_config.code),
            python=cluster_config.python,
        )
        for name, cluster_config in config.clusters.items()
    }
