"""A run's events as lines for people who read a log. Pure: an event in, a line or nothing out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

PLACES = {
    "before": "before training",
    "sparse": "after the sparse stage",
    "handoff": "after the hand-off",
    "end": "at the end",
}
"""What each evaluation of a run is called."""


def place(at: str) -> str:
    """An evaluation's name in words."""
    return PLACES.get(at, f"after {at}")


def line_of(event: Mapping[str, Any]) -> str | None:
    """One line for an event, or None where a log has no use for it."""
    told = LINES.get(str(event.get("event")))
    return None if told is None else told(event)


def step_line(metric: Mapping[str, Any], steps: int) -> str | None:
    """One line for an optimiser step; None for an evaluation's line."""
    if "evaluation" in metric:
        return None
    left = (steps - metric["step"]) * metric["seconds"] / max(1, metric["step"])
    if "clients" in metric:
        return f"{_round(metric, steps)}, {left:.0f} s left"
    return (
        f"step {metric['step']}/{steps} {metric['stage']}: loss {number(metric['loss'], '.3f')}, "
        f"{metric['tokens_per_second']:.0f} tokens/s, {left:.0f} s left"
    )


def _round(metric: Mapping[str, Any], rounds: int) -> str:
    """Of a federation: who answered, and what travelled."""
    asked, answered = metric["clients"], metric["answered"]
    who = f"{asked} clients" if asked == answered else f"{answered} of {asked} clients"
    down, up = (f"{metric[way] / 1e6:.2f} MB {way}" for way in ("down", "up"))
    return (
        f"round {metric['step']}/{rounds} {metric['stage']}: {who}, "
        f"loss {number(metric['loss'], '.3f')}, {down}, {up}"
    )


def workers_text(count: int) -> str:
    """A number of workers in words."""
    return "1 worker" if count == 1 else f"{count} workers"


def steps_text(steps: int, local_steps: int | None) -> str:
    """How long a stage is: in steps, or in a federation's rounds of so many."""
    if local_steps is None:
        return f"{steps} steps"
    return f"{steps // local_steps} rounds of {local_steps} steps"


def figures(metrics: Mapping[str, float | None]) -> str:
    """An evaluation's figures in a few words."""
    loss = f"loss {number(metrics['loss'], '.3f')}"
    if "accuracy" in metrics:
        return f"{loss}, accuracy {number(metrics['accuracy'], '.1%')}"
    return f"{loss}, perplexity {number(metrics['perplexity'], '.2f')}"


def number(value: float | None, form: str) -> str:
    """A figure in words; a journal has null for what is no number."""
    return "nan" if value is None else format(value, form)


def plain(text: str) -> str:
    """The text with everything that a terminal might obey made visible; newlines stay."""
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _started(event: Mapping[str, Any]) -> str:
    plan, local = event["plan"], event.get("local_steps")
    stages = ", ".join(
        f"{stage['name']} {steps_text(stage['steps'], local)} ({stage['share']:.2%} of the model)"
        for stage in plan["stages"]
    )
    if "clients" in event:
        return f"{event['clients']} clients: {stages}"
    return f"{workers_text(plan['workers'])}, {plan['sharding']}: {stages}"


def _left_out(event: Mapping[str, Any]) -> str:
    who = event.get("name", event["client"])
    at = f"round {event['round']}" if event["round"] else "scoring"
    return f"{at}: client {who} left out: {event['why']}"


def _masked(event: Mapping[str, Any]) -> str:
    by = "" if event["score"] == event["strategy"] else f" by {event['score']}"
    return f"masks: {event['strategy']}{by}, scored in {event['seconds']:.0f} s"


def _looked(event: Mapping[str, Any]) -> str:
    current, start = event["current"] or "no adapter", event["start"] or "scratch"
    return f"{event['rows']:,} rows that {current} has not learnt; starting from {start}"


def _again(event: Mapping[str, Any]) -> str:
    return f"{event['why']}; starting again"


def _at(event: Mapping[str, Any]) -> str:
    """Where in the run: a federation's are rounds."""
    return f"{event.get('unit', 'step')} {event['step']}"


LINES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "loading": lambda e: f"loading {e['base']}",
    "resumed": lambda e: f"going on from {_at(e)}, {e['stage']} stage",
    "started": _started,
    "evaluated": lambda e: f"{place(e['at'])}: {figures(e['metrics'])}",
    "stage": lambda e: f"{e['stage']} stage, {e['steps']} {e.get('unit', 'step')}s",
    "scoring": lambda e: f"scoring the weights for {e['strategy']} masks",
    "progress": lambda e: f"{e['what']}: {e['done']} of {e['of']}",
    "masked": _masked,
    "handoff": lambda e: f"hand-off: {number(e['kept'], '.1%')} of the update's energy kept",
    "checkpoint": lambda e: f"checkpoint at {_at(e)}: {e['bytes'] / 1e6:.1f} MB",
    "noticed": lambda e: f"told that a worker will be stopped: checkpoint at step {e['step']}",
    "enough": lambda e: f"enough at step {e['step']}: {e['why']}",
    "stalled": _again,
    "restarted": _again,
    "published": lambda e: f"committed {e['adapter']}: {e['bytes'] / 1e6:.1f} MB at {e['place']}",
    # Of a federation alone.
    "left out": _left_out,
    # Of a retraining alone.
    "looked": _looked,
    "nothing new": lambda e: f"nothing new: {e['why']}",
    "rows changed": lambda e: str(e["why"]),
    "going on": lambda e: f"going on from {e['parent']}",
    "judged": lambda e: f"{e['adapter']} on the {e['rows']} rows: {figures(e['metrics'])}",
    "gate": lambda e: f"the gate {'holds' if e['holds'] else 'does not hold'} for {e['adapter']}",
    "promoted": lambda e: f"promoted {e['adapter']}; before it, {e['before'] or 'nothing'}",
    "kept": lambda e: f"kept {e['adapter']}, not promoted: {e['why']}",
}
"""What is said of each kind of event; the others are for programs."""
