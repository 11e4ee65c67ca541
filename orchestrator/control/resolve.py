"""Resolve a submission: validate its spec once, and derive what the service needs to know."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.file_selection import HUB_ID
from jobs.places.places import Places
from jobs.spec.address_keys import list_addresses
from jobs.spec.address_types import AddressKind
from jobs.spec.kinds import KINDS, count_cpus, count_gpus, count_tokens, count_workers, require_kind
from jobs.spec.load import dump_spec, validate_spec
from jobs.spec.schema import RunSpec
from jobs.spec.strategies import find_refused_strategies
from jobs.store.adapters.manifest import Name
from orchestrator.control.config import normalize_store_url
from orchestrator.registry.run_request import RunRequest, digest_spec
from orchestrator.registry.tenancy.project_store import get_project_store, match_project_store
from orchestrator.registry.values import DEFAULT_PROJECT
from orchestrator.schemas.runs import SubmitRunRequest

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class SubmitRequest(SubmitRunRequest):
    """A run to submit, with its project resolved."""

    project: Name = DEFAULT_PROJECT


def resolve_run(
    submission: SubmitRequest,
    stores: Sequence[str],
    clusters: Sequence[str],
    *,
    find_places: Callable[[str], Places | None] = lambda store: None,
    masks: Collection[str] = (),
) -> RunRequest:
    """Validate a submission and return its request. Raise InputError with all faults.

    `find_places` returns what the project's runs may read if they use this store; `masks` are the
    installed strategies that the operator allows.
    """
    if submission.cluster not in clusters:
        problem = f"there is no cluster {submission.cluster!a}"
        raise InputError([Fault("cluster", problem, f"Use {', '.join(sorted(clusters))}.")])
    store = _resolve_store(submission.spec, stores, submission.project)
    spec = validate_spec({**submission.spec, "store": store})
    require_kind(spec, KINDS[submission.kind].spec_class)
    if faults := [
        *_check_addresses(spec, find_places(store)),
        *find_refused_strategies(spec, masks),
    ]:
        raise InputError(faults)
    spec_text = dump_spec(spec)
    return RunRequest(
        kind=submission.kind,
        name=spec.name,
        store=spec.store,
        project=submission.project,
        cluster=submission.cluster,
        priority=submission.priority,
        workers=count_workers(spec),
        cpus=count_cpus(spec),
        gpus=count_gpus(spec),
        tokens=count_tokens(spec),
        data=spec.data.train,
        spec_text=spec_text,
        spec_sha256=digest_spec(spec_text),
    )


def _resolve_store(values: Mapping[str, Any], stores: Sequence[str], project: str) -> str:
    """Return the URL of the project's part of the store that a spec names, or of the first one."""
    requested = values.get("store")
    if requested is None:
        return get_project_store(stores[0], project)
    if not isinstance(requested, str):
        raise InputError([Fault("store", "not a string", f"Omit it, or use {stores[0]}.")])
    store = match_project_store(normalize_store_url(requested), stores, project)
    if store is None:
        problem = f"{requested[:100]!a} is not one of this service's stores"
        remedy = f"Omit it, or use {', '.join(stores)}: the service adds the project's folder."
        raise InputError([Fault("store", problem, remedy)])
    return get_project_store(store, project)


def _check_addresses(spec: RunSpec, places: Places | None) -> Iterator[Fault]:
    """Yield a fault for each address that cannot be printed, is relative, or is outside."""
    for item in list_addresses(spec):
        if item.kind is AddressKind.STORE:
            continue
        if not item.text.isprintable():
            problem = f"{item.text[:100]!a} contains unprintable characters"
            yield Fault(item.key, problem, "Rename the path.")
        elif not _is_absolute(item.text):
            problem = f"{item.text[:100]!a} is a relative path"
            yield Fault(item.key, problem, "Use the absolute path.")
        elif places and (fault := places.find_fault(item.key, item.text, item.kind)):
            yield fault


def _is_absolute(address: str) -> bool:
    path = address.removeprefix("file://")
    if path != address:
        # Behind file:// a host would come first, which every reader takes for a folder.
        return path.startswith("/")
    return bool(path.startswith("/") or _URL.match(path) or HUB_ID.fullmatch(path))
