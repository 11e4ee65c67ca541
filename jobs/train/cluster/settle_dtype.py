"""The dtype of a run with `model.dtype: auto`, settled once on the machines of its workers.

The plan chose for the machine that made it. The driver asks every machine of the cluster that a
worker may run on; bfloat16 takes all of them. The choice is recorded in the run's folder, and a
later attempt uses the same, wherever it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.plan.dtype_choice import (
    AUTO,
    DtypeChoice,
    ProbeShape,
    choose_dtype,
    choose_for_machine,
    make_probe_shape,
)
from jobs.plan.preflight import ValidatedRun
from jobs.plan.settled_dtype import apply_dtype, read_settled_dtype, record_settled_dtype
from jobs.spec.schema import RunSpec
from jobs.spec.sections.cluster import ClusterSection
from jobs.store.runs.run_store import RunStore

ANSWER_TIMEOUT_S = 120.0
"""Seconds for a machine's answer, most of which it loads torch."""


def settle_dtype(validated: ValidatedRun, spec: RunSpec, runs: RunStore) -> ValidatedRun:
    """Return the run with its settled dtype; `spec` is as the user wrote it. Ray is connected.

    Raise InputError if the run's plan is impossible in that dtype.
    """
    if spec.model.dtype != AUTO:
        return validated
    choice = read_settled_dtype(runs)
    if choice is None:
        choice = record_settled_dtype(choose_on_cluster(validated, spec), runs)
    return apply_dtype(validated, choice)


def choose_on_cluster(validated: ValidatedRun, spec: RunSpec) -> DtypeChoice:
    """Return the choice of all machines of the cluster that have room for a worker."""
    nodes = [node for node in ray.nodes() if node["Alive"] and _has_room(node, spec.cluster)]
    here = ray.get_runtime_context().get_node_id()
    if not nodes or [node["NodeID"] for node in nodes] == [here]:
        # Without the four seconds that a new process of Ray takes.
        return choose_dtype(spec, validated.model)
    shape = make_probe_shape(spec, validated.model.linears)
    return merge_choices(ask_nodes(nodes, shape, on_gpu=spec.cluster.gpus_per_worker > 0))


def merge_choices(choices: Mapping[str, DtypeChoice | None]) -> DtypeChoice:
    """Return one choice for machines, by name: float32 unless all have chosen bfloat16.

    None stands for a machine that did not answer.
    """
    for name, choice in sorted(choices.items()):
        if choice is None or choice.dtype == "float32":
            reason = f"{name}: {choice.reason if choice else 'no answer'}"
            return replace(choice or DtypeChoice("float32", is_auto=True), reason=reason)
    slowest = min(filter(None, choices.values()), key=lambda choice: choice.speedup or 0.0)
    if slowest.speedup is None or len(choices) == 1:
        return slowest
    gain = f"{slowest.speedup:.1f} x faster than float32"
    return replace(slowest, reason=f"{gain} on the slowest of {len(choices)} machines")


def ask_nodes(
    nodes: Sequence[Mapping[str, Any]], shape: ProbeShape, *, on_gpu: bool
) -> dict[str, DtypeChoice | None]:
    """Return the choice of each machine by its name, all at once; None without an answer."""
    ask = ray.remote(num_cpus=0)(_choose_here)
    pending = {}
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ask.options(scheduling_strategy=strategy).remote(shape, on_gpu)
        pending[task] = f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
    ready, late = ray.wait(list(pending), num_returns=len(pending), timeout=ANSWER_TIMEOUT_S)
    for task in late:
        ray.cancel(task, force=True)
    return {name: _get_answer(task) if task in ready else None for task, name in pending.items()}


def _has_room(node: Mapping[str, Any], cluster: ClusterSection) -> bool:
    resources = node["Resources"]
    needs = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
    return all(resources.get(name, 0) >= count for name, count in needs.items())


def _choose_here(shape: ProbeShape, on_gpu: bool) -> DtypeChoice:
    return choose_for_machine(shape, Path("."), on_gpu=on_gpu)


def _get_answer(task: Any) -> DtypeChoice | None:
    try:
        choice: DtypeChoice = ray.get(task)
    except RayError:
        return None
    return choice
