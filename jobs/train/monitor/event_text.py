"""A run's events as lines of a log. Pure: an event in, a line or None out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.spec.metrics import FORMATS, list_measures, name_measure

EVALUATION_NAMES = {
    "before": "before training",
    "sparse": "after the sparse stage",
    "handoff": "after the hand-off",
    "end": "at the end",
}
"""The text for each evaluation of a run."""


def name_evaluation(at: str) -> str:
    """Return an evaluation's name in words."""
    return EVALUATION_NAMES.get(at, f"after {at}")


def format_event(event: Mapping[str, Any]) -> str | None:
    """Return one line for an event, or None if a log does not show it."""
    formatter = FORMATTERS.get(str(event.get("event")))
    return None if formatter is None else formatter(event)


def format_step(metric: Mapping[str, Any], steps: int) -> str | None:
    """Return one line for an optimizer step, or None for an evaluation."""
    if "evaluation" in metric:
        return None
    remaining_s = (steps - metric["step"]) * metric["seconds"] / max(1, metric["step"])
    if "clients" in metric:
        return f"{_format_round(metric, steps)}, {remaining_s:.0f} s left"
    return (
        f"step {metric['step']}/{steps} {metric['stage']}: "
        f"loss {format_number(metric['loss'], '.3f')}, "
        f"{metric['tokens_per_second']:.0f} tokens/s, {remaining_s:.0f} s left"
    )


def _format_round(metric: Mapping[str, Any], rounds: int) -> str:
    """Return a federation's round: the clients that answered, and the traffic."""
    sampled, answered = metric["clients"], metric["answered"]
    clients = f"{sampled} clients" if sampled == answered else f"{answered} of {sampled} clients"
    down, up = (f"{metric[direction] / 1e6:.2f} MB {direction}" for direction in ("down", "up"))
    return (
        f"round {metric['step']}/{rounds} {metric['stage']}: {clients}, "
        f"loss {format_number(metric['loss'], '.3f')}, {down}, {up}"
    )


def format_workers(count: int) -> str:
    """Return a number of workers in words."""
    return "1 worker" if count == 1 else f"{count} workers"


def format_stage_length(steps: int, local_steps: int | None) -> str:
    """Return a stage's length: in steps, or in a federation's rounds of so many."""
    if local_steps is None:
        return f"{steps} steps"
    return f"{steps // local_steps} rounds of {local_steps} steps"


def format_metrics(metrics: Mapping[str, float | None]) -> str:
    """Return an evaluation's metrics in a few words."""
    parts = [f"loss {format_number(metrics['loss'], '.3f')}"]
    for name in list_measures(metrics):
        parts.append(f"{name_measure(name)} {format_number(metrics[name], FORMATS[name])}")
    return ", ".join(parts)


def format_number(value: float | None, format_spec: str) -> str:
    """Return a number as text; a journal has null for NaN."""
    return "nan" if value is None else format(value, format_spec)


def format_retained(energy_share: float | None, output_share: float | None) -> str:
    """Describe what a hand-off's factors retain of the update."""
    text = f"{format_number(energy_share, '.1%')} of the update's energy retained"
    if output_share is None:
        return text
    return f"{text}, {output_share:.1%} of its outputs' energy"


def escape_control(text: str) -> str:
    """Return the text with everything escaped that a terminal might interpret; newlines stay."""
    return "".join(
        character if character.isprintable() or character == "\n" else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _format_started(event: Mapping[str, Any]) -> str:
    plan, local_steps = event["plan"], event.get("local_steps")
    lengths = [format_stage_length(stage["steps"], local_steps) for stage in plan["stages"]]
    stages = ", ".join(
        f"{stage['name']} {length} ({stage['share']:.2%} of the model)"
        for stage, length in zip(plan["stages"], lengths, strict=True)
    )
    if "clients" in event:
        return f"{event['clients']} clients: {stages}"
    return f"{format_workers(plan['workers'])}, {plan['sharding']}: {stages}"


def format_packing(packing: Mapping[str, Any]) -> str:
    """Return in words whether rows are packed, and how or why not."""
    state = {"off": "off", "undecided": "undecided"}.get(packing["mode"], "on")
    return f"{state}: {packing['reason']}"


def format_dtype(dtype: Mapping[str, Any]) -> str:
    """Return the dtype of a run, and why the hardware chose it if the spec did not."""
    name = str(dtype["dtype"])
    return f"{name} (auto: {dtype['reason']})" if dtype["is_auto"] else name


def format_rates(rates: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> str:
    """Return the largest learning rates of the stages and of a head, and where they come from."""
    values = [f"{stage['name']} {stage['learning_rate']:g}" for stage in stages]
    heads = (stage.get("head_learning_rate") for stage in stages)
    head_rates = sorted({float(rate) for rate in heads if rate is not None})
    if head_rates:
        values.append(f"head {' and '.join(f'{rate:g}' for rate in head_rates)}")
    keys = ", ".join(rates["by_rule"])
    origin = f"auto: {keys} by {rates['reason']}" if keys else rates["reason"]
    return f"{', '.join(values)} ({origin})"


def format_loss(choice: Mapping[str, Any]) -> str:
    """Return in words how the loss of tokens is computed, and why."""
    mode = "in chunks" if choice["mode"] == "chunks" else "plain"
    return f"{mode}: {choice['reason']}"


def _format_client_dropped(event: Mapping[str, Any]) -> str:
    client = event.get("name", event["client"])
    moment = f"round {event['round']}" if event["round"] else "scoring"
    return f"{moment}: client {client} dropped: {event['why']}"


def _format_masks_selected(event: Mapping[str, Any]) -> str:
    by = "" if event["score"] == event["strategy"] else f" by {event['score']}"
    return f"masks: {event['strategy']}{by}, scored in {event['seconds']:.0f} s"


def _format_baseline(event: Mapping[str, Any]) -> str:
    current, start = event["current"] or "no adapter", event["start"] or "scratch"
    return f"{event['rows']:,} rows that {current} was not trained on; starting from {start}"


def format_kernels(kernels: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which kernel computes the sparse gradients of which kinds of layers."""
    kinds_by_kernel: dict[str, list[str]] = {}
    for kind, choice in kernels.items():
        kinds = kinds_by_kernel.setdefault(str(choice["kernel"]), [])
        kinds.append(kind.partition(",")[0])
    return "; ".join(
        f"{kernel} for {', '.join(dict.fromkeys(kinds))}"
        for kernel, kinds in kinds_by_kernel.items()
    )


def _format_restart(event: Mapping[str, Any]) -> str:
    return f"{event['why']}; restarting"


def _format_position(event: Mapping[str, Any]) -> str:
    """Return where in the run an event happened: a step, or a federation's round."""
    return f"{event.get('unit', 'step')} {event['step']}"


FORMATTERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "loading": lambda e: f"loading {e['base']}",
    "resumed": lambda e: f"resuming from {_format_position(e)}, {e['stage']} stage",
    "dtype_settled": lambda e: f"computing in {format_dtype(e)}",
    "packing_settled": lambda e: f"packing {format_packing(e)}",
    "loss_settled": lambda e: f"loss {format_loss(e)}",
    "started": _format_started,
    "evaluated": lambda e: f"{name_evaluation(e['at'])}: {format_metrics(e['metrics'])}",
    "stage": lambda e: f"{e['stage']} stage, {e['steps']} {e.get('unit', 'step')}s",
    "scoring": lambda e: f"scoring the weights for {e['strategy']} masks",
    "progress": lambda e: f"{e['what']}: {e['done']} of {e['of']}",
    "kernels_chosen": lambda e: f"kernels: {format_kernels(e['kernels'])}",
    "masks_selected": _format_masks_selected,
    "stored_compact": lambda e: (
        f"stock PEFT can't hold this adapter: {e['reason']}. It is stored in the compact form: "
        "merge it for other programs"
    ),
    "handoff": lambda e: f"hand-off: {format_retained(e['energy_share'], e.get('output_share'))}",
    "checkpoint_saved": lambda e: f"checkpoint at {_format_position(e)}: {e['bytes'] / 1e6:.1f} MB",
    "preempting": lambda e: f"a worker will be stopped soon: checkpoint at step {e['step']}",
    "early_stopped": lambda e: f"stopped early at step {e['step']}: {e['why']}",
    "stalled": _format_restart,
    "restarted": _format_restart,
    "published": lambda e: f"committed {e['adapter']}: {e['bytes'] / 1e6:.1f} MB at {e['url']}",
    # Events of a federation.
    "client_dropped": _format_client_dropped,
    # Events of a retraining.
    "baseline_selected": _format_baseline,
    "no_new_data": lambda e: f"no new data: {e['why']}",
    "data_changed": lambda e: str(e["why"]),
    "warm_started": lambda e: f"starting from {e['parent']}",
    "adapter_evaluated": lambda e: (
        f"{e['adapter']} on the {e['rows']} rows: {format_metrics(e['metrics'])}"
    ),
    "gate": lambda e: f"gate {'passed' if e['passed'] else 'failed'} for {e['adapter']}",
    "promoted": lambda e: f"promoted {e['adapter']}; current before: {e['before'] or 'none'}",
    "promotion_requested": lambda e: f"the service promotes {e['adapter']}",
    "not_promoted": lambda e: f"{e['adapter']} is not promoted: {e['why']}",
}
"""The text of each kind of event; the other kinds are for programs."""
