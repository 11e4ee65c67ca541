"""Everything that can be known of a federation before a site starts. No torch; numpy only to deal.

What one site holds is planned as a run of one worker; what travels, as rounds and clients tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.data.survey import Progress, Survey
from jobs.errors import Fault, InputError
from jobs.federate.door import Federated, alone
from jobs.federate.plan import FederationPlan, foresee_federation, only_b
from jobs.plan import Plan
from jobs.predict.machine import place_of
from jobs.predict.prediction import Prediction
from jobs.preflight import Checked, check

if TYPE_CHECKING:
    from jobs.federate.partition import Partition


@dataclass(frozen=True)
class FederatedChecked:
    """A federation that can be run, and what was learnt while checking it."""

    asked: Federated
    checked: Checked
    """Of the spec as asked; its plan is that of one site."""
    partition: Partition | None
    """None after a quick look, which deals no rows."""
    plan: FederationPlan

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values, the federation's beside it: what a run records."""
        return {**self.checked.plan.to_json(), "federation": self.plan.to_json()}


def check_federated(
    found: Federated,
    *,
    quick: bool = False,
    store: bool = True,
    progress: Progress | None = None,
) -> FederatedChecked:
    """Raises InputError with every fault of the spec, the model, the data and the store.

    `quick` and `store` as in `jobs.preflight.check`; a quick look deals no rows.
    """
    checked = check(alone(found.spec), quick=quick, store=store, progress=progress)
    partition = None if quick else _partition(found, checked.train)
    clients = partition.count if partition else _clients(found, checked.train)
    plan, federation = _planned(found, checked, clients)
    checked = replace(checked, spec=found.spec, plan=plan)
    return FederatedChecked(found, checked, partition, federation)


def _clients(found: Federated, train: Survey) -> int | None:
    """How many there are, as far as a quick look tells."""
    by_file = found.section.partition == "files"
    return len(train.files) if by_file else found.section.clients


def _partition(found: Federated, train: Survey) -> Partition:
    # Here, because a control plane has no numpy, and checks specs too.
    from jobs.federate.partition import make_partition

    spec = found.spec
    return make_partition(
        train.files,
        found.section,
        fmt=train.format,
        task=spec.model.task,
        eval_fraction=spec.data.eval_fraction,
        seed=spec.train.seed,
    )


def _planned(
    found: Federated, checked: Checked, clients: int | None
) -> tuple[Plan, FederationPlan]:
    """The plan of a site with what its federation sends. Raises InputError."""
    targets = {name: checked.model.linears[name] for name in checked.plan.targets}
    plan = _frozen(found, checked.plan, targets)
    federation = foresee_federation(
        found.spec,
        found.section,
        list(zip(plan.stages, found.stage_rounds, strict=True)),
        checked.model,
        targets=targets,
        head=plan.head,
        clients=clients,
    )
    assert plan.prediction is not None
    prediction = _together(found, plan.prediction, federation)
    if prediction.fault:
        remedy = "Use fewer sites, larger machines, or a smaller train.micro_batch_size."
        raise InputError([Fault("cluster.workers", prediction.fault, remedy)])
    reason = prediction.reason
    return replace(plan, prediction=prediction, sharding_reason=reason), federation


def _frozen(found: Federated, plan: Plan, targets: Mapping[str, tuple[int, int]]) -> Plan:
    """Where A is frozen, only B of the factors is trained."""
    if not found.section.freeze_a:
        return plan
    trained = only_b(found.spec.method, targets)
    stages = tuple(
        replace(stage, trainable=trained) if stage.name == "low-rank" else stage
        for stage in plan.stages
    )
    return replace(plan, stages=stages)


def _together(found: Federated, one: Prediction, federation: FederationPlan) -> Prediction:
    """From what one site alone takes to all of them, and every client's tokens."""
    place, sites = place_of(found.spec), found.spec.workers
    way = replace(one.way, flows=federation.flows, fits=_fits(one.way.needed, place.memory))
    tokens = None if one.tokens is None else one.tokens * found.section.clients_per_round
    speed = one.speed
    if speed is not None and found.spec.cluster.machine.tokens_per_second is None:
        # What a run of one worker had; what the spec says is of all sites already.
        source = speed.source if sites == 1 else f"{speed.source}, on each of {sites} sites"
        speed = replace(speed, tokens_per_second=speed.tokens_per_second * sites, source=source)
    seconds = None if tokens is None or speed is None else tokens / speed.tokens_per_second
    price = place.price_per_hour
    fault = None
    if way.fits is False and place.memory is not None:
        needed, there = (f"{size / 1e9:,.1f} GB" for size in (way.needed, place.memory))
        fault = f"each of {sites} sites needs {needed}, and has {there} {place.memory_from}"
    return replace(
        one,
        workers=sites,
        nodes=place.nodes,
        workers_per_node=place.per_node,
        memory=place.memory,
        ways=(way,),
        reason="every site holds the base whole",
        fault=fault,
        tokens=tokens,
        seconds=seconds,
        cost=None if seconds is None or price is None else price * place.nodes * seconds / 3600,
        speed=speed,
    )


def _fits(needed: int, memory: int | None) -> bool | None:
    return None if memory is None else needed <= memory
