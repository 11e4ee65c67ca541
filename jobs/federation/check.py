"""Check and plan a federation before a site starts. No torch; numpy only to make the partition.

The memory of a site is planned as a run of one worker, the traffic from rounds and clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.errors import Fault, InputError
from jobs.federation.federation_plan import FederationPlan, count_b_entries, plan_federation
from jobs.inspect.datasets.scan import DatasetScan, ScanProgress
from jobs.plan.dtype_choice import set_dtype
from jobs.plan.estimate.estimate import RunEstimate
from jobs.plan.estimate.machine import describe_resources
from jobs.plan.plan import Plan
from jobs.plan.preflight import ValidatedRun, validate_run
from jobs.plan.rate_choice import set_rates
from jobs.spec.schema import FederatedSpec, make_site_spec
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.request import FederationRequest, TrainingRequest

if TYPE_CHECKING:
    from jobs.federation.partition import Partition


@dataclass(frozen=True)
class ValidatedFederation:
    """A federation that has passed all checks, with their results."""

    federated_spec: FederatedSpec
    validated_run: ValidatedRun
    """The fine-tune, with the plan of one site."""
    partition: Partition | None
    """None after a quick check, which does not read all rows."""
    plan: FederationPlan
    site_run: ValidatedRun
    """The run of a site as it was validated, which is handed over to the job."""
    partition_inputs: str = ""
    """Digest of what the partition was made from; empty after a quick check."""

    def to_json(self) -> dict[str, Any]:
        """Return the plan with that of the federation as plain values, for plan.json."""
        return {**self.validated_run.plan.to_json(), "federation": self.plan.to_json()}

    def keep_partition(self, runs: RunStore) -> Partition:
        """Write the partition into the run's folder unless it is there, and return it."""
        partition = self.partition
        assert partition is not None, "a quick check has no partition"
        # Imported here because a control plane checks specs too and has no numpy.
        from jobs.federation.partition_file import find_partition, write_partition

        existing = find_partition(runs, self.partition_inputs)
        if existing is None:
            write_partition(runs, self.partition_inputs, partition)
        return existing or partition

    def extend_request(self, request: TrainingRequest, runs: RunStore) -> FederationRequest:
        """Return the fine-tune's request as that of server and sites; keep the partition."""
        digest = self.keep_partition(runs).digest
        return request.for_federation(self.federated_spec.section, digest)


def check_federation(
    spec: FederatedSpec,
    *,
    quick: bool = False,
    store: bool = True,
    progress: ScanProgress | None = None,
    site_run: ValidatedRun | None = None,
    run_id: str | None = None,
) -> ValidatedFederation:
    """Check and plan a federation. Raise InputError with all faults of spec, model, data and store.

    `quick` and `store` as in `jobs.plan.preflight.validate_run`; a quick check makes no partition.
    `site_run` is the validated run of a site if there is one already.
    With `run_id` the partition of that run is read, if it was made from the same rows.
    """
    site_run = site_run or validate_run(
        make_site_spec(spec), quick=quick, with_store=store, progress=progress
    )
    # That of the sites, if the spec leaves it to the hardware.
    spec = set_rates(set_dtype(spec, site_run.plan.dtype.dtype), site_run.plan.rates)
    scan = site_run.train_scan
    partition, inputs = (None, "") if quick else _find_or_make_partition(spec, site_run, run_id)
    clients = partition.count if partition else _count_clients(spec, scan)
    site_plan, federation_plan = _plan_site_and_traffic(spec, site_run, clients)
    validated_run = replace(site_run, spec=spec.training, plan=site_plan)
    return ValidatedFederation(spec, validated_run, partition, federation_plan, site_run, inputs)


def _count_clients(spec: FederatedSpec, scan: DatasetScan) -> int | None:
    """Return the number of clients as far as a quick check can tell."""
    return len(scan.files) if spec.section.partition == "files" else spec.section.clients


def _find_or_make_partition(
    spec: FederatedSpec, site_run: ValidatedRun, run_id: str | None
) -> tuple[Partition, str]:
    """Return the partition, and the digest of what it is made from."""
    # Imported here because a control plane checks specs too and has no numpy.
    from jobs.federation.learnt_rows import digest_rows, find_learnt_rows
    from jobs.federation.partition import make_partition
    from jobs.federation.partition_file import digest_inputs, find_partition

    scan, learnt = site_run.train_scan, find_learnt_rows(site_run)
    inputs = digest_inputs(spec, scan, digest_rows(learnt))
    if run_id is not None:
        runs = RunStore(open_store(spec.store), run_id)
        partition = find_partition(runs, inputs)
        if partition is not None:
            return partition, inputs
    partition = make_partition(
        scan.files,
        spec.section,
        fmt=scan.format,
        columns=scan.columns,
        task=spec.model.task,
        eval_fraction=spec.data.eval_fraction,
        seed=spec.train.seed,
        learnt=None if learnt is None else learnt.tolist(),
    )
    return partition, inputs


def _plan_site_and_traffic(
    federated_spec: FederatedSpec, validated_run: ValidatedRun, clients: int | None
) -> tuple[Plan, FederationPlan]:
    """Return the plan of a site and that of the federation's traffic. Raise InputError."""
    targets = {name: validated_run.model.linears[name] for name in validated_run.plan.targets}
    plan = _apply_freeze_a(federated_spec, validated_run.plan, targets)
    federation_plan = plan_federation(
        federated_spec.training,
        federated_spec.section,
        list(zip(plan.stages, federated_spec.stage_rounds, strict=True)),
        validated_run.model,
        targets=targets,
        head=validated_run.model.description.count_head_parameters(len(plan.labels)),
        clients=clients,
    )
    assert plan.estimate is not None
    estimate = _scale_to_sites(federated_spec, plan.estimate, federation_plan)
    if estimate.fault:
        remedy = "Use fewer sites, larger machines, or a smaller train.micro_batch_size."
        raise InputError([Fault("cluster.workers", estimate.fault, remedy)])
    plan = replace(plan, estimate=estimate, sharding_reason=estimate.reason)
    return plan, federation_plan


def _apply_freeze_a(
    federated_spec: FederatedSpec, plan: Plan, targets: Mapping[str, tuple[int, int]]
) -> Plan:
    """Count only the factors B as trainable if A is frozen."""
    if not federated_spec.section.freeze_a:
        return plan
    trainable = count_b_entries(federated_spec.method, targets)
    stages = tuple(
        replace(stage, trainable=trainable) if stage.name == "low-rank" else stage
        for stage in plan.stages
    )
    return replace(plan, stages=stages)


def _scale_to_sites(
    spec: FederatedSpec, site: RunEstimate, federation_plan: FederationPlan
) -> RunEstimate:
    """Scale the estimate of one site to all sites, and to the tokens of all clients."""
    resources, sites = describe_resources(spec), spec.workers
    fits = _is_within_memory(site.selected.needed, resources.memory)
    option = replace(site.selected, flows=federation_plan.flows, fits=fits)
    tokens = None if site.tokens is None else site.tokens * spec.section.clients_per_round
    speed = site.speed
    if speed is not None and spec.cluster.machine.tokens_per_second is None:
        # The speed of a run with one worker; a speed in the spec is that of all sites.
        source = speed.source if sites == 1 else f"{speed.source}, on each of {sites} sites"
        speed = replace(speed, tokens_per_second=speed.tokens_per_second * sites, source=source)
    seconds = None if tokens is None or speed is None else tokens / speed.tokens_per_second
    price = resources.price_per_hour
    fault = None
    if option.fits is False and resources.memory is not None:
        needed, available = (f"{size / 1e9:,.1f} GB" for size in (option.needed, resources.memory))
        fault = (
            f"each of {sites} sites needs {needed}, more than the {available} "
            f"{resources.memory_source}"
        )
    return replace(
        site,
        workers=sites,
        nodes=resources.nodes,
        workers_per_node=resources.per_node,
        memory=resources.memory,
        options=(option,),
        reason="every site holds a full copy of the base",
        fault=fault,
        tokens=tokens,
        seconds=seconds,
        cost=None if seconds is None or price is None else price * resources.nodes * seconds / 3600,
        speed=speed,
    )


def _is_within_memory(needed: int, memory: int | None) -> bool | None:
    return None if memory is None else needed <= memory
