"""Decide what a deployment does next, from its record, what it follows and what its server holds.

The decision is a pure function: whoever continues a rollout after a crash decides the same. A LoRA
is judged before the public name answers with it. A sparse adapter changes the base's weights, so
that it, and a LoRA that follows it, can only be asked once it answers: they are judged after the
switch, and switched back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.deployments.deployment_record import (
    DeploymentRecord,
    Rollout,
    Step,
    name_version,
)
from orchestrator.deployments.serving_target import TargetState

SPARSE = "sparse"
STEPS: tuple[Step, ...] = ("check", "load", "measure", "judge", "switch")
STEPS_JUDGED_LIVE: tuple[Step, ...] = ("check", "load", "measure", "switch", "judge")

RolloutActionKind = Literal[
    "rest",
    "begin",
    "supersede",
    "check",
    "load",
    "measure",
    "judge",
    "switch",
    "restore",
    "preload",
    "unload",
    "clear_name",
    "forget",
    "delete",
]


@dataclass(frozen=True)
class Wish:
    """The version that a deployment is to answer with, and the pointer's move that says so."""

    version: int
    move: int | None = None


@dataclass(frozen=True)
class RolloutAction:
    """The next thing to do, and the version that it is done to."""

    kind: RolloutActionKind
    version: int | None = None


REST = RolloutAction("rest")


def decide_action(
    record: DeploymentRecord, public: str, wish: Wish, target: TargetState
) -> RolloutAction:
    """Return the next action; `rest` if there is nothing to do.

    `public` is the public name at the server.
    """
    loaded = list_loaded(public, target.adapters)
    if record.removing:
        return _decide_removal(public, target, loaded)
    rollout = record.rollout
    if rollout is not None and (rollout.version, rollout.move) != (wish.version, wish.move):
        return RolloutAction("supersede", rollout.version)
    if (restoring := _decide_repair(record, public, target, loaded)) is not None:
        return restoring
    if rollout is not None:
        return _decide_step(record, public, target, loaded)
    if wish.version != record.live and not is_declined(record, wish):
        return RolloutAction("begin", wish.version)
    if record.declined is not None and not is_declined(record, wish):
        return RolloutAction("forget", record.declined.version)
    return _decide_upkeep(record, loaded)


def make_rollout(
    wish: Wish, form: str, record: DeploymentRecord, public: str, target: TargetState
) -> Rollout:
    """Return the rollout of a version of this form, at its first step."""
    live = "" if record.live is None else name_version(public, record.live)
    judged_live = SPARSE in (form, target.adapters.get(live)) and target.names is not None
    return Rollout(
        version=wish.version, move=wish.move, form=form, step="check", judged_live=judged_live
    )


def get_next_step(rollout: Rollout) -> Step | None:
    """Return the step after the current one; None after the last."""
    steps = STEPS_JUDGED_LIVE if rollout.judged_live else STEPS
    index = steps.index(rollout.step) + 1
    return steps[index] if index < len(steps) else None


def may_answer(rollout: Rollout) -> bool:
    """Return whether the new version may answer under the public name in this step."""
    return rollout.step == "switch" or (rollout.judged_live and rollout.step == "judge")


def is_declined(record: DeploymentRecord, wish: Wish) -> bool:
    """Return whether this version failed, or was rolled back, since the pointer moved last."""
    declined = record.declined
    return declined is not None and (declined.version, declined.move) == (wish.version, wish.move)


def list_loaded(public: str, adapters: Mapping[str, str]) -> list[int]:
    """Return the versions of a public name that a server has loaded, sorted."""
    matches = (re.fullmatch(r"(.+)@v([1-9][0-9]{0,8})", name) for name in adapters)
    return sorted(int(match[2]) for match in matches if match and match[1] == public)


def _decide_removal(public: str, target: TargetState, loaded: list[int]) -> RolloutAction:
    if target.names is not None and target.names.get(public) is not None:
        return RolloutAction("clear_name")
    return RolloutAction("unload", loaded[0]) if loaded else RolloutAction("delete")


def _decide_repair(
    record: DeploymentRecord, public: str, target: TargetState, loaded: list[int]
) -> RolloutAction | None:
    """Return how to make the live version answer again, after the server was restarted, say."""
    live, rollout = record.live, record.rollout
    if target.names is None:
        is_lost = live is not None and live not in loaded
        return RolloutAction("restore", live) if is_lost else None
    answering = target.names.get(public)
    if live is not None and target.problem is not None:
        return RolloutAction("restore", live)
    if answering == (None if live is None else name_version(public, live)):
        return None
    is_switching = rollout is not None and may_answer(rollout)
    if is_switching and rollout and answering == name_version(public, rollout.version):
        return None
    return RolloutAction("clear_name") if live is None else RolloutAction("restore", live)


def _decide_step(
    record: DeploymentRecord, public: str, target: TargetState, loaded: list[int]
) -> RolloutAction:
    rollout = record.rollout
    assert rollout is not None
    if rollout.version not in loaded and rollout.step not in ("check", "load"):
        return RolloutAction("load", rollout.version)
    is_judged = rollout.judged_live and rollout.step == "judge"
    if is_judged and (target.names or {}).get(public) != name_version(public, rollout.version):
        # The server was restarted since the switch.
        return RolloutAction("switch", rollout.version)
    return RolloutAction(rollout.step, rollout.version)


def _decide_upkeep(record: DeploymentRecord, loaded: list[int]) -> RolloutAction:
    unused = [version for version in loaded if version not in (record.live, record.previous)]
    if unused:
        return RolloutAction("unload", unused[0])
    if record.previous is not None and record.previous not in loaded:
        return RolloutAction("preload", record.previous)
    return REST
