"""Checks of products: each number may be within its bounds, and what they multiply to not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jobs.errors import Fault
from jobs.spec.kinds import count_tokens, count_workers
from jobs.spec.limits import MAX_BYTES, MAX_CPUS, MAX_GPUS, MAX_TOKENS, MAX_TOTAL_WORKERS
from jobs.spec.schema import RunSpec

BYTES_PER_GB = 10**9


@dataclass(frozen=True)
class _Product:
    """A quantity of a run, and the factors that a user can change."""

    key: str
    factors: str
    unit: str
    value: int
    bound: int


def check_products(spec: RunSpec) -> Iterator[Fault]:
    """Yield a fault for each product that exceeds its bound."""
    for product in _list_products(spec):
        if product.value > product.bound:
            problem = (
                f"{product.factors} are {product.value:,} {product.unit}, above the limit of "
                f"{product.bound:,}"
            )
            yield Fault(product.key, problem, f"Lower {product.factors.replace(' x ', ' or ')}.")


def _list_products(spec: RunSpec) -> Iterator[_Product]:
    cluster, workers = spec.cluster, count_workers(spec)
    trials = " x search.max_concurrent" if spec.search and spec.search.max_concurrent else ""
    all_workers = f"cluster.workers{trials}"
    yield _Product("cluster.workers", all_workers, "workers", workers, MAX_TOTAL_WORKERS)
    yield _Product(
        "cluster.cpus_per_worker",
        f"{all_workers} x cluster.cpus_per_worker",
        "CPUs",
        workers * cluster.cpus_per_worker,
        MAX_CPUS,
    )
    yield _Product(
        "cluster.gpus_per_worker",
        f"{all_workers} x cluster.gpus_per_worker",
        "GPUs",
        workers * cluster.gpus_per_worker,
        MAX_GPUS,
    )
    if (memory := cluster.machine.memory_gb) is not None:
        yield _Product(
            "cluster.machine.memory_gb",
            f"{all_workers} x cluster.machine.memory_gb",
            "bytes",
            int(workers * memory * BYTES_PER_GB),
            MAX_BYTES,
        )
    yield _make_token_product(spec)


def _make_token_product(spec: RunSpec) -> _Product:
    """Return the tokens of the run, or those of a step if the rows decide on the steps."""
    factors = ["train.batch_size", "data.max_length"]
    tokens = count_tokens(spec)
    if tokens is None:
        sides = 2 if spec.target_kind == "completion" else 1
        tokens = spec.train.batch_size * spec.data.max_length * sides
        if spec.federation:
            tokens *= spec.federation.clients_per_round
    elif spec.federation:
        factors = ["federation.rounds", "federation.local_steps", *factors]
    else:
        factors.insert(0, "train.steps")
    if spec.federation:
        factors.append("federation.clients_per_round")
    if spec.search and spec.search.samples:
        factors.append("search.samples")
    return _Product("train.batch_size", " x ".join(factors), "tokens", tokens, MAX_TOKENS)
