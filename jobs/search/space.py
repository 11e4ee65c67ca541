"""The configs of a search: random, a grid, or proposed by Optuna's TPE.

A config depends on the seed, its number and, for `tpe`, on the records that ended before. So a
resumed search proposes what it would have proposed without the interruption.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from jobs.search.report.pareto import select_comparable
from jobs.search.trial_record import TrialRecord
from jobs.spec.sections.search import Domain, SearchSection

DEFAULT_SAMPLES = 12
MAX_DRAWS = 50
"""Draws to find a new config; a small space may have no more."""
Config = dict[str, Any]


def list_precomputed_configs(section: SearchSection) -> list[Config] | None:
    """Return all configs, or None for tpe, whose configs depend on results."""
    if section.algorithm == "tpe":
        return None
    if section.algorithm == "grid":
        return _make_grid(
            {key: domain.finite or () for key, domain in section.space.items()}, section.samples
        )
    return _draw_random_configs(section)


def count_trials(section: SearchSection) -> int:
    """Return the number of trials without a budget."""
    configs = list_precomputed_configs(section)
    return len(configs) if configs is not None else section.samples or DEFAULT_SAMPLES


def propose_tpe(
    section: SearchSection, number: int, records: Sequence[TrialRecord]
) -> Config | None:
    """Return config `number` of tpe, given the results so far; None if no new one is found."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    comparable = select_comparable(records)
    known_configs = {_format_config(record.config) for record in records}
    for attempt in range(MAX_DRAWS):
        sampler = optuna.samplers.TPESampler(
            seed=section.seed + number * MAX_DRAWS + attempt,
            n_startup_trials=max(4, (section.samples or DEFAULT_SAMPLES) // 4),
        )
        study = optuna.create_study(directions=_list_directions(section), sampler=sampler)
        for record in comparable:
            study.add_trial(_make_frozen_trial(optuna, section, record))
        trial = study.ask(_make_distributions(optuna, section))
        config = {
            key: _decode_value(section.space[key], trial.params[key]) for key in section.space
        }
        if _format_config(config) not in known_configs:
            return config
    return None


def _draw_random_configs(section: SearchSection) -> list[Config]:
    grids = {k: d.grid for k, d in section.space.items() if d.grid is not None}
    rest = {key: domain for key, domain in section.space.items() if key not in grids}
    samples = (section.samples or DEFAULT_SAMPLES) if rest else 1
    configs: list[Config] = []
    known_configs = set[str]()
    for number, crossing in enumerate(_make_grid(grids) * samples):
        config = crossing
        for attempt in range(MAX_DRAWS):
            rng = random.Random(f"{section.seed} {number} {attempt}")
            values = {key: _draw_value(domain, rng) for key, domain in rest.items()}
            config = {key: (crossing | values)[key] for key in section.space}
            if _format_config(config) not in known_configs:
                configs.append(config)
                known_configs.add(_format_config(config))
                break
    return configs


def _make_grid(values: Mapping[str, Sequence[Any]], limit: int | None = None) -> list[Config]:
    crossings = itertools.islice(_iter_product([*values.values()]), limit)
    return [dict(zip(values, combination, strict=True)) for combination in crossings]


def _iter_product(values: list[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield the product of the values; itertools.product would hold a long range in memory."""
    if not values:
        yield ()
        return
    for first in values[0]:
        yield from ((first, *rest) for rest in _iter_product(values[1:]))


def _draw_value(domain: Domain, rng: random.Random) -> Any:
    if domain.finite is not None:
        return rng.choice(domain.finite)
    low, high = domain.bounds
    if domain.kind == "loguniform":
        return math.exp(rng.uniform(math.log(low), math.log(high)))
    return rng.uniform(low, high)


def _list_directions(section: SearchSection) -> list[Literal["minimize", "maximize"]]:
    directions: list[Literal["minimize", "maximize"]] = ["minimize"] * (
        1 + len(section.also_minimise)
    )
    if section.direction == "max":
        directions[0] = "maximize"
    return directions


def _make_distributions(optuna: Any, section: SearchSection) -> dict[str, Any]:
    return {key: _make_distribution(optuna, domain) for key, domain in section.space.items()}


def _make_distribution(optuna: Any, domain: Domain) -> Any:
    kinds = optuna.distributions
    if domain.randint is not None:
        return kinds.IntDistribution(*domain.randint)
    if domain.finite is not None:
        # By index: Optuna takes no lists, and the value of a key may be one.
        return kinds.CategoricalDistribution(tuple(range(len(domain.finite))))
    return kinds.FloatDistribution(*domain.bounds, log=domain.kind == "loguniform")


def _decode_value(domain: Domain, suggested: Any) -> Any:
    if domain.randint is None and domain.finite is not None:
        return domain.finite[suggested]
    return suggested


def _make_frozen_trial(optuna: Any, section: SearchSection, record: TrialRecord) -> Any:
    params = {
        key: domain.finite.index(record.config[key])
        if domain.randint is None and domain.finite is not None
        else record.config[key]
        for key, domain in section.space.items()
    }
    values = [record.metric, *(getattr(record, cost) or 0.0 for cost in section.also_minimise)]
    distributions = _make_distributions(optuna, section)
    return optuna.trial.create_trial(params=params, distributions=distributions, values=values)


def _format_config(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, default=str)
