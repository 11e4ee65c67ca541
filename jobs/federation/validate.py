"""What of a federation's spec and section makes no sense together: pure, needs no data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jobs.errors import Fault
from jobs.spec.schema import RunSpec
from jobs.spec.sections.federation import FederationSection

LOW_RANK_KINDS = ("slora", "lora")
PARTITIONS_BY_COUNT = ("iid", "dirichlet")
"""Partitions that deal rows to a number of clients; the others find it in the data."""


def check_keys(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """Keys that a federation's YAML does not have."""
    train = raw.get("train")
    for key in ("steps", "epochs"):
        if isinstance(train, dict) and train.get(key) is not None:
            remedy = "Leave it out: federation.rounds times federation.local_steps tell it."
            yield Fault(f"train.{key}", "given, and a federation counts rounds", remedy)
    if "retrain" in raw:
        remedy = "Take one of the two sections out."
        yield Fault("retrain", "stands beside federation: retraining a federation is not there",
                    remedy)  # fmt: skip


def check_section(section: FederationSection) -> Iterator[Fault]:
    """What of the section can be told by itself."""
    yield from _check_clients(section)
    if section.sparse_rounds is not None and section.sparse_rounds > section.rounds:
        problem = f"{section.sparse_rounds} is above the {section.rounds} rounds there are"
        yield Fault("federation.sparse_rounds", problem, f"Use 0 to {section.rounds}.")
    if section.compress != "topk" and section.topk != _get_default("topk"):
        problem = f"{section.topk:g} is given, and compress is {section.compress}"
        yield Fault("federation.topk", problem, "Leave it out, or use compress: topk.")


def check_spec(spec: RunSpec) -> Iterator[Fault]:
    """What of the spec no federation can have."""
    yield from _check_cluster(spec)
    method, stop = spec.method, spec.train.stop
    if method.init != "zero":
        problem = f"{method.init} starts from weights or rows that the server would have to send"
        yield Fault("method.init", problem, "Leave it at zero.")
    if method.factor_density < 1 and method.factor_pruning == "gates":
        problem = "gates prune by what all rows say, and a client sees its own"
        yield Fault("method.factor_pruning", problem, "Use fixed, or factor_density: 1.")
    if (stop.tokens, stop.target, stop.patience) != (None, None, None):
        yield Fault("train.stop", "a federation ends after its rounds", "Leave it out.")


def check_combinations(spec: RunSpec, section: FederationSection) -> Iterator[Fault]:
    """What the two exclude of each other."""
    kind = spec.method.kind
    if section.freeze_a and kind not in LOW_RANK_KINDS:
        problem = f"kind {kind} has no factors"
        yield Fault("federation.freeze_a", problem, "Leave it out, or use kind lora or slora.")
    if section.average == "product":
        yield from _check_product(spec, section)
    if section.sparse_rounds is not None and kind != "slora":
        problem = f"kind {kind} has one stage"
        yield Fault("federation.sparse_rounds", problem, "Leave it out, or use kind slora.")
    if section.partition == "dirichlet" and spec.model.task != "sequence-classification":
        yield make_no_labels_fault(spec.model.task)


def _check_cluster(spec: RunSpec) -> Iterator[Fault]:
    cluster = spec.cluster
    federated_keys = {
        "sync_every": (1, "federation.local_steps"),
        "outer": ("average", "federation.average"),
        "average": ("factors", "federation.average"),
        "exchange_dtype": ("float32", "federation.compress"),
    }
    for key, (default, replacement) in federated_keys.items():
        if (value := getattr(cluster, key)) != default:
            problem = f"{value} is of workers that train together, and clients train alone"
            yield Fault(f"cluster.{key}", problem, f"A federation has its own: {replacement}.")
    if cluster.sharding in ("node", "cluster"):
        problem = f"{cluster.sharding} cuts the base over workers, and every site holds it whole"
        yield Fault("cluster.sharding", problem, "Use replicate, or auto.")
    if not isinstance(cluster.workers, int):
        problem = "a federation has a fixed number of sites"
        yield Fault("cluster.workers", problem, "Give one number: clients take turns on them.")


def _check_product(spec: RunSpec, section: FederationSection) -> Iterator[Fault]:
    reason, remedy = None, "Use average: fedavg."
    if spec.method.kind not in LOW_RANK_KINDS:
        reason = f"kind {spec.method.kind} has no factors"
    elif section.freeze_a:
        reason = "with freeze_a the mean of B is that of the product already"
    elif spec.method.factor_density < 1:
        reason = "factors under masks of their own have no place for a product's"
        remedy = "Use fedavg, or method.factor_density: 1."
    if reason:
        yield Fault("federation.average", f"product can't be: {reason}", remedy)


def _check_clients(section: FederationSection) -> Iterator[Fault]:
    kind, clients = section.partition, section.clients
    if kind in PARTITIONS_BY_COUNT and clients is None:
        problem = f"missing: {kind} deals the rows to a number of clients"
        yield Fault("federation.clients", problem, "Give it, as in clients: 100.")
    if clients is not None and section.clients_per_round > clients:
        problem = f"{section.clients_per_round} of {clients} clients can't be drawn"
        yield Fault("federation.clients_per_round", problem, f"Use {clients} or less.")
    if kind == "by" and section.column is None:
        problem = "missing: partition by goes by a field of each row"
        yield Fault("federation.column", problem, "Name it, as in column: author.")
    if kind != "by" and section.column is not None:
        problem = f"{section.column!r} is given, and {kind} goes by no column"
        yield Fault("federation.column", problem, "Leave it out, or use partition: by.")
    if kind != "dirichlet" and section.dirichlet_alpha != _get_default("dirichlet_alpha"):
        problem = f"{section.dirichlet_alpha:g} is given, and {kind} draws from no Dirichlet"
        remedy = "Leave it out, or use partition: dirichlet."
        yield Fault("federation.dirichlet_alpha", problem, remedy)


def make_no_labels_fault(task: str) -> Fault:
    """That a Dirichlet has nothing to go by."""
    problem = f"dirichlet goes by labels, and {task} rows have none"
    return Fault("federation.partition", problem, "Use by with a column, files or iid.")


def _get_default(key: str) -> Any:
    """A key's default: writing it out is no wish."""
    return FederationSection.model_fields[key].default
