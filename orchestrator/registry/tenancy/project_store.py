"""The store of a project: a folder of a configured store, or its root for `default`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jobs.spec.limits import NAME_PATTERN
from jobs.store.adapters.manifest import MAX_NAME_LENGTH
from jobs.store.base import ObjectStore
from orchestrator.registry.values import DEFAULT_PROJECT

PROJECTS_PREFIX = "projects/"


def get_project_store(store: str, project: str) -> str:
    """Return the URL of a project's part of a store."""
    return store if project == DEFAULT_PROJECT else f"{store}/{PROJECTS_PREFIX}{project}"


def list_stored_projects(store: ObjectStore) -> list[str]:
    """List the projects with objects below `projects/` of a store, by the names of the folders."""
    names = {key.split("/")[1] for key in store.list(PROJECTS_PREFIX) if key.count("/") > 1}
    return sorted(name for name in names if _is_project(name))


def _is_project(name: str) -> bool:
    is_name = len(name) <= MAX_NAME_LENGTH and re.fullmatch(NAME_PATTERN, name) is not None
    return is_name and name != DEFAULT_PROJECT


def match_project_store(url: str, stores: Iterable[str], project: str) -> str | None:
    """Return the store that a submission means: a configured one, or the project's part of it."""
    return next((store for store in stores if url in (store, get_project_store(store, project))),
                None)  # fmt: skip
