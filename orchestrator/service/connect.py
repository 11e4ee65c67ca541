"""Clusters as the configuration names them."""

from __future__ import annotations

from orchestrator.cluster.code import code_of
from orchestrator.cluster.door import Cluster
from orchestrator.cluster.ray_jobs import RayCluster
from orchestrator.service.config import ClusterConfig, ServiceConfig, token_of


def from_config(config: ServiceConfig) -> dict[str, Cluster]:
    """Every cluster by its name; none is asked anything yet. Raises InputError."""
    return {name: connected(name, about) for name, about in config.clusters.items()}


def connected(name: str, about: ClusterConfig) -> RayCluster:
    """One of them. Raises InputError where its code can't be packed."""
    return RayCluster(
        name,
        about.address,
        token=token_of(about),
        code=code_of(about.code),
        python=about.python,
    )
