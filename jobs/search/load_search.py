"""A search's door: the YAML of a spec with a `search:` section, or all of its faults at once."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.errors import Fault, InputError
from jobs.federation.load_federation import (
    FEDERATION,
    FederatedSpec,
    is_federated,
    validate_federated,
)
from jobs.plan.preflight import make_paths_absolute
from jobs.spec.load import (
    dump_mapping,
    list_keys,
    read_raw_spec,
    set_key,
    suggest_key,
    validate_spec,
)
from jobs.spec.metrics import METRICS, list_metrics
from jobs.spec.schema import RunSpec
from jobs.spec.sections.federation import FederationSection
from jobs.spec.sections.search import Domain, SearchSection

FIXED_KEYS = ("name", "store", "model.task", "data.format", "data.eval", "data.eval_fraction")
"""Keys that all trials of a search share: what they are, and what they are judged by."""
MAX_TRIALS = 10_000
WORKERS_KEY = "cluster.workers"
ELASTIC_FAULT = (
    "a trial has a fixed number of workers",
    "Give one number: a search has many trials to fill a cluster with.",
)
LIVE_KEYS = (
    "train.learning_rate",
    "train.sparse_learning_rate",
    "train.weight_decay",
    "train.max_grad_norm",
)
"""Keys that a state which was trained under one value may go on with under another: pbt's."""


@dataclass(frozen=True)
class SearchSpec:
    """What a user asked for: the spec of every trial before its own values, and the search."""

    raw: Mapping[str, Any]
    spec: RunSpec
    """The default trial."""
    section: SearchSection
    federation: FederationSection | None = None
    """Where every trial is one of many clients."""

    def make_trial_spec(self, config: Mapping[str, Any], **more: Any) -> RunSpec:
        """A trial's spec. Raises InputError, also where two values exclude each other."""
        federated = self.make_federated_trial({**config, **more})
        return (
            federated.spec if federated else validate_spec(self._merge_config({**config, **more}))
        )

    def make_federated_trial(self, config: Mapping[str, Any]) -> FederatedSpec | None:
        """A trial's spec and federation; None where it is a training of one. Raises InputError."""
        return validate_federated(self._merge_config(config)) if self.federation else None

    def _merge_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        raw = copy.deepcopy(dict(self.raw))
        for key, value in config.items():
            set_key(raw, key.split("."), list(value) if isinstance(value, tuple) else value)
        return raw

    def to_yaml(self) -> str:
        """The whole search as YAML, defaults written out: what it records, and is resumed by."""
        section = self.section.model_dump(mode="json", exclude_none=True)
        federated = FederatedSpec(self.spec, self.federation) if self.federation else None
        values = federated.to_values() if federated else self.spec.model_dump(mode="json")
        return dump_mapping({**values, "search": section})


def load_search(path: Path, overrides: Sequence[str] = ()) -> SearchSpec:
    """Read and check a search. Raises InputError with every fault of its spec and its section."""
    search = validate_search(read_raw_spec(path, overrides))
    # With whole paths: Ray runs its job in another directory than its user's.
    spec = make_paths_absolute(search.spec)
    if search.federation is None:
        return SearchSpec(spec.model_dump(mode="json"), spec, search.section)
    raw = FederatedSpec(spec, search.federation).to_values()
    return SearchSpec(raw, spec, search.section, search.federation)


def validate_search(raw: Mapping[str, Any]) -> SearchSpec:
    """A Search of plain values. Raises InputError."""
    rest = {key: value for key, value in raw.items() if key != "search"}
    faults = list[Fault]()
    spec = section = federation = None
    try:
        if is_federated(rest):
            federated = validate_federated(rest)
            spec, federation = federated.spec, federated.section
        else:
            spec = validate_spec(rest)
    except InputError as error:
        faults += error.faults
    if not isinstance(raw.get("search"), dict):
        remedy = "As in jobs/examples/search.yaml."
        faults.append(Fault("search", "missing: what is searched, and how", remedy))
    else:
        section, extra_faults = _parse_section(_flatten_space(raw["search"]))
        faults += extra_faults
    if section is not None:
        faults += _check_domains(section)
    if spec is not None and section is not None:
        search = SearchSpec(rest, spec, section, federation)
        faults += [*_check_space(search), *_check_combinations(search)]
        if not faults:
            return search
    # One a key, the first: what is wrong with a domain is no news again as a value of the spec.
    raise InputError(list({fault.key: fault for fault in reversed(faults)}.values())[::-1])


def _flatten_space(raw: dict[str, Any]) -> dict[str, Any]:
    """The section with whole keys in its space: `--set` and some hands write them nested."""
    space = raw.get("space")
    sections = {key.rpartition(".")[0] for key in list_keys()} - {WORKERS_KEY}

    def walk_keys(inner: dict[Any, Any], prefix: str) -> Iterator[tuple[Any, Any]]:
        for name, value in inner.items():
            key = f"{prefix}{name}" if isinstance(name, str) else name
            nested = isinstance(value, dict) and value and not {*value} & {*Domain.model_fields}
            if nested and key in sections:
                yield from walk_keys(value, f"{key}.")
            else:
                yield key, value

    return {**raw, "space": dict(walk_keys(space, ""))} if isinstance(space, dict) else raw


def _parse_section(raw: Mapping[str, Any]) -> tuple[SearchSection | None, list[Fault]]:
    try:
        return SearchSection.model_validate(raw), []
    except ValidationError as failure:
        by_key: dict[str, list[str]] = {}
        for error in failure.errors(include_url=False):
            key = ".".join(["search", *(str(part) for part in error["loc"])])
            by_key.setdefault(key, []).append(_translate_message(key, error["type"], error["msg"]))
        return None, [
            Fault(key, messages[0], "See docs/search.md.") for key, messages in by_key.items()
        ]


def _translate_message(key: str, kind: str, message: str) -> str:
    if kind == "too_short" and key == "search.space":
        return "empty: there is nothing to search over"
    if kind in ("missing", "too_long") and key.startswith("search.space."):
        return "two numbers are needed, a lower and an upper"
    if kind == "too_short":
        return "no values are listed"
    if kind == "model_type" and key.startswith("search.space."):
        return "not a domain, as {choice: [2, 4]} is one"
    if kind == "extra_forbidden":
        known = [*Domain.model_fields, *SearchSection.model_fields]
        close = difflib.get_close_matches(key.rpartition(".")[2], known, n=1, cutoff=0.5)
        return f"unknown key{f', did you mean {close[0]}?' if close else ''}"
    return message[:1].lower() + message[1:]


def _check_domains(section: SearchSection) -> Iterator[Fault]:
    """Of the section alone: domains that are none, and what excludes each other."""
    for key, domain in section.space.items():
        path = f"search.space.{key}"
        kinds = [name for name in Domain.model_fields if getattr(domain, name) is not None]
        if len(kinds) != 1:
            listing = " and ".join(kinds) or "nothing"
            yield Fault(
                path, f"{listing} is given", f"Give one of {', '.join(Domain.model_fields)}."
            )
            continue
        yield from _check_range(path, domain)
        yield from _check_listed(path, domain)
        if section.algorithm == "grid" and domain.finite is None:
            yield Fault(path, f"{domain.kind} has no end", "List its values, or don't use grid.")
        if section.algorithm == "tpe" and domain.grid is not None:
            yield Fault(path, "tpe does not cross grids", "Use choice.")
    yield from _check_grid(section)
    if section.also_minimise and section.algorithm != "tpe":
        problem = f"{section.algorithm} weighs one objective"
        yield Fault(
            "search.also_minimise", problem, "Use algorithm: tpe; the front is shown anyway."
        )


def _check_grid(section: SearchSection) -> Iterator[Fault]:
    is_exhaustive = section.algorithm == "grid" and section.samples is None
    trials = math.prod(len(domain.finite or ()) for domain in section.space.values())
    if is_exhaustive and trials > MAX_TRIALS:
        problem = f"the grid has {trials:,} trials"
        yield Fault("search.space", problem, "List fewer values, or set samples.")


def _check_listed(path: str, domain: Domain) -> Iterator[Fault]:
    listed = domain.choice or domain.grid or ()
    duplicates = [value for index, value in enumerate(listed) if value in listed[:index]]
    if duplicates:
        yield Fault(path, f"{duplicates[0]!r} is listed twice", "A trial is never run twice.")


def _check_range(path: str, domain: Domain) -> Iterator[Fault]:
    if domain.choice is not None or domain.grid is not None:
        return
    low, high = domain.randint or domain.bounds
    if low >= high:
        yield Fault(path, f"{low} is not below {high}", "Write the lower one first.")
    if domain.kind == "loguniform" and low <= 0:
        yield Fault(path, f"{low} has no logarithm", "Start above 0, or use uniform.")


def _check_space(search: SearchSpec) -> Iterator[Fault]:
    """Of the keys and their values, each tried in the spec."""
    known = _list_searchable_keys(search)
    for key, domain in search.section.space.items():
        path = f"search.space.{key}"
        if key not in known:
            suggestion = suggest_key(key)
            yield Fault(path, suggestion.problem, suggestion.remedy)
        elif key != WORKERS_KEY and any(name.startswith(f"{key}.") for name in known):
            yield Fault(path, "a section, not a key", f"Name a key of it, as {key}.… .")
        elif key.startswith(f"{WORKERS_KEY}.") or not _is_fixed(key, domain):
            yield Fault(path, *ELASTIC_FAULT)
        elif key in FIXED_KEYS:
            yield Fault(path, "the same for all trials", "Search over another key.")
        elif _has_single_kind(domain):
            yield from _check_values(search, key, path, domain)


def _list_searchable_keys(search: SearchSpec) -> list[str]:
    """What may vary: keys of the spec, and of a federation its own."""
    if search.federation is None:
        return list_keys()
    return [*list_keys(), *(f"{FEDERATION}.{name}" for name in FederationSection.model_fields)]


def _is_fixed(key: str, domain: Domain) -> bool:
    listed = domain.choice or domain.grid or ()
    return key != WORKERS_KEY or not any(isinstance(value, dict) for value in listed)


def _has_single_kind(domain: Domain) -> bool:
    return sum(getattr(domain, name) is not None for name in Domain.model_fields) == 1


def _check_values(search: SearchSpec, key: str, path: str, domain: Domain) -> Iterator[Fault]:
    for value in domain.list_ends():
        try:
            search.make_trial_spec({key: value})
        except InputError as error:
            # Keys that exclude each other are told by the plan of the trial that has both.
            own = [fault for fault in error.faults if fault.key.startswith(key)]
            for fault in own[:1]:
                yield Fault(path, fault.problem, fault.remedy)


def _check_combinations(search: SearchSpec) -> Iterator[Fault]:
    spec, section = search.spec, search.section
    names = list_metrics(spec.model.task)
    if section.metric not in names:
        problem = f"{spec.model.task} does not report {section.metric}"
        yield Fault("search.metric", problem, f"Use {' or '.join(names)}.")
    if spec.data.eval is None and spec.data.eval_fraction is None:
        problem = "nothing is held out to judge the trials by"
        yield Fault("data.eval", problem, "Name data.eval, or data.eval_fraction: 0.05.")
    if section.scheduler != "none" and spec.train.eval_every is None:
        problem = f"{section.scheduler} judges trials on the way, and they are measured at the end"
        yield Fault("train.eval_every", problem, "Set it, or use scheduler: none.")
    if section.direction != METRICS[section.metric][1]:
        problem = f"{section.direction} of {section.metric} is its worst"
        yield Fault("search.mode", problem, "Leave it out.")
    if section.scheduler == "hyperband" and spec.train.steps is None:
        problem = "hyperband divides train.steps among trials, and epochs are counted by them"
        yield Fault("train.steps", problem, "Set it, or use asha.")
    if search.federation is not None:
        yield from _check_federation(search)
    if section.scheduler == "pbt" and section.max_concurrent is not None:
        problem = "pbt keeps all its trials open, and trains as many as the cluster has room for"
        yield Fault("search.max_concurrent", problem, "Leave it out.")
    if section.scheduler == "pbt" and section.algorithm == "tpe":
        problem = "tpe learns from trials that ended, and pbt starts all at once"
        yield Fault("search.algorithm", problem, "Use random, or asha.")
    if section.scheduler == "pbt":
        for key in section.space:
            if key not in LIVE_KEYS:
                problem = "pbt hands a trained state to other values, and this one shapes it"
                remedy = f"Search over {', '.join(LIVE_KEYS)}, or use asha."
                yield Fault(f"search.space.{key}", problem, remedy)
    if section.budget.cost is not None and spec.cluster.machine.price_per_hour is None:
        remedy = "Set cluster.machine.price_per_hour."
        yield Fault("search.budget.cost", "no machine's price is known", remedy)
    if isinstance(spec.cluster.workers, int) is False:
        yield Fault(WORKERS_KEY, *ELASTIC_FAULT)


def _check_federation(search: SearchSpec) -> Iterator[Fault]:
    """A trial of many clients is one worker's, which plays all of them."""
    if search.spec.workers != 1 or WORKERS_KEY in search.section.space:
        problem = "a trial of a federation has one site, which plays all clients"
        yield Fault(WORKERS_KEY, problem, "Use 1: a search has many trials to fill a cluster with.")
    if search.section.scheduler in ("pbt", "hyperband"):
        problem = f"{search.section.scheduler} counts optimiser steps, and a federation rounds"
        yield Fault("search.scheduler", problem, "Use asha, or none.")
