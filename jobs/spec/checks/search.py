"""Checks of a search: its domains, their values as values of the spec, and its options."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from jobs.errors import Fault, InputError
from jobs.spec.messages import list_keys, suggest_key
from jobs.spec.metrics import METRICS, check_metric
from jobs.spec.schema import SECTIONS, SearchSpec
from jobs.spec.sections.search import Domain, SearchSection
from jobs.spec.sections.training import AUTO_RATE
from jobs.spec.yaml_text import short_repr

FIXED_KEYS = ("name", "store", "model.task", "data.format", "data.columns", "data.labels",
              "data.eval", "data.eval_fraction")  # fmt: skip
"""Keys that all trials of a search share: their identity, and the rows that compare them."""
MAX_TRIALS = 10_000
MAX_LISTED_VALUES = 1000
"""Values of all choices and grids: each is validated as a value of the spec."""
WORKERS_KEY = "cluster.workers"
ELASTIC_FAULT = (
    "a trial has a fixed number of workers",
    "Use a single number: a search fills the cluster with trials.",
)
LIVE_KEYS = (
    "train.learning_rate",
    "train.sparse_learning_rate",
    "train.head_learning_rate",
    "train.weight_decay",
    "train.max_grad_norm",
)
"""Keys that may change under a trained state, and hence those that pbt may vary."""

MakeTrial = Callable[[Mapping[str, Any]], object]
"""Makes the spec of a trial from its values. Raises InputError if one is not allowed."""


def flatten_space(section: Any) -> Any:
    """Return the section with dotted keys in its space, which `--set` and people write nested."""
    space = section.get("space") if isinstance(section, dict) else None
    if not isinstance(space, dict):
        return section
    sections = {key.rpartition(".")[0] for key in list_keys()} - {WORKERS_KEY}

    def walk_keys(inner: dict[Any, Any], prefix: str) -> Iterator[tuple[Any, Any]]:
        for name, value in inner.items():
            key = f"{prefix}{name}" if isinstance(name, str) else name
            nested = isinstance(value, dict) and value and not {*value} & {*Domain.model_fields}
            if nested and key in sections:
                yield from walk_keys(value, f"{key}.")
            else:
                yield key, value

    return {**section, "space": dict(walk_keys(space, ""))}


def check_domains(section: SearchSection) -> Iterator[Fault]:
    """Check the section alone: empty or contradictory domains, and options that exclude others."""
    for key, domain in section.space.items():
        path = f"search.space.{key}"
        kinds = [name for name in Domain.model_fields if getattr(domain, name) is not None]
        if len(kinds) != 1:
            problem = f"{' and '.join(kinds) or 'nothing'} is set"
            yield Fault(path, problem, f"Use exactly one of {', '.join(Domain.model_fields)}.")
            continue
        yield from _check_range(path, domain)
        yield from _check_listed(path, domain)
        if section.algorithm == "grid" and domain.finite is None:
            problem = f"{domain.kind} is not finite, but grid tries every value"
            yield Fault(path, problem, "List the values, or use another algorithm.")
        if section.algorithm == "tpe" and domain.grid is not None:
            yield Fault(path, "tpe cannot search a grid", "Use choice.")
    yield from _check_grid(section)
    if (count := _count_listed(section)) > MAX_LISTED_VALUES:
        problem = f"its domains list {count:,} values, more than {MAX_LISTED_VALUES:,}"
        yield Fault("search.space", problem, "List fewer, or use uniform, loguniform or randint.")
    if section.also_minimise and section.algorithm != "tpe":
        problem = f"{section.algorithm} optimises one objective"
        remedy = "Use algorithm: tpe; the Pareto front is shown either way."
        yield Fault("search.also_minimise", problem, remedy)


def check_search(search: SearchSpec, make_trial: MakeTrial) -> Iterator[Fault]:
    """Check the searched keys, each of their values in the spec, and the options together."""
    if _count_listed(search.section) <= MAX_LISTED_VALUES:
        yield from _check_space(search, make_trial)
    yield from _check_evaluation(search)
    yield from _check_scheduler(search)
    if search.federation is not None:
        yield from _check_federation(search)
    if search.section.budget.cost is not None and search.cluster.machine.price_per_hour is None:
        remedy = "Set cluster.machine.price_per_hour."
        yield Fault("search.budget.cost", "the price of a machine is not known", remedy)
    if not isinstance(search.cluster.workers, int):
        yield Fault(WORKERS_KEY, *ELASTIC_FAULT)


def _check_grid(section: SearchSection) -> Iterator[Fault]:
    is_exhaustive = section.algorithm == "grid" and section.samples is None
    trials = math.prod(_count_values(domain) for domain in section.space.values())
    if is_exhaustive and trials > MAX_TRIALS:
        problem = f"the grid has {trials:,} trials, more than {MAX_TRIALS:,}"
        yield Fault("search.space", problem, "List fewer values, or set search.samples.")


def _count_values(domain: Domain) -> int:
    # Not len() of a range, which fails above 2^63.
    if domain.randint is not None:
        low, high = domain.randint
        return max(0, high - low + 1)
    return len(domain.finite or ())


def _count_listed(section: SearchSection) -> int:
    return sum(len(domain.choice or domain.grid or ()) for domain in section.space.values())


def _check_listed(path: str, domain: Domain) -> Iterator[Fault]:
    listed = domain.choice or domain.grid or ()
    seen = set[Hashable]()
    for value in listed:
        if (frozen := _freeze(value)) in seen:
            text = short_repr.repr(value)
            yield Fault(path, f"{text} is listed twice", "Remove one: trials never repeat.")
            return
        seen.add(frozen)


def _freeze(value: Any) -> Hashable:
    """Return a value that is hashable, and equal to that of another plain value if those are."""
    if isinstance(value, Mapping):
        return frozenset((key, _freeze(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_freeze, value))
    frozen: Hashable = value
    return frozen


def _check_range(path: str, domain: Domain) -> Iterator[Fault]:
    if domain.choice is not None or domain.grid is not None:
        return
    low, high = domain.randint or domain.bounds
    if low >= high:
        yield Fault(path, f"{low} is not below {high}", "Put the lower bound first.")
    if domain.kind == "loguniform" and low <= 0:
        yield Fault(path, f"{low} has no logarithm", "Start above 0, or use uniform.")


def _check_space(search: SearchSpec, make_trial: MakeTrial) -> Iterator[Fault]:
    known = _list_searchable_keys(search)
    for key, domain in search.section.space.items():
        path = f"search.space.{key}"
        if key not in known:
            suggestion = suggest_key(key)
            yield Fault(path, suggestion.problem, suggestion.remedy)
        elif key != WORKERS_KEY and any(name.startswith(f"{key}.") for name in known):
            yield Fault(path, "a section, not a key", f"Use one of its keys, such as {key}.… .")
        elif key.startswith(f"{WORKERS_KEY}.") or not _is_fixed(key, domain):
            yield Fault(path, *ELASTIC_FAULT)
        elif key in FIXED_KEYS:
            yield Fault(path, "this key must be the same in all trials", "Search over another key.")
        elif sum(getattr(domain, name) is not None for name in Domain.model_fields) == 1:
            yield from _check_values(make_trial, key, path, domain)


def _list_searchable_keys(search: SearchSpec) -> list[str]:
    """List the keys of the spec, and of a federation's section where there is one."""
    sections = {*SECTIONS} - ({"federation"} if search.federation else set())
    return [key for key in list_keys() if key.partition(".")[0] not in sections]


def _is_fixed(key: str, domain: Domain) -> bool:
    listed = domain.choice or domain.grid or ()
    return key != WORKERS_KEY or not any(isinstance(value, dict) for value in listed)


def _check_values(make_trial: MakeTrial, key: str, path: str, domain: Domain) -> Iterator[Fault]:
    for value in domain.list_ends():
        try:
            make_trial({key: value})
        except InputError as error:
            # Keys that exclude each other are reported by the plan of a trial that has both.
            own = [fault for fault in error.faults if fault.key.startswith(key)]
            if own:
                yield Fault(path, own[0].problem, own[0].remedy)
                return


def _check_evaluation(search: SearchSpec) -> Iterator[Fault]:
    section = search.section
    yield from check_metric("search.metric", section.metric, search.model.task, search.data.labels)
    if search.data.eval is None and search.data.eval_fraction is None:
        problem = "no rows are held out, so trials cannot be compared"
        yield Fault("data.eval", problem, "Set data.eval, or data.eval_fraction: 0.05.")
    if section.scheduler != "none" and search.train.eval_every is None:
        problem = (
            f"{section.scheduler} compares running trials, but they are only evaluated at the end"
        )
        yield Fault("train.eval_every", problem, "Set it, or use search.scheduler: none.")
    if section.direction != METRICS[section.metric][1]:
        problem = f"{section.direction} would select the worst {section.metric}"
        yield Fault("search.mode", problem, "Remove it.")


def _check_scheduler(search: SearchSpec) -> Iterator[Fault]:
    section = search.section
    if section.scheduler == "hyperband" and search.train.steps is None:
        problem = "hyperband divides train.steps among trials, but only epochs are set"
        yield Fault("train.steps", problem, "Set it, or use asha.")
    if section.scheduler != "pbt":
        return
    if section.max_concurrent is not None:
        problem = "pbt runs as many of its trials at once as the cluster has room for"
        yield Fault("search.max_concurrent", problem, "Remove it.")
    if section.algorithm == "tpe":
        problem = "tpe learns from finished trials, but pbt starts all trials at once"
        yield Fault("search.algorithm", problem, "Use algorithm: random, or scheduler: asha.")
    for key, domain in section.space.items():
        if AUTO_RATE in (domain.finite or ()):
            remedy = "List numbers, or use asha."
            yield Fault(f"search.space.{key}", "pbt changes numbers, and auto is none", remedy)
        if key not in LIVE_KEYS:
            problem = (
                "pbt changes values during training, but this key is fixed once training starts"
            )
            remedy = f"Search over {', '.join(LIVE_KEYS)}, or use asha."
            yield Fault(f"search.space.{key}", problem, remedy)


def _check_federation(search: SearchSpec) -> Iterator[Fault]:
    """Check that a trial has one worker, which plays all clients, and a scheduler that fits."""
    if search.workers != 1 or WORKERS_KEY in search.section.space:
        problem = "a trial of a federation has one site, which trains all clients"
        yield Fault(WORKERS_KEY, problem, "Use 1: a search fills the cluster with trials.")
    if search.section.scheduler in ("pbt", "hyperband"):
        problem = (
            f"{search.section.scheduler} counts optimizer steps, but a federation counts rounds"
        )
        yield Fault("search.scheduler", problem, "Use asha, or none.")
