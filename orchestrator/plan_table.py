"""The plan as tables: what is trained, what each worker holds, what travels, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.federate.plan import SPEEDS, FederationPlan
from jobs.narrate import workers_text
from jobs.predict.prediction import Prediction
from jobs.preflight import Checked
from jobs.spec import StopSection
from jobs.stopping import in_words
from orchestrator.console import duration_text, say, show_pairs, show_table, size_text
from slora.names import kinds

LINES = (
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
"""The order in which memory is told."""


def show(checked: Checked, federation: FederationPlan | None = None) -> None:
    """Prints the plan for people."""
    how = _how(checked) if federation is None else _sites(checked, federation)
    show_pairs([*_what(checked), *how])
    say("")
    _stages(checked)
    prediction = checked.plan.prediction
    assert prediction is not None
    if federation is not None:
        say("")
        _rounds(federation)
    for table in (_ways, _memory, _wire) if federation is None else (_memory, _wire):
        say("")
        table(prediction)
    say("")
    show_pairs(
        [
            *_cost(prediction, f"{federation.rounds:,} rounds" if federation else None),
            *_ends(checked.spec.train.stop),
            *(("note", f"{line}.") for line in checked.plan.notes),
        ]
    )


def _what(checked: Checked) -> Iterator[tuple[str, str]]:
    plan, model = checked.plan, checked.model
    targets = f"{len(plan.targets)} layers ({', '.join(kinds(plan.targets))})"
    yield "run", f"{plan.name}, {plan.kind}"
    yield "base", f"{model.folder}, {model.architecture}"
    yield "parameters", f"{plan.model_parameters:,} ({size_text(model.bytes)} on disk)"
    yield "targets", targets if plan.targets else "every parameter"
    yield "data", f"{checked.train.format} rows, {size_text(checked.train.bytes)}"


def _how(checked: Checked) -> Iterator[tuple[str, str]]:
    plan, prediction = checked.plan, checked.plan.prediction
    nodes = f" on {prediction.nodes} machines" if prediction and prediction.nodes > 1 else ""
    dealt = f"{workers_text(plan.workers)} x {plan.accumulation} micro-batches"
    yield "workers", f"{plan.workers}{nodes}, {plan.sharding} ({plan.sharding_reason})"
    yield "batch", f"{plan.batch_size} sequences = {dealt} of {plan.micro_batch_size}"


def _sites(checked: Checked, federation: FederationPlan) -> Iterator[tuple[str, str]]:
    plan, sites = checked.plan, federation.sites
    there = "as many as the column names" if federation.clients is None else f"{federation.clients}"
    each = f"{federation.clients_per_round} a round, taking turns on {sites} site"
    yield "clients", f"{there}, {each}{'s' if sites > 1 else ''}"
    yield "rounds", f"{federation.rounds} of {federation.local_steps} local steps"
    dealt = f"{plan.accumulation} micro-batches of {plan.micro_batch_size}"
    yield "batch", f"{plan.batch_size} sequences of a client = {dealt}"


def _stages(checked: Checked) -> None:
    plan = checked.plan
    rows = [
        (
            stage.name,
            "by epochs" if stage.steps is None else f"{stage.steps:,}",
            f"{stage.trainable + plan.head:,}",
            f"{plan.share(stage):.2%}",
            f"{stage.learning_rate:g}",
        )
        for stage in plan.stages
    ]
    headers = ("stage", "steps", "trainable", "share", "learning rate")
    show_table(rows, headers=headers, right=headers[1:])


def _rounds(found: FederationPlan) -> None:
    """What one client moves in a round and how long its link is busy; then all of it."""
    rows = [
        (
            f"{stage.name}, a client",
            f"{stage.rounds:,}",
            size_text(stage.down),
            size_text(stage.up),
            *(duration_text(stage.seconds(speed)) for speed in SPEEDS),
        )
        for stage in found.stages
    ]
    times = (duration_text(found.seconds(speed)) for speed in SPEEDS)
    rows.append(
        ("all clients", f"{found.rounds:,}", size_text(found.down), size_text(found.up), *times)
    )
    right = ("rounds", "down", "up", *(f"{speed} Mbit/s" for speed in SPEEDS))
    say("What a round moves, and how long it takes at the speed of a client's link:")
    show_table(rows, headers=("stage", *right), right=right)


def _ways(found: Prediction) -> None:
    """The three ways of holding the base, side by side."""
    stages = list(dict.fromkeys(flow.stage for way in found.ways for flow in way.flows))
    rows = [
        (
            f"{way.sharding}{' *' if way.sharding == found.sharding else ''}",
            size_text(way.memory.peak),
            {True: "yes", False: "no", None: "unknown"}[way.fits],
            *(size_text(way.out_a_step(stage)) for stage in stages),
            "by epochs" if way.out is None else size_text(way.out),
        )
        for way in found.ways
    ]
    right = ("peak a worker", *(f"{stage} step" for stage in stages), "whole run")
    headers = ("sharding", right[0], "fits", *right[1:])
    say(f"Memory of a worker{_limit(found)}, and bytes that leave a machine (* is taken):")
    show_table(rows, headers=headers, right=right)


def _limit(found: Prediction) -> str:
    return f", of {size_text(found.memory)}" if found.memory is not None else ""


def _memory(found: Prediction) -> None:
    """The lines of the way that is taken, a column for each phase."""
    phases = found.way.memory.phases
    rows = [
        (line, *(_cell(phase.lines.get(line)) for phase in phases))
        for line in LINES
        if any(line in phase.lines for phase in phases)
    ]
    rows.append(("all", *(size_text(phase.total) for phase in phases)))
    names = tuple(phase.name for phase in phases)
    show_table(rows, headers=("memory", *names), right=names)


def _cell(size: int | None) -> str:
    return "" if size is None else size_text(size)


def _wire(found: Prediction) -> None:
    """What the busiest worker of the way that is taken sends."""
    flows = found.way.flows
    if not flows:
        say("Nothing travels: there is one worker.")
        return
    # All that a client sends or gets leaves its machine.
    clients = any(flow.cause == "down" for flow in flows)
    rows = [
        (
            f"{flow.cause}, {flow.stage}",
            size_text(flow.sent),
            "?" if flow.times is None else f"{flow.times:,}",
            "?" if flow.total is None else size_text(flow.total),
            *(() if clients else ("?" if flow.out is None else size_text(flow.out),)),
        )
        for flow in flows
    ]
    right = ("each time", "times", "in all", *(() if clients else ("leaves a machine",)))
    show_table(rows, headers=("travels" if clients else "a worker sends", *right), right=right)


def _ends(stop: StopSection) -> Iterator[tuple[str, str]]:
    if told := in_words(stop):
        yield "may end at", "; ".join(told)


def _cost(found: Prediction, rounds: str | None) -> Iterator[tuple[str, str]]:
    if found.tokens is not None:
        yield "tokens", f"{found.tokens:,} at most, in {rounds or f'{found.steps:,} steps'}"
    yield (
        "checkpoint",
        f"{size_text(found.checkpoint)} at most; the adapter about {size_text(found.adapter)}",
    )
    if found.speed is None:
        yield "time", "not known: no run of its kind yet, nor cluster.machine.tokens_per_second"
    elif found.seconds is not None:
        speed = f"{found.speed.tokens_per_second:,.0f} tokens/s {found.speed.source}"
        yield "time", f"{duration_text(found.seconds)} of steps, at {speed}"
    if found.cost is not None:
        machines = f"{found.nodes} machine{'s' if found.nodes > 1 else ''}"
        yield "cost", f"{found.cost:,.2f} for {machines}, steps alone"
