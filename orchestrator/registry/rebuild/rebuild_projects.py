"""Rebuild the registry from a store: its root is that of `default`, `projects/*` the others'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from jobs.errors import Fault, InputError
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.registry.database import Database
from orchestrator.registry.rebuild.identity import Identity
from orchestrator.registry.rebuild.rebuild import (
    ProgressCallback,
    RebuildResult,
    RebuildTally,
    rebuild,
)
from orchestrator.registry.tenancy.project_store import PROJECTS_PREFIX, list_stored_projects
from orchestrator.registry.values import DEFAULT_PROJECT


def rebuild_projects(
    database: Database,
    store: ObjectStore,
    *,
    root_project: str = DEFAULT_PROJECT,
    instance: str | None = None,
    store_opener: Callable[[str], ObjectStore] = open_store,
    on_total: ProgressCallback = lambda _: None,
    on_progress: ProgressCallback = lambda _: None,
) -> RebuildResult:
    """Restore what the store holds: the folder that something lies in tells its project.

    `instance` is the id that the registry takes over, as for `rebuild`.

    Raise InputError for a part of a store, which would be given to another project, LeaseHeld while
    another rebuild runs, and LeaseLost if it was overtaken.
    """
    root, separator, project = store.url("").rpartition(f"/{PROJECTS_PREFIX}")
    if separator and "/" not in project:
        problem = f"{store.url('')} is the part of a store that belongs to {project}"
        raise InputError([Fault("--store", problem, f"Use the whole store: {root}.")])
    rebuild_part = partial(
        rebuild, database, instance=instance, on_total=on_total, on_progress=on_progress
    )
    total = rebuild_part(store, project=root_project)
    for project in list_stored_projects(store):
        part = store_opener(store.url(f"{PROJECTS_PREFIX}{project}"))
        result = rebuild_part(part, project=project)
        total = _add_results(total, result, f"{PROJECTS_PREFIX}{project}/")
    return total


def _add_results(total: RebuildResult, part: RebuildResult, prefix: str) -> RebuildResult:
    return RebuildResult(
        runs=_add_tallies(total.runs, part.runs),
        adapters=_add_tallies(total.adapters, part.adapters),
        searches=_add_tallies(total.searches, part.searches),
        events=total.events + part.events,
        removed=[*total.removed, *(f"{prefix}{label}" for label in part.removed)],
        faults=[*total.faults, *(_prefix_fault(fault, prefix) for fault in part.faults)],
        identity=_add_identities(total.identity, part.identity),
    )


def _add_identities(first: Identity, second: Identity) -> Identity:
    others = Counter(first.others) + Counter(second.others)
    del others[second.instance]
    return Identity(second.instance, first.previous, others)


def _add_tallies(total: RebuildTally, part: RebuildTally) -> RebuildTally:
    return RebuildTally(total.total + part.total, total.changed + part.changed)


def _prefix_fault(fault: Fault, prefix: str) -> Fault:
    return replace(fault, key=f"{prefix}{fault.key}")
