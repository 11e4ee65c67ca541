"""The report of a run, from its own files: a table, and the answers side by side. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.federation.round_log import open_round_log, sum_by_client
from jobs.plan.attention_choice import describe_attention
from jobs.plan.token_tally import make_tally
from jobs.spec.metrics import FORMATS, list_measures, name_measure
from jobs.store.runs.run_store import RunStore
from jobs.train.monitor.event_text import (
    escape_control,
    format_dtype,
    format_event,
    format_kernels,
    format_loss,
    format_number,
    format_packing,
    format_rates,
    format_retained,
    format_stage_length,
    name_evaluation,
)
from jobs.train.monitor.phases import collect_starts

MAX_TABLE_CLIENTS = 20
BAR_WIDTH = 30
"""Characters of the bar of a start's longest phase."""
HANDOFF_KEYS = ("energy_share", "output_share", "layers")
"""What a hand-off retained: of all layers together, and of each."""
DECISIONS = ("no_new_data", "promoted", "promotion_requested", "not_promoted")
"""The events that end a retraining."""


def collect_outcome(runs: RunStore) -> dict[str, Any]:
    """Return the run's figures as plain values: evaluations, plan, ledger, adapter, samples."""
    events, _ = runs.events.tail(0)
    outcome: dict[str, Any] = {"run": runs.run_id, "evaluations": {}, "samples": {}}
    if starts := collect_starts(events):
        outcome["starts"] = [start.to_json() for start in starts]
    for event in events:
        kind = event.get("event")
        if kind == "evaluated":
            outcome["evaluations"][event["at"]] = event["metrics"]
        elif kind == "samples":
            outcome["samples"][event["at"]] = event["samples"]
        elif kind == "started":
            outcome["plan"] = event["plan"]
            if "local_steps" in event:
                outcome["local_steps"] = event["local_steps"]
        elif kind == "kernels_chosen":
            outcome["kernels"] = event["kernels"]
        elif kind == "loss_settled":
            outcome["loss"] = {"mode": event["mode"], "reason": event["reason"]}
        elif kind == "handoff":
            outcome |= {key: event[key] for key in HANDOFF_KEYS if key in event}
        elif kind == "published":
            outcome |= {key: event[key] for key in ("adapter", "form", "bytes", "url", "ledger")}
        elif kind in ("gate", *DECISIONS):
            details = {key: value for key, value in event.items() if key not in ("event", "time")}
            outcome["gate" if kind == "gate" else "decision"] = {"event": kind, **details}
    if "local_steps" in outcome:
        lines, _ = open_round_log(runs).tail(0)
        outcome["clients"] = [dataclasses.asdict(client) for client in sum_by_client(lines)]
    return outcome


def render_summary(runs: RunStore) -> RenderableType:
    """Render the outcome for a terminal of 80 columns."""
    outcome = collect_outcome(runs)
    parts: list[RenderableType] = []
    if outcome["evaluations"]:
        parts.append(_render_evaluations(outcome))
    parts.append(_render_facts(outcome))
    parts += [render_start(start) for start in outcome.get("starts", ())[-1:]]
    if outcome.get("clients"):
        parts.append(_render_clients(outcome["clients"]))
    parts += _render_decision(outcome)
    if outcome["samples"].get("end"):
        parts.append(_render_samples(outcome["samples"]))
    return Group(*parts)


def _render_evaluations(outcome: Mapping[str, Any]) -> Table:
    table = Table(title="held-out data", title_justify="left", title_style="bold")
    measures = list_measures(next(iter(outcome["evaluations"].values())))
    for column in ("", "loss", *map(name_measure, measures)):
        table.add_column(column, justify="left" if not column else "right")
    for at, metrics in outcome["evaluations"].items():
        texts = [format_number(metrics[name], FORMATS[name]) for name in measures]
        table.add_row(name_evaluation(at), format_number(metrics["loss"], ".4f"), *texts)
    return table


def _render_facts(outcome: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    plan, ledger = outcome.get("plan", {}), outcome.get("ledger", {})
    for key, tally in plan.get("tallies", {}).items():
        table.add_row(key, Text(escape_control(make_tally(tally).describe())))
    for stage in plan.get("stages", ()):
        trainable = stage["trainable"] + plan["head"]
        share = f"{trainable:,} parameters, {stage['share']:.2%} of {plan['model_parameters']:,}"
        length = format_stage_length(stage["steps"], outcome.get("local_steps"))
        table.add_row(f"{stage['name']} stage", f"{length}, {share}")
    if "dtype" in plan:
        table.add_row("dtype", format_dtype(plan["dtype"]))
    if "rates" in plan:
        table.add_row("rates", format_rates(plan["rates"], plan["stages"]))
    if "packing" in plan:
        table.add_row("packing", format_packing(plan["packing"]))
    if "kernels" in outcome:
        table.add_row("sparse kernels", Text(escape_control(format_kernels(outcome["kernels"]))))
    if plan.get("attention"):
        table.add_row("attention", describe_attention(plan["attention"]))
    if "loss" in outcome:
        table.add_row("loss", format_loss(outcome["loss"]))
    if "energy_share" in outcome:
        shares = outcome["energy_share"], outcome.get("output_share")
        table.add_row("hand-off", format_retained(*shares))
    if ledger:
        speed = ledger["tokens"] / ledger["seconds"] if ledger["seconds"] else 0.0
        steps = f"{ledger['seconds']:.0f} s of steps, {speed:,.0f} tokens/s"
        table.add_row("tokens", f"{ledger['tokens']:,} in {steps}")
        table.add_row("adapter", f"{outcome['adapter']}, {outcome['bytes'] / 1e6:.1f} MB")
        table.add_row("url", str(outcome["url"]))
    return table


def render_start(start: Mapping[str, Any]) -> Table:
    """Render the phases of a start, the longest with the longest bar."""
    end = "the first step ended" if start["complete"] else "now"
    attempt = f", attempt {start['attempt']}" if start["attempt"] else ""
    title = f"start{attempt}: {start['wait_s']:.1f} s from the submission until {end}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for column in ("phase", "seconds", ""):
        table.add_column(column, justify="right" if column == "seconds" else "left", no_wrap=True)
    longest = max((*start["phases"].values(), 0.001))
    for phase, seconds in start["phases"].items():
        table.add_row(phase, f"{seconds:.2f}", "\u2588" * round(BAR_WIDTH * seconds / longest))
    return table


def _render_clients(clients: Sequence[Mapping[str, Any]]) -> Table:
    """Render a federation's clients: their part, and its cost."""
    ranked = sorted(
        clients, key=lambda client: (client["down"] + client["up"], client["rounds"]), reverse=True
    )
    visible = ranked[:MAX_TABLE_CLIENTS]
    note = "" if len(visible) == len(clients) else f", {len(visible)} are shown; --json lists all"
    title = f"{len(clients)} clients, the busiest first{note}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("client", overflow="ellipsis", no_wrap=True, max_width=24)
    for column in ("rows", "rounds", "dropped", "MB down", "MB up", "last loss"):
        table.add_column(column, justify="right")
    for client in visible:
        megabytes = (f"{client[direction] / 1e6:,.1f}" for direction in ("down", "up"))
        rows = "" if client["rows"] is None else f"{client['rows']:,}"
        loss = "" if client["loss"] is None else f"{client['loss']:.3f}"
        counts = (str(client["rounds"]), str(client["dropped_rounds"] or ""))
        table.add_row(Text(escape_control(client["name"])), rows, *counts, *megabytes, loss)
    return table


def _render_decision(outcome: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Render the gate's table, and the decision."""
    if (gate := outcome.get("gate")) is not None:
        title = (
            f"gate on {gate['metric']}: {gate['adapter']}, baseline {gate['baseline'] or 'none'}"
        )
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in ("requirement", "rows", "value", "limit", "passed"):
            table.add_column(column, justify="right" if column in ("value", "limit") else "left")
        for check in gate["checks"]:
            figures = (_format_figure(check[key]) for key in ("value", "limit"))
            passed = "yes" if check["passed"] else "no"
            table.add_row(check["requirement"], check["rows"], *figures, passed)
        yield table
    if (decision := outcome.get("decision")) is not None:
        yield Text(str(format_event(decision)))


def _format_figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _render_samples(samples: Mapping[str, list[dict[str, str]]]) -> Table:
    table = Table(title="answers", title_justify="left", title_style="bold", show_lines=True)
    for column in ("prompt", "before", "after"):
        table.add_column(column, overflow="fold", ratio=1)
    before = samples.get("before", samples["end"])
    for first, last in zip(before, samples["end"], strict=False):
        table.add_row(*(Text(text) for text in (first["prompt"], first["answer"], last["answer"])))
    return table
