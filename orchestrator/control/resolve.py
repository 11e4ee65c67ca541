"""What is asked of the service, checked: a spec of a kind, as the paper that its job will read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.files import HUB_ID
from jobs.spec.kinds import KINDS, Kind, count_tokens, count_workers, require_kind
from jobs.spec.load import dump_spec, validate_spec
from jobs.spec.schema import RunSpec
from orchestrator.cluster.entrypoint import is_safe_argument
from orchestrator.control.config import normalize_store_url

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class ResolvedRun:
    """One run to be, and everything of it that the service has to know."""

    kind: Kind
    name: str
    store: str
    """Whole, inside one of the service's stores."""
    spec_text: str
    """The spec that its job reads."""
    workers: int
    tokens: int | None
    """The most that it can train; None where only the rows tell."""
    data: str
    """Where its training rows lie."""
    spec: RunSpec

    @property
    def digest(self) -> str:
        """Of the paper."""
        return sha256(self.spec_text.encode()).hexdigest()


def resolve_run(kind: Kind, values: Mapping[str, Any], stores: Sequence[str]) -> ResolvedRun:
    """The run that a spec of plain values asks for. Raises InputError with all its faults."""
    if kind not in KINDS:
        raise InputError([Fault("kind", f"{kind} is unknown", f"Use {' or '.join(KINDS)}.")])
    spec = validate_spec({**values, "store": _resolve_store(values, stores)})
    require_kind(spec, KINDS[kind].spec_class)
    if faults := _check_paths(spec):
        raise InputError(faults)
    return ResolvedRun(
        kind=kind,
        name=spec.name,
        store=spec.store,
        spec_text=dump_spec(spec),
        workers=count_workers(spec),
        tokens=count_tokens(spec),
        data=spec.data.train,
        spec=spec,
    )


def _resolve_store(raw: Mapping[str, Any], stores: Sequence[str]) -> str:
    """The store that the spec names, whole; the service's first where it names none."""
    requested = raw.get("store")
    if requested is None:
        return stores[0]
    if not isinstance(requested, str):
        raise InputError([Fault("store", "not a text", f"Use {stores[0]} or below it.")])
    normalized = normalize_store_url(requested)
    if not any(
        f"{normalized}/".startswith(f"{allowed}/") for allowed in stores
    ) or not is_safe_argument(normalized):
        problem = f"{requested[:100]!a} is none of this service's stores"
        raise InputError([Fault("store", problem, f"Use {', '.join(stores)} or below them.")])
    return normalized


def _check_paths(spec: RunSpec) -> list[Fault]:
    """Paths that no machine has, or that would mean another place on every one."""
    paths = {
        "model.path": spec.model.path,
        "data.train": spec.data.train,
        "data.eval": spec.data.eval,
    }
    unprintable = [
        Fault(key, f"{path[:100]!a} holds what can't be printed", "Take it out of the path.")
        for key, path in paths.items()
        if path and not path.isprintable()
    ]
    return unprintable + [
        Fault(key, f"{path[:100]!a} is relative to nothing here", "Name the whole path.")
        for key, path in paths.items()
        if path and not (path.startswith("/") or _URL.match(path) or HUB_ID.fullmatch(path))
    ]
