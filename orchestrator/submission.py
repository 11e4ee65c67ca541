"""From a spec's file to what is sent to the service: read, checked, its paths made whole."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.data.files import HUB_ID
from jobs.errors import Fault, InputError
from jobs.federate.check import check_federated
from jobs.federate.door import FEDERATION, Federated, is_federated, validate_federated
from jobs.preflight import absolute, check
from jobs.retrain.door import is_retrain, validate_retrain
from jobs.search.door import validate_search
from jobs.spec import Frozen, Spec
from jobs.spec_file import read_raw, validate_spec
from jobs.stopping import stop_faults


@dataclass(frozen=True)
class Sent:
    """What is sent, and what could not be checked here."""

    kind: str
    name: str
    spec: Mapping[str, Any]
    """What its file and --set say, and no defaults: those are the service's."""
    absent: tuple[str, ...]
    """Keys whose paths are not on this machine."""


def read_submission(path: Path, overrides: Sequence[str] = ()) -> Sent:
    """Raises InputError with every fault that can be seen from here."""
    raw = read_raw(path, overrides)
    kind = _kind(raw)
    plain, sections = _read(kind, raw)
    whole = absolute(plain)
    absent = _absent(whole)
    if absent and not _lost(plain, absent):
        # The model or the rows are elsewhere: what they would tell is told by the job.
        if faults := list(stop_faults(whole)):
            raise InputError(faults)
    elif is_federated(raw):
        check_federated(_federated(raw, whole), quick=True, store=False)
    else:
        check(whole, quick=True, store=False)
    return Sent(kind, whole.name, {**_named(whole, raw), **sections}, absent)


def _kind(raw: Mapping[str, Any]) -> str:
    if is_retrain(raw) and not is_federated(raw):
        if raw.get("search") is not None:
            raise InputError([Fault("search", "stands beside retrain", "Keep one of the two.")])
        return "retrain"
    if raw.get("search") is not None:
        return "search"
    # Its own door refuses a retrain section beside it.
    return "federate" if is_federated(raw) else "finetune"


def _read(kind: str, raw: Mapping[str, Any]) -> tuple[Spec, dict[str, Any]]:
    """The spec of a training, and the sections that are not of it."""
    if kind == "finetune":
        return validate_spec(raw), {}
    if kind == "federate":
        federated = validate_federated(raw)
        return federated.spec, _section(FEDERATION, federated.section)
    if kind == "retrain":
        again = validate_retrain(raw)
        return again.spec, _section(kind, again.section)
    found = validate_search(raw)
    clients = _section(FEDERATION, found.federation) if found.federation else {}
    return found.spec, {**_section(kind, found.section), **clients}


def _federated(raw: Mapping[str, Any], whole: Spec) -> Federated:
    """The federation, or that of a search's trials, with whole paths."""
    plain = {key: value for key, value in raw.items() if key != "search"}
    return Federated(whole, validate_federated(plain).section)


def _section(key: str, section: Frozen) -> dict[str, Any]:
    return {key: section.model_dump(mode="json", exclude_unset=True)}


def _named(spec: Spec, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What was written, with whole paths. A store that nobody named is the service's to choose."""
    given = spec.model_dump(mode="json", exclude_unset=True)
    if is_federated(raw):
        # Put in by its door, which refuses it from others: the service's own puts it in again.
        del given["train"]["steps"]
    return {key: value for key, value in given.items() if key in raw}


def _absent(spec: Spec) -> tuple[str, ...]:
    """Keys whose files are not here. Hub ids and URLs are looked up where the job runs."""
    return tuple(key for key, path in _paths(spec).items() if not _here(path))


def _lost(spec: Spec, absent: Sequence[str]) -> bool:
    """Whether one of them is relative as it was written: it is nowhere else either."""
    written = _paths(spec)
    return any(
        not (written[key].startswith(("/", "~")) or "://" in written[key])
        and not HUB_ID.fullmatch(written[key])
        for key in absent
    )


def _paths(spec: Spec) -> dict[str, str]:
    eval_rows = {} if spec.data.eval is None else {"data.eval": spec.data.eval}
    return {"model.path": spec.model.path, "data.train": spec.data.train, **eval_rows}


def _here(path: str) -> bool:
    plain = path.removeprefix("file://")
    return "://" not in plain and (os.path.exists(plain) or bool(glob.glob(plain, recursive=True)))
