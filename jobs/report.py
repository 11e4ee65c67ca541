"""What a run came to, from its own papers: a table, and the answers side by side. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.federate.rounds import clients_of, rounds_journal
from jobs.narrate import line_of, number, place, plain, steps_text
from jobs.store.runs import RunStore

CLIENTS_SHOWN = 20
DECISIONS = ("nothing new", "promoted", "kept")
"""How a retraining ends."""


def outcome(runs: RunStore) -> dict[str, Any]:
    """The run's figures as plain values: evaluations, plan, ledger, adapter, samples."""
    events, _ = runs.events.tail(0)
    found: dict[str, Any] = {"run": runs.run_id, "evaluations": {}, "samples": {}}
    for event in events:
        kind = event.get("event")
        if kind == "evaluated":
            found["evaluations"][event["at"]] = event["metrics"]
        elif kind == "samples":
            found["samples"][event["at"]] = event["samples"]
        elif kind == "started":
            found["plan"] = event["plan"]
            if "local_steps" in event:
                found["local_steps"] = event["local_steps"]
        elif kind == "handoff":
            found["kept"] = event["kept"]
        elif kind == "published":
            found |= {key: event[key] for key in ("adapter", "form", "bytes", "place", "ledger")}
        elif kind in ("gate", *DECISIONS):
            told = {key: value for key, value in event.items() if key not in ("event", "time")}
            found["gate" if kind == "gate" else "decision"] = {"event": kind, **told}
    if "local_steps" in found:
        lines, _ = rounds_journal(runs).tail(0)
        found["clients"] = [dataclasses.asdict(client) for client in clients_of(lines)]
    return found


def summary(runs: RunStore) -> RenderableType:
    """The outcome as one would like to read it in a terminal of 80 columns."""
    found = outcome(runs)
    parts: list[RenderableType] = []
    if found["evaluations"]:
        parts.append(_evaluations(found))
    parts.append(_facts(found))
    if found.get("clients"):
        parts.append(_clients(found["clients"]))
    parts += _retrained(found)
    if found["samples"].get("end"):
        parts.append(_samples(found["samples"]))
    return Group(*parts)


def _evaluations(found: Mapping[str, Any]) -> Table:
    table = Table(title="held-out data", title_justify="left", title_style="bold")
    second = "accuracy" if "accuracy" in next(iter(found["evaluations"].values())) else "perplexity"
    for column in ("", "loss", second):
        table.add_column(column, justify="left" if not column else "right")
    for at, metrics in found["evaluations"].items():
        shown = number(metrics[second], ".1%" if second == "accuracy" else ".2f")
        table.add_row(place(at), number(metrics["loss"], ".4f"), shown)
    return table


def _facts(found: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    plan, ledger = found.get("plan", {}), found.get("ledger", {})
    for stage in plan.get("stages", ()):
        trained = stage["trainable"] + plan["head"]
        share = f"{trained:,} parameters, {stage['share']:.2%} of {plan['model_parameters']:,}"
        length = steps_text(stage["steps"], found.get("local_steps"))
        table.add_row(f"{stage['name']} stage", f"{length}, {share}")
    if "kept" in found:
        kept = number(found["kept"], ".1%")
        table.add_row("hand-off", f"{kept} of the update's energy kept by the rank")
    if ledger:
        speed = ledger["tokens"] / ledger["seconds"] if ledger["seconds"] else 0.0
        steps = f"{ledger['seconds']:.0f} s of steps, {speed:,.0f} tokens/s"
        table.add_row("tokens", f"{ledger['tokens']:,} in {steps}")
        table.add_row("adapter", f"{found['adapter']}, {found['bytes'] / 1e6:.1f} MB")
        table.add_row("place", str(found["place"]))
    return table


def _clients(clients: Sequence[Mapping[str, Any]]) -> Table:
    """Of a federation: who took part, and what that cost each."""
    most = sorted(clients, key=lambda one: (one["down"] + one["up"], one["rounds"]), reverse=True)
    shown = most[:CLIENTS_SHOWN]
    among = "" if len(shown) == len(clients) else f", {len(shown)} of them; --json has all"
    title = f"{len(clients)} clients, the busiest first{among}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("client", overflow="ellipsis", no_wrap=True, max_width=24)
    for column in ("rows", "rounds", "left out", "MB down", "MB up", "last loss"):
        table.add_column(column, justify="right")
    for one in shown:
        megabytes = (f"{one[way] / 1e6:,.1f}" for way in ("down", "up"))
        rows = "" if one["rows"] is None else f"{one['rows']:,}"
        loss = "" if one["loss"] is None else f"{one['loss']:.3f}"
        counts = (str(one["rounds"]), str(one["left_out"] or ""))
        table.add_row(Text(plain(one["name"])), rows, *counts, *megabytes, loss)
    return table


def _retrained(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The gate's table, and what was decided by it."""
    if (gate := found.get("gate")) is not None:
        title = f"gate by {gate['metric']}, {gate['adapter']} beside {gate['baseline'] or 'none'}"
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in ("asked", "rows", "found", "limit", ""):
            table.add_column(column, justify="right" if column in ("found", "limit") else "left")
        for line in gate["lines"]:
            figures = (_figure(line[key]) for key in ("found", "limit"))
            table.add_row(line["asked"], line["rows"], *figures, "yes" if line["holds"] else "no")
        yield table
    if (decision := found.get("decision")) is not None:
        yield Text(str(line_of(decision)))


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _samples(samples: Mapping[str, list[dict[str, str]]]) -> Table:
    table = Table(title="answers", title_justify="left", title_style="bold", show_lines=True)
    for column in ("asked", "before", "after"):
        table.add_column(column, overflow="fold", ratio=1)
    before = samples.get("before", samples["end"])
    for first, last in zip(before, samples["end"], strict=False):
        table.add_row(*(Text(text) for text in (first["prompt"], first["answer"], last["answer"])))
    return table
