"""Proposals of a search: drawn, crossed, or learnt by Optuna. The same for the same seed and past.

A proposal depends on the seed, its number and, for `tpe`, on the rows that ended before: so a
search that goes on after its death proposes what it would have proposed.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from jobs.search.pareto import judged
from jobs.search.rows import Row
from jobs.search.section import Domain, SearchSection

SAMPLES = 12
TRIES = 50
"""Draws until one is new; a small space may have no more."""
Config = dict[str, Any]


def drawn_ahead(section: SearchSection) -> list[Config] | None:
    """All proposals, where none depends on a result; None for tpe."""
    if section.algorithm == "tpe":
        return None
    if section.algorithm == "grid":
        return _crossed(
            {key: domain.finite or () for key, domain in section.space.items()}, section.samples
        )
    return _random(section)


def count(section: SearchSection) -> int:
    """How many trials are proposed, without a budget."""
    ahead = drawn_ahead(section)
    return len(ahead) if ahead is not None else section.samples or SAMPLES


def learnt(section: SearchSection, number: int, rows: Sequence[Row]) -> Config | None:
    """Proposal `number` of tpe, from what came of the earlier ones; None where none is new."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    told = judged(rows)
    seen = {_text(row.config) for row in rows}
    for attempt in range(TRIES):
        sampler = optuna.samplers.TPESampler(
            seed=section.seed + number * TRIES + attempt,
            n_startup_trials=max(4, (section.samples or SAMPLES) // 4),
        )
        study = optuna.create_study(directions=_directions(section), sampler=sampler)
        for row in told:
            study.add_trial(_frozen(optuna, section, row))
        asked = study.ask(_distributions(optuna, section))
        config = {key: _value(section.space[key], asked.params[key]) for key in section.space}
        if _text(config) not in seen:
            return config
    return None


def _random(section: SearchSection) -> list[Config]:
    grids = {k: d.grid for k, d in section.space.items() if d.grid is not None}
    rest = {key: domain for key, domain in section.space.items() if key not in grids}
    each = (section.samples or SAMPLES) if rest else 1
    found: list[Config] = []
    seen = set[str]()
    for number, crossing in enumerate(_crossed(grids) * each):
        config = crossing
        for attempt in range(TRIES):
            chance = random.Random(f"{section.seed} {number} {attempt}")
            drawn = {key: _draw(domain, chance) for key, domain in rest.items()}
            config = {key: (crossing | drawn)[key] for key in section.space}
            if _text(config) not in seen:
                found.append(config)
                seen.add(_text(config))
                break
    return found


def _crossed(values: Mapping[str, Sequence[Any]], most: int | None = None) -> list[Config]:
    crossings = itertools.islice(_product([*values.values()]), most)
    return [dict(zip(values, one, strict=True)) for one in crossings]


def _product(values: list[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    """As itertools.product, which would hold a long range in memory first."""
    if not values:
        yield ()
        return
    for first in values[0]:
        yield from ((first, *rest) for rest in _product(values[1:]))


def _draw(domain: Domain, chance: random.Random) -> Any:
    if domain.finite is not None:
        return chance.choice(domain.finite)
    low, high = domain.bounds
    if domain.kind == "loguniform":
        return math.exp(chance.uniform(math.log(low), math.log(high)))
    return chance.uniform(low, high)


def _directions(section: SearchSection) -> list[Literal["minimize", "maximize"]]:
    found: list[Literal["minimize", "maximize"]] = ["minimize"] * (1 + len(section.also_minimise))
    if section.direction == "max":
        found[0] = "maximize"
    return found


def _distributions(optuna: Any, section: SearchSection) -> dict[str, Any]:
    return {key: _distribution(optuna, domain) for key, domain in section.space.items()}


def _distribution(optuna: Any, domain: Domain) -> Any:
    make = optuna.distributions
    if domain.randint is not None:
        return make.IntDistribution(*domain.randint)
    if domain.finite is not None:
        # By place: Optuna takes no lists, and a spec's value may be one.
        return make.CategoricalDistribution(tuple(range(len(domain.finite))))
    return make.FloatDistribution(*domain.bounds, log=domain.kind == "loguniform")


def _value(domain: Domain, asked: Any) -> Any:
    if domain.randint is None and domain.finite is not None:
        return domain.finite[asked]
    return asked


def _frozen(optuna: Any, section: SearchSection, row: Row) -> Any:
    params = {
        key: domain.finite.index(row.config[key])
        if domain.randint is None and domain.finite is not None
        else row.config[key]
        for key, domain in section.space.items()
    }
    values = [row.metric, *(getattr(row, cost) or 0.0 for cost in section.also_minimise)]
    distributions = _distributions(optuna, section)
    return optuna.trial.create_trial(params=params, distributions=distributions, values=values)


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, default=str)
