"""Whether a training has had enough, by `train.stop`. Pure: figures in, reasons out.

A budget of tokens ends the training. A target that is met, and a metric that no longer improves,
end the stage: what is measured after the hand-off is judged anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.errors import Fault
from jobs.metric import METRICS, reported_by
from jobs.plan import Plan, StagePlan
from jobs.spec import Spec, StopSection


@dataclass(frozen=True)
class Standing:
    """What the evaluations of a stage came to so far."""

    best: float | None = None
    since: int = 0
    """Evaluations after the best one."""


class Enough:
    """What has been judged of one training so far, and which of its stages are over for it."""

    def __init__(self, stop: StopSection) -> None:
        self._stop, self._standing, self._cut = stop, Standing(), dict[str, int]()

    def begin(self) -> None:
        """A stage starts: what was measured before it says nothing of it."""
        self._standing = Standing()

    def spent(self, tokens: int) -> str | None:
        """Why a training that has seen so many tokens is over, or None."""
        return spent(self._stop, tokens)

    def judge(self, measured: Mapping[str, float] | None) -> str | None:
        """Why the stage is over after an evaluation, or None."""
        if measured is None:
            return None
        self._standing, why = judged(self._stop, self._standing, measured)
        return why

    def end(self, stages: Sequence[StagePlan], done: int) -> bool:
        """The first of these ends after `done` steps, the others before their first.

        False where there is no step that this saves.
        """
        before = dict(self._cut)
        for stage in stages:
            if stage.steps != done:
                self._cut[stage.name] = done
            done = 0
        return self._cut != before

    def shorten(self, plan: Plan) -> Plan:
        """The plan with the steps that are left of it."""
        stages = (replace(one, steps=self._cut.get(one.name, one.steps)) for one in plan.stages)
        return replace(plan, stages=tuple(stages))

    def kept(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best": self._standing.best, "since": self._standing.since, "cut": {**self._cut}}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Goes on from what `kept` made, or from a checkpoint that has nothing of it."""
        self._standing = Standing(plain.get("best"), plain.get("since", 0))
        self._cut = dict(plain.get("cut", {}))


def spent(stop: StopSection, tokens: int) -> str | None:
    """Why a training that has seen so many tokens is over; None where it goes on."""
    if stop.tokens is None or tokens < stop.tokens:
        return None
    return f"{tokens:,} tokens of {stop.tokens:,}"


def judged(
    stop: StopSection, before: Standing, measured: Mapping[str, float]
) -> tuple[Standing, str | None]:
    """The standing after one more evaluation, and why the stage is over, or None.

    A figure that is no number is never the best, and never meets a target.
    """
    name, way = METRICS[stop.metric]
    value = measured[name]
    better = before.best is None or (value < before.best if way == "min" else value > before.best)
    after = (
        Standing(value) if better and value == value else Standing(before.best, before.since + 1)
    )
    if stop.target is not None and (value <= stop.target if way == "min" else value >= stop.target):
        return after, f"{stop.metric} {value:.4g} meets the target of {stop.target:g}"
    if stop.patience is not None and after.since >= stop.patience:
        return after, f"{stop.metric} did not improve in {after.since} evaluations"
    return after, None


def stop_faults(spec: Spec) -> Iterator[Fault]:
    """What of `train.stop` could never work."""
    stop = spec.train.stop
    if (stop.tokens, stop.target, stop.patience) == (None, None, None):
        return
    if spec.method.factor_pruning == "gates" and spec.method.factor_density < 1:
        problem = "gates prune until the last step, which a training that stops never takes"
        yield Fault("train.stop", problem, "Leave it out, or use factor_pruning: fixed.")
    if stop.target is None and stop.patience is None:
        return
    names = reported_by(spec.model.task)
    if stop.metric not in names:
        problem = f"{spec.model.task} does not report {stop.metric}"
        yield Fault("train.stop.metric", problem, f"Use {' or '.join(names)}.")
    if spec.data.eval is None and spec.data.eval_fraction is None:
        problem = "nothing is held out to judge the training by"
        yield Fault("data.eval", problem, "Name data.eval, or data.eval_fraction: 0.05.")
    if spec.train.eval_every is None:
        problem = "train.stop judges on the way, and it is measured at the end only"
        yield Fault("train.eval_every", problem, "Set it.")


def in_words(stop: StopSection) -> list[str]:
    """What may end a training before its last step, for people."""
    told = []
    if stop.tokens is not None:
        told.append(f"{stop.tokens:,} tokens")
    if stop.target is not None:
        told.append(f"{stop.metric} {stop.target:g} reached")
    if stop.patience is not None:
        told.append(f"{stop.patience} evaluations without a better {stop.metric}")
    return told
