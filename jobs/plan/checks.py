"""Checks of a spec that need its targets at most: its batch, rank, method and cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jobs.errors import Fault
from jobs.spec.schema import MethodSection, RunSpec
from slora.layers.shapes import get_expert_shape
from slora.masks.sizes import STRUCTURES


def check_batch(spec: RunSpec) -> list[Fault]:
    """Check that the batch divides over the workers and into micro-batches."""
    if not isinstance(spec.cluster.workers, int):
        # An elastic run cannot choose its number of workers: the rest of a batch is padded.
        return []
    batch, workers, micro = spec.train.batch_size, spec.workers, spec.train.micro_batch_size
    if batch % workers:
        nearest = max(workers, round(batch / workers) * workers)
        problem = f"{batch} sequences cannot be divided by {workers} workers"
        return [Fault("train.batch_size", problem, f"Use a multiple of {workers}, e.g. {nearest}.")]
    per_worker = batch // workers
    if per_worker > micro and per_worker % micro:
        problem = f"{per_worker} sequences per worker do not divide into micro-batches of {micro}"
        divisor = max(n for n in range(1, micro + 1) if per_worker % n == 0)
        return [Fault("train.micro_batch_size", problem, f"Use a divisor, e.g. {divisor}.")]
    return []


def get_min_side(method: MethodSection) -> int:
    """Return the side that a layer needs at least: 1 where there is no rank."""
    if method.kind not in ("slora", "lora"):
        return 1
    # LoRA-GA uses as many singular vectors again.
    return 2 * method.rank if method.init == "lora-ga" else method.rank


def get_sizing_rank(spec: RunSpec) -> int | None:
    """Return the rank that sizes rows, columns and blocks, or None if the density does."""
    # Without a hand-off there is no rank that a mask could exceed.
    method = spec.method
    return method.rank if method.kind == "slora" and method.sizing == "rank" else None


def check_rank(spec: RunSpec, targets: Mapping[str, tuple[int, int]]) -> Iterator[Fault]:
    """Check that the rank fits the smallest target."""
    if spec.method.kind not in ("slora", "lora") or not targets:
        return
    matrices = {name: get_expert_shape(shape) for name, shape in targets.items()}
    name, shape = min(matrices.items(), key=lambda item: min(item[1]))
    doubled = spec.method.init == "lora-ga"
    maximum = min(shape) // 2 if doubled else min(shape)
    if get_min_side(spec.method) > min(shape):
        subject = "half the smallest target" if doubled else "the smallest target"
        problem = f"{spec.method.rank} exceeds {subject} ({shape[0]} x {shape[1]}, {name})"
        remedy = f"Use {maximum} or less, or remove that layer from method.targets."
        yield Fault("method.rank", problem, remedy)


def check_method(spec: RunSpec) -> Iterator[Fault]:
    """Check options of the method that exclude each other."""
    method = spec.method
    sparse, low_rank = method.kind in ("slora", "sparse"), method.kind in ("slora", "lora")
    score = method.score if method.mask in STRUCTURES else method.mask
    if sparse and method.allocation == "global" and (score == "random" or method.mask == "blocks"):
        subject = "blocks" if method.mask == "blocks" else "random masks"
        remedy = "Use allocation: uniform, or another mask."
        yield Fault("method.allocation", f"{subject} cannot compete across layers", remedy)
    if method.init != "zero" and method.kind != "lora":
        problem = f"{method.init} initialises the factors of kind lora, not of kind {method.kind}"
        yield Fault("method.init", problem, "Use kind: lora, or init: zero.")
    if method.train_tokens and method.kind == "full":
        problem = "kind full trains every row of the embedding"
        yield Fault("method.train_tokens", problem, "Remove it, or use another method.kind.")
    if repeated := [t for t in set(method.train_tokens) if method.train_tokens.count(t) > 1]:
        yield Fault("method.train_tokens", f"{min(repeated)!r} is listed twice", "List it once.")
    # Kinds without factors ignore their density, as they do the rank: baselines are one key away.
    if method.factor_pruning == "gates" and not low_rank:
        problem = f"kind {method.kind} has no ranks to prune"
        yield Fault("method.factor_pruning", problem, "Leave it at fixed.")
    if method.factor_storage == "compact":
        yield from _check_compact_factors(method)


def _check_compact_factors(method: MethodSection) -> Iterator[Fault]:
    """Check that the untrained entries of the factors are zero: others would have to be stored."""
    if not method.has_factor_masks:
        problem = "compact stores the entries under masks of A and B, but they have none"
        remedy = "Use peft, or method.factor_density below 1 with factor_pruning: fixed."
    elif method.kind == "slora" or method.init != "zero":
        source = "a hand-off" if method.kind == "slora" else method.init
        problem = f"the factors of {source} are not zero outside their masks, so all are stored"
        remedy = "Use peft."
    else:
        return
    yield Fault("method.factor_storage", problem, remedy)


def check_labels(spec: RunSpec) -> Iterator[Fault]:
    """Check that rows have labels, if the spec says how many."""
    if spec.data.labels != "one" and spec.model.task != "sequence-classification":
        problem = f"{spec.data.labels}, but {spec.model.task} rows have no labels"
        yield Fault("data.labels", problem, "Remove it, or use task: sequence-classification.")


def check_cluster(spec: RunSpec) -> Iterator[Fault]:
    """Check options of the cluster that are impossible, or that would have no effect."""
    cluster, full = spec.cluster, spec.method.kind == "full"
    if full and cluster.sync_every > 1:
        problem = "kind full exchanges gradients in every step: its optimizer is sharded"
        yield Fault("cluster.sync_every", problem, "Use 1, or another method.kind.")
    if full and cluster.exchange_dtype != "float32":
        problem = "kind full exchanges gradients in the dtype of the model"
        yield Fault("cluster.exchange_dtype", problem, "Leave it at float32.")
    if cluster.average == "product" and spec.method.has_factor_masks:
        problem = "the factors of an averaged product do not keep their masks"
        yield Fault("cluster.average", problem, "Use factors, or method.factor_density: 1.")
    for key, default in (("outer", "average"), ("average", "factors")):
        if cluster.sync_every == 1 and (value := getattr(cluster, key)) != default:
            problem = f"{value} combines local steps, but sync_every is 1"
            yield Fault(f"cluster.{key}", problem, "Set cluster.sync_every above 1.")
    if not isinstance(cluster.workers, int) and cluster.workers.min > cluster.workers.max:
        problem = f"min {cluster.workers.min} exceeds max {cluster.workers.max}"
        yield Fault("cluster.workers", problem, "Swap them.")
