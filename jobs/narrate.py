"""A run's events as lines for people who read a log. Pure: an event in, a line or nothing out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLACES = {
    "before": "before training",
    "sparse": "after the sparse stage",
    "handoff": "after the hand-off",
    "end": "at the end",
}
"""What each evaluation of a run is called."""

RETRAINED = ("looked", "nothing new", "rows changed", "going on", "judged", "gate", "promoted",
             "kept")  # fmt: skip
"""What happens in a retraining alone."""


def place(at: str) -> str:
    """An evaluation's name in words."""
    return PLACES.get(at, f"after {at}")


def line_of(event: Mapping[str, Any]) -> str | None:
    """One line for an event, or None where a log has no use for it."""
    kind = event.get("event")
    if kind == "loading":
        return f"loading {event['base']}"
    if kind == "resumed":
        return f"going on from step {event['step']}, {event['stage']} stage"
    if kind == "started":
        plan = event["plan"]
        stages = ", ".join(
            f"{stage['name']} {stage['steps']} steps ({stage['share']:.2%} of the model)"
            for stage in plan["stages"]
        )
        return f"{workers_text(plan['workers'])}, {plan['sharding']}: {stages}"
    if kind == "evaluated":
        return f"{place(event['at'])}: {figures(event['metrics'])}"
    if kind == "stage":
        return f"{event['stage']} stage, {event['steps']} steps"
    if kind == "scoring":
        return f"scoring the weights for {event['strategy']} masks"
    if kind == "progress":
        return f"{event['what']}: {event['done']} of {event['of']}"
    if kind == "masked":
        by = "" if event["score"] == event["strategy"] else f" by {event['score']}"
        return f"masks: {event['strategy']}{by}, scored in {event['seconds']:.0f} s"
    if kind == "handoff":
        return f"hand-off: {number(event['kept'], '.1%')} of the update's energy kept"
    if kind == "checkpoint":
        return f"checkpoint at step {event['step']}: {event['bytes'] / 1e6:.1f} MB"
    if kind == "noticed":
        return f"told that a worker will be stopped: checkpoint at step {event['step']}"
    if kind == "enough":
        return f"enough at step {event['step']}: {event['why']}"
    if kind in ("stalled", "restarted"):
        return f"{event['why']}; starting again"
    if kind in RETRAINED:
        return _retrained(kind, event)
    if kind == "published":
        return f"committed {event['adapter']}: {event['bytes'] / 1e6:.1f} MB at {event['place']}"
    return None


def _retrained(kind: str, event: Mapping[str, Any]) -> str:
    if kind == "looked":
        current, start = event["current"] or "no adapter", event["start"] or "scratch"
        return f"{event['rows']:,} rows that {current} has not learnt; starting from {start}"
    if kind == "nothing new":
        return f"nothing new: {event['why']}"
    if kind == "going on":
        return f"going on from {event['parent']}"
    if kind == "judged":
        return f"{event['adapter']} on the {event['rows']} rows: {figures(event['metrics'])}"
    if kind == "gate":
        return f"the gate {'holds' if event['holds'] else 'does not hold'} for {event['adapter']}"
    if kind == "promoted":
        return f"promoted {event['adapter']}; before it, {event['before'] or 'nothing'}"
    return (
        f"kept {event['adapter']}, not promoted: {event['why']}" if kind == "kept" else event["why"]
    )


def step_line(metric: Mapping[str, Any], steps: int) -> str | None:
    """One line for an optimiser step; None for an evaluation's line."""
    if "evaluation" in metric:
        return None
    left = (steps - metric["step"]) * metric["seconds"] / max(1, metric["step"])
    return (
        f"step {metric['step']}/{steps} {metric['stage']}: loss {number(metric['loss'], '.3f')}, "
        f"{metric['tokens_per_second']:.0f} tokens/s, {left:.0f} s left"
    )


def workers_text(count: int) -> str:
    """A number of workers in words."""
    return "1 worker" if count == 1 else f"{count} workers"


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
