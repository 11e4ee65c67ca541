"""The plan as tables: stages, memory of a worker, traffic, time and cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from jobs.federation.federation_plan import LINK_SPEEDS, FederationPlan
from jobs.plan.attention_choice import describe_attention
from jobs.plan.data_report import list_data_lines
from jobs.plan.estimate.estimate import RunEstimate
from jobs.plan.preflight import ValidatedRun
from jobs.spec.sections.training import StopSection
from jobs.train.early_stopping import describe_stop
from jobs.train.monitor.event_text import format_dtype, format_packing, format_rates, format_workers
from orchestrator.cli.console import (
    format_duration,
    format_size,
    print_line,
    show_pairs,
    show_table,
)
from slora.layers.patterns import list_layer_kinds

MEMORY_LINES = (
    *(
        "runtime",
        "base",
        "files",
        "gathered",
        "trained",
        "gradients",
        "optimiser",
        "masks",
        "values",
    ),
    *("factors", "singular vectors", "activations", "logits", "snapshot", "allocator"),
)
"""The lines of the memory table, in order."""


def show_plan(checked: ValidatedRun, federation: FederationPlan | None = None) -> None:
    """Print the plan as tables."""
    layout = (
        _describe_workers(checked) if federation is None else _describe_sites(checked, federation)
    )
    show_pairs([*_describe_run(checked), *layout])
    print_line("")
    _show_stages(checked)
    estimate = checked.plan.estimate
    assert estimate is not None
    if federation is not None:
        print_line("")
        _show_rounds(federation)
    for table in (
        (_show_sharding_options, _show_memory, _show_traffic)
        if federation is None
        else (_show_memory, _show_traffic)
    ):
        print_line("")
        table(estimate)
    print_line("")
    show_pairs(
        [
            *_describe_cost(estimate, f"{federation.rounds:,} rounds" if federation else None),
            *_describe_stop(checked.spec.train.stop),
            *(("note", f"{line}.") for line in checked.plan.notes),
        ]
    )


def _describe_run(checked: ValidatedRun) -> Iterator[tuple[str, str]]:
    plan, model = checked.plan, checked.model
    targets = f"{len(plan.targets)} layers ({', '.join(list_layer_kinds(plan.targets))})"
    yield "run", f"{plan.name}, {plan.kind}"
    yield "base", f"{model.folder}, {model.architecture}"
    yield "parameters", f"{plan.model_parameters:,} ({format_size(model.bytes)} on disk)"
    yield "targets", targets if plan.targets else "every parameter"
    yield "data", f"{checked.train_scan.format} rows, {format_size(checked.train_scan.bytes)}"
    yield from list_data_lines(checked)
    for key, tally in plan.tallies.items():
        yield f"{key.removeprefix('data.')} tokens", tally.describe()
    yield "dtype", format_dtype(asdict(plan.dtype))
    yield (
        "rates",
        format_rates(asdict(plan.rates), [asdict(stage) for stage in plan.stages]),
    )
    yield "packing", format_packing(asdict(plan.packing))
    yield "attention", describe_attention(plan.attention)


def _describe_workers(checked: ValidatedRun) -> Iterator[tuple[str, str]]:
    plan, estimate = checked.plan, checked.plan.estimate
    nodes = f" on {estimate.nodes} machines" if estimate and estimate.nodes > 1 else ""
    split_text = f"{format_workers(plan.workers)} x {plan.accumulation} micro-batches"
    yield "workers", f"{plan.workers}{nodes}, {plan.sharding} ({plan.sharding_reason})"
    yield "batch", f"{plan.batch_size} sequences = {split_text} of {plan.micro_batch_size}"


def _describe_sites(checked: ValidatedRun, federation: FederationPlan) -> Iterator[tuple[str, str]]:
    plan, sites = checked.plan, federation.sites
    client_count = (
        "one per value of the column" if federation.clients is None else f"{federation.clients}"
    )
    participation = f"{federation.clients_per_round} per round, in turn on {sites} site"
    yield "clients", f"{client_count}, {participation}{'s' if sites > 1 else ''}"
    yield "rounds", f"{federation.rounds} of {federation.local_steps} local steps"
    split_text = f"{plan.accumulation} micro-batches of {plan.micro_batch_size}"
    yield "batch", f"{plan.batch_size} sequences of a client = {split_text}"


def _show_stages(checked: ValidatedRun) -> None:
    plan = checked.plan
    rows = [
        (
            stage.name,
            "by epochs" if stage.steps is None else f"{stage.steps:,}",
            f"{stage.trainable + plan.head:,}",
            f"{plan.compute_share(stage):.2%}",
            f"{stage.learning_rate:g}",
            *((f"{stage.head_learning_rate:g}",) if stage.head_learning_rate is not None else ()),
        )
        for stage in plan.stages
    ]
    head = ("head's rate",) if plan.stages[0].head_learning_rate is not None else ()
    headers = ("stage", "steps", "trainable", "share", "learning rate", *head)
    show_table(rows, headers=headers, right=headers[1:])


def _show_rounds(federation: FederationPlan) -> None:
    """Print one client's traffic in a round and its time on the link, and the totals."""
    rows = [
        (
            f"{stage.name}, per client",
            f"{stage.rounds:,}",
            format_size(stage.down),
            format_size(stage.up),
            *(format_duration(stage.estimate_seconds(speed)) for speed in LINK_SPEEDS),
        )
        for stage in federation.stages
    ]
    times = (format_duration(federation.estimate_seconds(speed)) for speed in LINK_SPEEDS)
    rows.append(
        (
            "all clients",
            f"{federation.rounds:,}",
            format_size(federation.down),
            format_size(federation.up),
            *times,
        )
    )
    right = ("rounds", "down", "up", *(f"{speed} Mbit/s" for speed in LINK_SPEEDS))
    print_line("Traffic and duration of a round, by the speed of a client's link:")
    show_table(rows, headers=("stage", *right), right=right)


def _show_sharding_options(estimate: RunEstimate) -> None:
    """Print the three ways to shard the base side by side."""
    stages = list(dict.fromkeys(flow.stage for option in estimate.options for flow in option.flows))
    rows = [
        (
            f"{option.sharding}{' *' if option.sharding == estimate.sharding else ''}",
            format_size(option.memory.peak),
            {True: "yes", False: "no", None: "unknown"}[option.fits],
            *(format_size(option.sum_egress_per_step(stage)) for stage in stages),
            "by epochs" if option.egress is None else format_size(option.egress),
        )
        for option in estimate.options
    ]
    right = ("peak memory", *(f"{stage} step" for stage in stages), "full run")
    headers = ("sharding", right[0], "fits", *right[1:])
    limit = _format_limit(estimate)
    print_line(f"Memory per worker{limit}, traffic out of a machine (* is selected):")
    show_table(rows, headers=headers, right=right)


def _format_limit(estimate: RunEstimate) -> str:
    return f" (limit {format_size(estimate.memory)})" if estimate.memory is not None else ""


def _show_memory(estimate: RunEstimate) -> None:
    """Print the memory of the selected sharding, a column per phase."""
    phases = estimate.selected.memory.phases
    rows = [
        (line, *(_format_cell(phase.lines.get(line)) for phase in phases))
        for line in MEMORY_LINES
        if any(line in phase.lines for phase in phases)
    ]
    rows.append(("total", *(format_size(phase.total) for phase in phases)))
    names = tuple(phase.name for phase in phases)
    show_table(rows, headers=("memory", *names), right=names)


def _format_cell(size: int | None) -> str:
    return "" if size is None else format_size(size)


def _show_traffic(estimate: RunEstimate) -> None:
    """Print the traffic of the busiest worker under the selected sharding."""
    flows = estimate.selected.flows
    if not flows:
        print_line("There is no traffic: the run has one worker.")
        return
    # All traffic of a client leaves its machine.
    clients = any(flow.cause == "down" for flow in flows)
    rows = [
        (
            f"{flow.cause}, {flow.stage}",
            format_size(flow.sent),
            "?" if flow.times is None else f"{flow.times:,}",
            "?" if flow.total is None else format_size(flow.total),
            *(() if clients else ("?" if flow.egress is None else format_size(flow.egress),)),
        )
        for flow in flows
    ]
    right = ("each time", "times", "total", *(() if clients else ("out of a machine",)))
    show_table(rows, headers=("traffic" if clients else "sent by a worker", *right), right=right)


def _describe_stop(stop: StopSection) -> Iterator[tuple[str, str]]:
    if conditions := describe_stop(stop):
        yield "may stop at", "; ".join(conditions)


def _describe_cost(estimate: RunEstimate, rounds: str | None) -> Iterator[tuple[str, str]]:
    if estimate.tokens is not None:
        yield (
            "tokens",
            f"{estimate.tokens:,} at most, in {rounds or f'{estimate.steps:,} steps'}",
        )
    yield (
        "checkpoint",
        f"{format_size(estimate.checkpoint)} at most; "
        f"the adapter about {format_size(estimate.adapter)}",
    )
    if estimate.speed is None:
        yield "time", "unknown: set cluster.machine.tokens_per_second, or run a similar spec first"
    elif estimate.seconds is not None:
        speed = f"{estimate.speed.tokens_per_second:,.0f} tokens/s {estimate.speed.source}"
        yield "time", f"{format_duration(estimate.seconds)} of steps, at {speed}"
    if estimate.cost is not None:
        machines = f"{estimate.nodes} machine{'s' if estimate.nodes > 1 else ''}"
        yield "cost", f"{estimate.cost:,.2f} for {machines}, steps only"
