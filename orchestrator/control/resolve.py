"""Resolve a submission: validate its spec once, and derive what the service needs to know."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.file_selection import HUB_ID
from jobs.spec.kinds import KINDS, count_tokens, count_workers, require_kind
from jobs.spec.load import dump_spec, validate_spec
from jobs.spec.schema import RunSpec
from jobs.store.adapters.manifest import Name
from orchestrator.cluster.entrypoint import is_safe_argument
from orchestrator.control.config import normalize_store_url
from orchestrator.registry.run_request import RunRequest, digest_spec
from orchestrator.registry.values import DEFAULT_PROJECT
from orchestrator.schemas.runs import SubmitRunRequest

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class SubmitRequest(SubmitRunRequest):
    """A run to submit, with its project resolved."""

    project: Name = DEFAULT_PROJECT


def resolve_run(
    submission: SubmitRequest, stores: Sequence[str], clusters: Sequence[str]
) -> RunRequest:
    """Validate a submission and return its request. Raise InputError with all faults."""
    if submission.cluster not in clusters:
        problem = f"there is no cluster {submission.cluster!a}"
        raise InputError([Fault("cluster", problem, f"Use {', '.join(sorted(clusters))}.")])
    spec = validate_spec({**submission.spec, "store": _resolve_store(submission.spec, stores)})
    require_kind(spec, KINDS[submission.kind].spec_class)
    if faults := _check_paths(spec):
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
        tokens=count_tokens(spec),
        data=spec.data.train,
        spec_text=spec_text,
        spec_sha256=digest_spec(spec_text),
    )


def _resolve_store(values: Mapping[str, Any], stores: Sequence[str]) -> str:
    """Return the URL of the spec's store, or the service's first store if it names none."""
    requested = values.get("store")
    if requested is None:
        return stores[0]
    if not isinstance(requested, str):
        raise InputError([Fault("store", "not a string", f"Use {stores[0]} or a folder below it.")])
    url = normalize_store_url(requested)
    is_inside = any(f"{url}/".startswith(f"{allowed}/") for allowed in stores)
    if not is_inside or not is_safe_argument(url):
        problem = f"{requested[:100]!a} is not one of this service's stores"
        raise InputError([Fault("store", problem, f"Use {', '.join(stores)} or a folder below.")])
    return url


def _check_paths(spec: RunSpec) -> list[Fault]:
    """Return a fault for each path that is relative, or that cannot be printed."""
    paths = {
        "model.path": spec.model.path,
        "data.train": spec.data.train,
        "data.eval": spec.data.eval,
    }
    unprintable = [
        Fault(key, f"{path[:100]!a} contains unprintable characters", "Rename the path.")
        for key, path in paths.items()
        if path and not path.isprintable()
    ]
    return unprintable + [
        Fault(key, f"{path[:100]!a} is a relative path", "Use the absolute path.")
        for key, path in paths.items()
        if path and not (path.startswith("/") or _URL.match(path) or HUB_ID.fullmatch(path))
    ]
