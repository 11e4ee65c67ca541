"""Judge a version by its answers: not empty, in time, and with the loss that its run recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.deployments.canary_probes import CanaryProbes, CanaryPrompt
from orchestrator.deployments.deployment_record import CanarySettings
from orchestrator.deployments.errors import TargetRefused
from orchestrator.deployments.serving_target import ServingTarget

MAX_TOKENS = 40
"""Tokens of an answer, as in the samples of a run."""

OnProgress = Callable[[], None]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a canary; the version passed if there is no fault."""

    fault: str | None = None
    figures: dict[str, float] = field(default_factory=dict)
    """answers, slowest_s, loss, run_loss and live_loss, as far as they were measured."""


def judge_version(
    target: ServingTarget,
    model: str,
    probes: CanaryProbes,
    settings: CanarySettings,
    *,
    live_loss: float | None,
    on_progress: OnProgress = lambda: None,
) -> Verdict:
    """Return the verdict on a model of the server.

    `live_loss` is the loss of the version that answers now; `on_progress` is called before each
    request. Raise TargetUnreachable.
    """
    figures: dict[str, float] = {}
    try:
        for probe in probes.prompts:
            on_progress()
            if fault := _judge_answer(target, model, probe, settings, figures):
                return Verdict(fault, figures)
        if (loss := measure_loss(target, model, probes, on_progress)) is None:
            return Verdict(None, figures)
    except TargetRefused as refusal:
        return Verdict(f"a canary request failed: {refusal.reason}", figures)
    figures |= {"loss": loss} if math.isfinite(loss) else {}
    figures |= {} if probes.loss is None else {"run_loss": probes.loss}
    figures |= {} if live_loss is None else {"live_loss": live_loss}
    return Verdict(_judge_loss(loss, probes.loss, live_loss, settings.loss_tolerance), figures)


def measure_loss(
    target: ServingTarget,
    model: str,
    probes: CanaryProbes,
    on_progress: OnProgress = lambda: None,
) -> float | None:
    """Return the mean loss per target on the held-out rows, or None if there are none.

    Raise TargetUnreachable or TargetRefused.
    """
    total, count = 0.0, 0
    for row in probes.rows:
        on_progress()
        total -= sum(target.score(model, row.tokens, row.targets))
        count += len(row.targets)
    return total / count if count else None


def _judge_answer(
    target: ServingTarget,
    model: str,
    probe: CanaryPrompt,
    settings: CanarySettings,
    figures: dict[str, float],
) -> str | None:
    answer = target.ask(model, probe.prompt, max_tokens=MAX_TOKENS, is_chat=probe.is_chat)
    figures["answers"] = figures.get("answers", 0) + 1
    figures["slowest_s"] = max(figures.get("slowest_s", 0.0), round(answer.seconds, 3))
    if probe.needs_answer and not answer.text.strip():
        return f"the answer to prompt {figures['answers']:.0f} is empty"
    if answer.seconds > settings.max_latency_s:
        limit = f"max_latency_s is {settings.max_latency_s:g}"
        return f"prompt {figures['answers']:.0f} took {answer.seconds:.1f} s, and {limit}"
    return None


def _judge_loss(
    loss: float, run_loss: float | None, live_loss: float | None, tolerance: float
) -> str | None:
    if not math.isfinite(loss):
        return "its loss on held-out rows is not finite"
    if run_loss is not None and abs(loss - run_loss) > tolerance:
        return (
            f"its loss on held-out rows is {loss:.4f} through the server, but {run_loss:.4f} in "
            f"its run: more than loss_tolerance ({tolerance:g}) apart"
        )
    if live_loss is not None and loss > live_loss + tolerance:
        return (
            f"its loss on held-out rows is {loss:.4f}, worse than {live_loss:.4f} of the version "
            f"that answers now by more than loss_tolerance ({tolerance:g})"
        )
    return None
