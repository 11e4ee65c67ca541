"""Make the places of a project's runs: those that are set for it, and its own store."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.places.places import Places
from orchestrator.registry.tenancy.project_store import PROJECTS_PREFIX
from orchestrator.registry.values import DEFAULT_PROJECT, Project


def make_places(project: Project, store: str, stores: Sequence[str]) -> Places | None:
    """Return the places of a project whose runs use `store`; None if nothing is restricted.

    `stores` are the service's: below them a project reads its own part only.
    """
    if project.name != DEFAULT_PROJECT:
        return _make(project, store, stores)
    if project.places is None and project.models is None:
        return None
    return _make(project, store, [f"{root}/{PROJECTS_PREFIX}".rstrip("/") for root in stores])


def _make(project: Project, store: str, closed: Sequence[str]) -> Places:
    return Places(data=project.places, models=project.models, store=store, closed=tuple(closed))
