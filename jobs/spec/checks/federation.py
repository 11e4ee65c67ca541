"""Checks of a federation: keys that it excludes, its section, and the two together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jobs.errors import Fault
from jobs.spec.limits import MAX_STEPS
from jobs.spec.schema import RunSpec
from jobs.spec.sections.federation import FederationSection
from jobs.spec.sections.training import AUTO_RATE

LOW_RANK_KINDS = ("slora", "lora")
PARTITIONS_BY_COUNT = ("iid", "dirichlet")
"""Partitions with a number of clients; for the others the data define it."""


def check_keys(values: Mapping[str, Any]) -> Iterator[Fault]:
    """Check that the YAML has no key that a federation excludes."""
    train = values.get("train")
    for key in ("steps", "epochs"):
        if isinstance(train, dict) and train.get(key) is not None:
            remedy = "Remove it: the number of steps is federation.rounds x federation.local_steps."
            yield Fault(f"train.{key}", "not allowed in a federation, which counts rounds", remedy)


def check_section(section: FederationSection) -> Iterator[Fault]:
    """Check the section alone."""
    yield from _check_clients(section)
    if section.rounds * section.local_steps > MAX_STEPS:
        problem = f"{section.rounds * section.local_steps:,} local steps are too many"
        yield Fault("federation.rounds", problem, f"Use {MAX_STEPS:,} or less in total.")
    if section.sparse_rounds is not None and section.sparse_rounds > section.rounds:
        problem = f"{section.sparse_rounds} exceeds the {section.rounds} rounds"
        yield Fault("federation.sparse_rounds", problem, f"Use 0 to {section.rounds}.")
    if section.compress != "topk" and section.topk != _get_default("topk"):
        problem = f"{section.topk:g} has no effect with compress: {section.compress}"
        yield Fault("federation.topk", problem, "Remove it, or use compress: topk.")


def check_spec(spec: RunSpec) -> Iterator[Fault]:
    """Check that the spec asks for nothing that a federation cannot do."""
    yield from _check_cluster(spec)
    method, stop = spec.method, spec.train.stop
    if method.init != "zero":
        problem = f"{method.init} starts from weights or rows that the server would have to send"
        yield Fault("method.init", problem, "Use zero.")
    if spec.data.streaming:
        problem = "the rows are divided among the clients before the start, which reads all of them"
        yield Fault("data.streaming", problem, "Remove it.")
    if method.train_tokens:
        problem = "a federation's sites and server exchange no rows of the embedding"
        yield Fault("method.train_tokens", problem, "Remove it.")
    if method.factor_density < 1 and method.factor_pruning == "gates":
        problem = "gates need evidence from all rows, but a client has only its own rows"
        yield Fault("method.factor_pruning", problem, "Use fixed, or factor_density: 1.")
    federation = spec.federation
    if federation and federation.optimizer == "sgd" and spec.train.learning_rate == AUTO_RATE:
        problem = "the rule of auto is for AdamW, but the clients use sgd"
        yield Fault("train.learning_rate", problem, "Set a number.")
    if (stop.tokens, stop.target, stop.patience) != (None, None, None):
        yield Fault("train.stop", "a federation ends after its rounds", "Remove it.")


def check_combinations(spec: RunSpec, section: FederationSection) -> Iterator[Fault]:
    """Check that the spec and the section do not contradict each other."""
    kind = spec.method.kind
    if section.freeze_a and kind not in LOW_RANK_KINDS:
        problem = f"kind {kind} has no factors"
        yield Fault("federation.freeze_a", problem, "Remove it, or use kind lora or slora.")
    if section.average == "product":
        yield from _check_product(spec, section)
    if section.sparse_rounds is not None and kind != "slora":
        problem = f"kind {kind} has one stage"
        yield Fault("federation.sparse_rounds", problem, "Remove it, or use kind slora.")
    if section.partition == "dirichlet" and spec.target_kind != "class":
        yield make_no_labels_fault(spec.model.task, spec.data.labels)


def make_no_labels_fault(task: str, labels: str) -> Fault:
    """Return the fault of a Dirichlet partition of rows without a class."""
    rows = f"{task} rows have none"
    if task == "sequence-classification":
        rows = f"rows with data.labels: {labels} have no single one"
    problem = f"dirichlet partitions by label, and {rows}"
    return Fault("federation.partition", problem, "Use iid, files, or by with a column.")


def _check_cluster(spec: RunSpec) -> Iterator[Fault]:
    cluster = spec.cluster
    replacements = {
        "sync_every": (1, "federation.local_steps"),
        "outer": ("average", "federation.average"),
        "average": ("factors", "federation.average"),
        "exchange_dtype": ("float32", "federation.compress"),
    }
    for key, (default, replacement) in replacements.items():
        if (value := getattr(cluster, key)) != default:
            problem = f"{value} is for workers that train together, but clients train alone"
            yield Fault(f"cluster.{key}", problem, f"Use {replacement} instead.")
    if cluster.sharding in ("node", "cluster"):
        problem = f"{cluster.sharding} shards the base over workers, but every site holds all of it"
        yield Fault("cluster.sharding", problem, "Use replicate, or auto.")
    if not isinstance(cluster.workers, int):
        problem = "a federation has a fixed number of sites"
        yield Fault(
            "cluster.workers", problem, "Use a single number: the clients take turns on the sites."
        )


def _check_product(spec: RunSpec, section: FederationSection) -> Iterator[Fault]:
    reason, remedy = None, "Use average: fedavg."
    if spec.method.kind not in LOW_RANK_KINDS:
        reason = f"kind {spec.method.kind} has no factors"
    elif section.freeze_a:
        reason = "with freeze_a, averaging B is already the same as averaging products"
    elif spec.method.factor_density < 1:
        reason = "the factors of an averaged product do not keep their masks"
        remedy = "Use fedavg, or method.factor_density: 1."
    if reason:
        yield Fault("federation.average", f"product is not possible: {reason}", remedy)


def _check_clients(section: FederationSection) -> Iterator[Fault]:
    kind, clients = section.partition, section.clients
    if kind in PARTITIONS_BY_COUNT and clients is None:
        problem = f"missing: {kind} splits the rows among a number of clients"
        yield Fault("federation.clients", problem, "Set it, e.g. clients: 100.")
    if clients is not None and section.clients_per_round > clients:
        problem = f"cannot sample {section.clients_per_round} of {clients} clients"
        yield Fault("federation.clients_per_round", problem, f"Use {clients} or less.")
    if kind == "by" and section.column is None:
        problem = "missing: partition by groups rows by a field"
        yield Fault("federation.column", problem, "Set it, e.g. column: author.")
    if kind != "by" and section.column is not None:
        problem = f"{section.column!r} has no effect with partition: {kind}"
        yield Fault("federation.column", problem, "Remove it, or use partition: by.")
    if kind != "dirichlet" and section.dirichlet_alpha != _get_default("dirichlet_alpha"):
        problem = f"{section.dirichlet_alpha:g} has no effect with partition: {kind}"
        remedy = "Remove it, or use partition: dirichlet."
        yield Fault("federation.dirichlet_alpha", problem, remedy)


def _get_default(key: str) -> Any:
    """Return a key's default: a user may write it out without any effect."""
    return FederationSection.model_fields[key].default
