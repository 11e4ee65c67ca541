"""Everything that can be known of a federation before a site starts. No torch; numpy only to deal.

What one site holds is planned as a run of one worker; what travels, as rounds and clients tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.errors import Fault, InputError
from jobs.federation.federation_plan import FederationPlan, count_b_entries, plan_federation
from jobs.inspect.datasets.scan import DatasetScan, ScanProgress
from jobs.plan.estimate.estimate import RunEstimate
from jobs.plan.estimate.machine import describe_resources
from jobs.plan.plan import Plan
from jobs.plan.preflight import ValidatedRun, validate_run
from jobs.spec.schema import FederatedSpec, make_site_spec

if TYPE_CHECKING:
    from jobs.federation.partition import Partition


@dataclass(frozen=True)
class ValidatedFederation:
    """A federation that can be run, and what was learnt while checking it."""

    federated_spec: FederatedSpec
    validated_run: ValidatedRun
    """Of the spec as asked; its plan is that of one site."""
    partition: Partition | None
    """None after a quick look, which deals no rows."""
    plan: FederationPlan
    site_run: ValidatedRun
    """The run of a site as it was validated, which is handed over to the job."""

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values, the federation's beside it: what a run records."""
        return {**self.validated_run.plan.to_json(), "federation": self.plan.to_json()}


def check_federation(
    federated_spec: FederatedSpec,
    *,
    quick: bool = False,
    store: bool = True,
    progress: ScanProgress | None = None,
    site_run: ValidatedRun | None = None,
) -> ValidatedFederation:
    """Raises InputError with every fault of the spec, the model, the data and the store.

    `quick` and `store` as in `jobs.plan.preflight.check`; a quick look deals no rows.
    """
    site_run = site_run or validate_run(
        make_site_spec(federated_spec), quick=quick, with_store=store, progress=progress
    )
    validated_run = site_run
    partition = None if quick else _partition_rows(federated_spec, validated_run.train_scan)
    clients = (
        partition.count if partition else _count_clients(federated_spec, validated_run.train_scan)
    )
    site_plan, federation_plan = _plan_site_and_traffic(federated_spec, validated_run, clients)
    validated_run = replace(validated_run, spec=federated_spec.training, plan=site_plan)
    return ValidatedFederation(federated_spec, validated_run, partition, federation_plan, site_run)


def _count_clients(federated_spec: FederatedSpec, train: DatasetScan) -> int | None:
    """How many there are, as far as a quick look tells."""
    by_file = federated_spec.section.partition == "files"
    return len(train.files) if by_file else federated_spec.section.clients


def _partition_rows(federated_spec: FederatedSpec, train: DatasetScan) -> Partition:
    # Here, because a control plane has no numpy, and checks specs too.
    from jobs.federation.partition import make_partition

    spec = federated_spec
    return make_partition(
        train.files,
        federated_spec.section,
        fmt=train.format,
        task=spec.model.task,
        eval_fraction=spec.data.eval_fraction,
        seed=spec.train.seed,
    )


def _plan_site_and_traffic(
    federated_spec: FederatedSpec, validated_run: ValidatedRun, clients: int | None
) -> tuple[Plan, FederationPlan]:
    """The plan of a site with what its federation sends. Raises InputError."""
    targets = {name: validated_run.model.linears[name] for name in validated_run.plan.targets}
    plan = _apply_freeze_a(federated_spec, validated_run.plan, targets)
    federation_plan = plan_federation(
        federated_spec.training,
        federated_spec.section,
        list(zip(plan.stages, federated_spec.stage_rounds, strict=True)),
        validated_run.model,
        targets=targets,
        head=plan.head,
        clients=clients,
    )
    assert plan.estimate is not None
    prediction = _scale_to_sites(federated_spec, plan.estimate, federation_plan)
    if prediction.fault:
        remedy = "Use fewer sites, larger machines, or a smaller train.micro_batch_size."
        raise InputError([Fault("cluster.workers", prediction.fault, remedy)])
    reason = prediction.reason
    return replace(plan, estimate=prediction, sharding_reason=reason), federation_plan


def _apply_freeze_a(
    federated_spec: FederatedSpec, plan: Plan, targets: Mapping[str, tuple[int, int]]
) -> Plan:
    """Where A is frozen, only B of the factors is trained."""
    if not federated_spec.section.freeze_a:
        return plan
    trainable = count_b_entries(federated_spec.method, targets)
    stages = tuple(
        replace(stage, trainable=trainable) if stage.name == "low-rank" else stage
        for stage in plan.stages
    )
    return replace(plan, stages=stages)


def _scale_to_sites(
    federated_spec: FederatedSpec, site_prediction: RunEstimate, federation_plan: FederationPlan
) -> RunEstimate:
    """From what one site alone takes to all of them, and every client's tokens."""
    resources, sites = describe_resources(federated_spec), federated_spec.workers
    option = replace(
        site_prediction.selected,
        flows=federation_plan.flows,
        fits=_is_within_memory(site_prediction.selected.needed, resources.memory),
    )
    tokens = (
        None
        if site_prediction.tokens is None
        else site_prediction.tokens * federated_spec.section.clients_per_round
    )
    speed = site_prediction.speed
    if speed is not None and federated_spec.cluster.machine.tokens_per_second is None:
        # What a run of one worker had; what the spec says is of all sites already.
        source = speed.source if sites == 1 else f"{speed.source}, on each of {sites} sites"
        speed = replace(speed, tokens_per_second=speed.tokens_per_second * sites, source=source)
    seconds = None if tokens is None or speed is None else tokens / speed.tokens_per_second
    price = resources.price_per_hour
    fault = None
    if option.fits is False and resources.memory is not None:
        needed, available = (f"{size / 1e9:,.1f} GB" for size in (option.needed, resources.memory))
        fault = (
            f"each of {sites} sites needs {needed}, and has {available} {resources.memory_source}"
        )
    return replace(
        site_prediction,
        workers=sites,
        nodes=resources.nodes,
        workers_per_node=resources.per_node,
        memory=resources.memory,
        options=(option,),
        reason="every site holds the base whole",
        fault=fault,
        tokens=tokens,
        seconds=seconds,
        cost=None if seconds is None or price is None else price * resources.nodes * seconds / 3600,
        speed=speed,
    )


def _is_within_memory(needed: int, memory: int | None) -> bool | None:
    return None if memory is None else needed <= memory
