"""The choice of the sharding and its reason; options that do not fit, and warnings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.plan.estimate.inputs import EstimateInput, Resources
from jobs.plan.estimate.memory import CONTEXT, MemoryEstimate, estimate_memory
from jobs.plan.estimate.traffic import Flow, estimate_traffic

SHARDINGS = ("replicate", "node", "cluster")
"""Shardings in the order in which they are tried: the one that sends least comes first."""
FREE_SHARE = 0.1
"""Share of a worker's memory that stays free, since an estimate is not exact."""


@dataclass(frozen=True)
class ShardingOption:
    """A sharding of the base, and what it needs."""

    sharding: str
    memory: MemoryEstimate
    flows: tuple[Flow, ...]
    needed: int
    """Memory that a worker must have, in bytes, including the share that stays free."""
    fits: bool | None
    """None if the memory is unknown."""
    is_even: bool
    """Every machine has the same number of workers."""

    def sum_egress_per_step(self, stage: str) -> int:
        """Sum the bytes that leave a machine per optimizer step of a stage, on average."""
        return sum(flow.egress_per_step for flow in self.flows if flow.stage == stage)

    @property
    def egress(self) -> int | None:
        """Return the bytes that leave a machine in the whole run, or None if they are unknown.

        Evaluations are included if their rows have been counted.
        """
        amounts = [
            flow.egress
            for flow in self.flows
            if flow.cause != "evaluation" or flow.egress is not None
        ]
        return None if None in amounts else sum(amount or 0 for amount in amounts)

    def to_json(self) -> dict[str, Any]:
        """Return the option as plain values, including sums."""
        phases = [
            {"name": phase.name, "total": phase.total, "lines": dict(phase.lines)}
            for phase in self.memory.phases
        ]
        flows = [
            dataclasses.asdict(flow)
            | {"total": flow.total, "egress_per_step": flow.egress_per_step, "egress": flow.egress}
            for flow in self.flows
        ]
        return {
            "sharding": self.sharding,
            "peak": self.memory.peak,
            "needed": self.needed,
            "fits": self.fits,
            "egress": self.egress,
            "memory": phases,
            "wire": flows,
        }


@dataclass(frozen=True)
class ShardingChoice:
    """The chosen sharding, the reason, and the fault that forbids it."""

    sharding: str
    reason: str
    fault: str | None = None


def list_options(inputs: EstimateInput) -> tuple[ShardingOption, ...]:
    """Estimate every sharding."""
    return tuple(_estimate_option(inputs, sharding) for sharding in SHARDINGS)


def choose_sharding(
    inputs: EstimateInput, options: Sequence[ShardingOption], requested: str
) -> ShardingChoice:
    """Choose the sharding of the spec, or for `auto` the first that fits."""
    resources = inputs.resources
    if requested != "auto":
        option = next(option for option in options if option.sharding == requested)
        return ShardingChoice(
            requested, "set in the spec", _explain_misfit(resources, option, options)
        )
    if resources.memory is None:
        reason = "auto: the GPU's memory is unknown, set cluster.machine.memory_gb"
        return ShardingChoice(SHARDINGS[0], reason)
    # On one machine `node` equals `cluster`; with one worker per machine it equals `replicate`.
    candidates = [
        option
        for option in options
        if option.is_even and (option.sharding != "node" or _has_node_groups(resources))
    ]
    fitting = next((option for option in candidates if option.fits), None)
    if fitting is None:
        smallest = min(candidates, key=lambda option: option.needed)
        return ShardingChoice(
            smallest.sharding, "auto: no option fits", _describe_shortfall(resources, smallest)
        )
    is_first = fitting is candidates[0]
    phrase = (
        "it fits" if is_first else f"the first option that fits; {candidates[0].sharding} does not"
    )
    return ShardingChoice(fitting.sharding, f"auto: {phrase}")


def list_warnings(inputs: EstimateInput, option: ShardingOption) -> tuple[str, ...]:
    """List warnings about traffic and memory."""
    messages = []
    base = sum(flow.egress_per_step for flow in option.flows if flow.cause == "base")
    gradients = sum(flow.egress_per_step for flow in option.flows if flow.cause == "gradients")
    if not inputs.is_full and base > gradients:
        ratio = f"{base / gradients:,.0f} times" if gradients else "more than"
        messages.append(
            f"the base dominates the traffic: it sends {ratio} the bytes of the adapter's "
            "gradients out of each machine, since it is sharded over all machines. More memory per "
            "worker, or more workers per machine, would keep this traffic inside a machine"
        )
    if inputs.resources.memory is not None and option.sharding == "replicate" and not option.fits:
        messages.append("the unsharded base does not fit into a worker's memory")
    return tuple(messages)


def _estimate_option(inputs: EstimateInput, sharding: str) -> ShardingOption:
    memory, resources = estimate_memory(inputs, sharding), inputs.resources
    used = memory.peak + (0 if resources.cpu else CONTEXT)
    needed = round(used / (1 - FREE_SHARE))
    fits = None if resources.memory is None else needed <= resources.memory
    is_even = sharding != "node" or resources.workers % resources.per_node == 0
    return ShardingOption(
        sharding, memory, estimate_traffic(inputs, sharding), needed, fits, is_even
    )


def _has_node_groups(resources: Resources) -> bool:
    return resources.nodes > 1 and resources.per_node > 1


def _explain_misfit(
    resources: Resources, option: ShardingOption, options: Sequence[ShardingOption]
) -> str | None:
    if not option.is_even:
        return (
            f"{resources.workers} workers do not fill machines of {resources.per_node} evenly, "
            "which `node` requires"
        )
    if option.fits is not False:
        return None
    alternative = next(
        (candidate for candidate in options if candidate.fits and candidate.is_even), None
    )
    return _describe_shortfall(resources, option) + (
        f"; {alternative.sharding} would fit" if alternative else ""
    )


def _describe_shortfall(resources: Resources, option: ShardingOption) -> str:
    assert resources.memory is not None
    excess = option.needed - resources.memory
    return (
        f"{option.sharding} needs {_format_gb(option.needed)} per worker, {_format_gb(excess)} "
        f"more than the {_format_gb(resources.memory)} {resources.memory_source}"
    )


def _format_gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
