"""Carry out what the decision says, one action at a time.

The record in the store is written before and after each action, by compare-and-swap, and every
action can be repeated: after a crash at any point another process reads the record and continues.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from jobs.errors import StoreError, StoreRefused, StoreUnreachable, WriteConflict
from jobs.store.adapters.listing import read_committed
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from orchestrator.deployments.canary import OnProgress, judge_version, measure_loss
from orchestrator.deployments.canary_probes import CanaryProbes, load_probes
from orchestrator.deployments.deployment_record import (
    MAX_REASON_CHARS,
    Declined,
    DeploymentRecord,
    HistoryEntry,
    Rollout,
    get_deployment_key,
    get_public_name,
    name_version,
    read_deployment,
    write_deployment,
)
from orchestrator.deployments.errors import TargetRefused, TargetUnreachable
from orchestrator.deployments.follow_pointer import find_wish
from orchestrator.deployments.rollout_decision import (
    RolloutAction,
    Wish,
    decide_action,
    get_next_step,
    make_rollout,
    may_answer,
)
from orchestrator.deployments.servable_forms import find_target_faults, get_served_form
from orchestrator.deployments.serving_target import ServingTarget, TargetState

MAX_ACTIONS = 60
"""Actions in a row; a rollout has fewer than ten, and so has a removal of a few versions."""
WAITING_ERRORS = (TargetUnreachable, StoreUnreachable, StoreRefused, WriteConflict)
"""Errors that say nothing about the version: the same action is tried again later."""

log = logging.getLogger(__name__)

OnEvent = Callable[[DeploymentRecord, HistoryEntry], None]


@dataclass(frozen=True)
class _Context:
    """A deployment as one action sees it."""

    record: DeploymentRecord
    etag: str
    public: str
    state: TargetState
    wish: Wish

    @property
    def rollout(self) -> Rollout:
        """Return the rollout, which the decision has checked for."""
        assert self.record.rollout is not None
        return self.record.rollout


class RolloutDriver:
    """Drives the deployments of one store to one server.

    `on_event` gets each entry of a history before the record with it is written: it may get one
    twice after a crash, and misses none. `on_progress` is called before each action and request.
    """

    def __init__(
        self,
        store: ObjectStore,
        target: ServingTarget,
        *,
        on_event: OnEvent = lambda record, entry: None,
        on_progress: OnProgress = lambda: None,
        min_move: Callable[[str], int] = lambda adapter: 0,
    ) -> None:
        self._store, self._target = store, target
        self._on_event, self._on_progress, self._min_move = on_event, on_progress, min_move

    def settle(self, name: str) -> str | None:
        """Act until nothing is left to do. Return why the rest has to wait, or None."""
        for _ in range(MAX_ACTIONS):
            self._on_progress()
            try:
                action = self.advance(name)
            except WriteConflict as conflict:
                return str(conflict)  # another process acts on it
            except (TargetUnreachable, TargetRefused, StoreError) as error:
                return note_problem(self._store, name, str(error))
            if action.kind in ("rest", "delete"):
                return None
        return note_problem(self._store, name, f"it did not settle within {MAX_ACTIONS} actions")

    def advance(self, name: str) -> RolloutAction:
        """Carry out the next action of a deployment, and return it.

        Raise TargetUnreachable, TargetRefused or StoreError if it has to be tried again.
        """
        record, etag = read_deployment(self._store, name)
        public = get_public_name(self._store, name)
        if record.removing:
            wish = Wish(record.live or 0)
        else:
            min_move = self._min_move(record.adapter)
            wish = find_wish(self._store, record, min_move=min_move)
        context = _Context(record, etag, public, self._target.read_state(), wish)
        action = decide_action(record, public, wish, context.state)
        if record.problem is not None and action.kind != "delete":
            record = record.change(problem=None)
            context = replace(context, record=record, etag=self._write(context, record))
        self._perform(context, action)
        return action

    def _perform(self, context: _Context, action: RolloutAction) -> None:
        record, version = context.record, action.version
        match action.kind:
            case "rest":
                return
            case "begin":
                self._begin(context)
            case "supersede":
                changed = record.change(rollout=None)
                self._write(context, changed.add_event("superseded", version))
            case "forget":
                self._write(context, record.change(declined=None))
            case "check" | "load" | "measure" | "judge" | "switch":
                self._perform_step(context, action)
            case "restore" | "preload":
                assert version is not None
                self._restore(context, version, is_live=action.kind == "restore")
            case "unload":
                assert version is not None
                self._target.unload(name_version(context.public, version))
            case "clear_name":
                self._target.set_name(context.public, None)
            case "delete":
                self._delete(context)

    def _begin(self, context: _Context) -> None:
        version = context.wish.version
        try:
            form = get_served_form(self._read_manifest(context.record, version))
        except WAITING_ERRORS:
            raise
        except StoreError as error:
            self._decline(context, version, str(error))
            return
        rollout = make_rollout(context.wish, form, context.record, context.public, context.state)
        changed = context.record.change(rollout=rollout, declined=None)
        self._write(context, changed.add_event("rollout_started", version))

    def _perform_step(self, context: _Context, action: RolloutAction) -> None:
        """Carry out a step of the rollout; its failure declines the version."""
        version = context.rollout.version
        steps = {
            "check": self._check,
            "load": self._load,
            "measure": self._measure,
            "judge": self._judge,
            "switch": self._switch,
        }
        try:
            rollout = steps[action.kind](context)
        except WAITING_ERRORS:
            raise
        except (TargetRefused, StoreError) as error:
            self._fail(context, str(error))
            return
        if rollout is None:
            return
        # After a restart of the server an earlier step was repeated.
        step = rollout.step if action.kind != rollout.step else None
        following = step or get_next_step(rollout)
        if following is not None:
            self._write(context, context.record.change(rollout=_set_step(rollout, following)))
            return
        self._finish(context, rollout, version)

    def _check(self, context: _Context) -> Rollout | None:
        manifest = self._read_manifest(context.record, context.rollout.version)
        faults = find_target_faults(self._store, manifest, context.state, context.record.endpoint)
        if faults:
            self._fail(context, " ".join(map(str, faults)))
            return None
        return context.rollout

    def _load(self, context: _Context) -> Rollout:
        manifest = self._read_manifest(context.record, context.rollout.version)
        self._target.load(name_version(context.public, manifest.version), self._store, manifest)
        return context.rollout

    def _measure(self, context: _Context) -> Rollout:
        """Measure the version that answers now on the new one's rows, to compare them."""
        if context.record.live is None:
            return context.rollout
        model = self._name_model(context, context.record.live)
        try:
            probes = self._load_probes(context)
            loss = measure_loss(self._target, model, probes, self._on_progress)
        except TargetRefused:
            loss = None
        if loss is not None and not math.isfinite(loss):
            loss = None
        # Without it the new version is judged by the loss of its own run alone.
        return context.rollout.model_copy(update={"live_loss": loss})

    def _judge(self, context: _Context) -> Rollout | None:
        rollout = context.rollout
        verdict = judge_version(
            self._target,
            self._name_model(context, rollout.version),
            self._load_probes(context),
            context.record.canary,
            live_loss=rollout.live_loss,
            on_progress=self._on_progress,
        )
        if verdict.fault is not None:
            self._check_loaded(context, rollout.version)
            self._fail(context, verdict.fault)
            return None
        return rollout.model_copy(update={"figures": verdict.figures})

    def _check_loaded(self, context: _Context, version: int) -> None:
        """Raise TargetUnreachable if the server has lost a version: it was restarted meanwhile."""
        if name_version(context.public, version) not in self._target.read_state().adapters:
            raise TargetUnreachable(context.record.endpoint, "it was restarted during the canary")

    def _switch(self, context: _Context) -> Rollout:
        if context.state.names is not None:
            name = name_version(context.public, context.rollout.version)
            self._target.set_name(context.public, name)
        return context.rollout

    def _finish(self, context: _Context, rollout: Rollout, version: int) -> None:
        record = context.record
        changed = record.change(
            live=version,
            previous=record.live if record.live != version else record.previous,
            model=self._format_model(context, version),
            rollout=None,
        )
        self._write(context, changed.add_event("live", version, _format_figures(rollout.figures)))

    def _fail(self, context: _Context, reason: str) -> None:
        """Decline the version. The old one answers, again if the new one did for its canary."""
        rollout = context.rollout
        if may_answer(rollout) and context.state.names is not None:
            live = context.record.live
            name = None if live is None else name_version(context.public, live)
            try:
                self._target.set_name(context.public, name)
            except TargetRefused as refusal:
                # It is repaired from now on, and the version is not tried again.
                reason = f"{reason} {refusal}"
        self._decline(context, rollout.version, reason)

    def _decline(self, context: _Context, version: int, reason: str) -> None:
        reason = reason[:MAX_REASON_CHARS]
        declined = Declined(version=version, move=context.wish.move, reason=reason)
        changed = context.record.change(rollout=None, declined=declined)
        self._write(context, changed.add_event("declined", version, reason))

    def _restore(self, context: _Context, version: int, *, is_live: bool) -> None:
        """Load a version that the server has lost, and let the public name answer with it."""
        name = name_version(context.public, version)
        if name not in context.state.adapters:
            manifest = self._read_manifest(context.record, version)
            self._target.load(name, self._store, manifest)
        if is_live and context.state.names is not None:
            self._target.set_name(context.public, name)
        if is_live:
            self._write(context, context.record.add_event("restored", version))

    def _delete(self, context: _Context) -> None:
        """Delete the record, last. One that was changed meanwhile stays, and is removed again."""
        self._write(context, context.record.add_event("removed"))
        self._store.delete(get_deployment_key(context.record.name))

    def _read_manifest(self, record: DeploymentRecord, version: int) -> Manifest:
        return read_committed(self._store, record.adapter, version)

    def _load_probes(self, context: _Context) -> CanaryProbes:
        manifest = self._read_manifest(context.record, context.rollout.version)
        return load_probes(self._store, manifest, context.record.canary.prompts)

    def _name_model(self, context: _Context, version: int) -> str:
        """Return what a request for exactly this version names as its model."""
        return context.state.model_prefix + name_version(context.public, version)

    def _format_model(self, context: _Context, version: int) -> str:
        """Return what clients name as their model: the public name, where the server has some."""
        if context.state.names is not None:
            return context.state.model_prefix + context.public
        return self._name_model(context, version)

    def _write(self, context: _Context, record: DeploymentRecord) -> str:
        """Write a record, after its new entries were reported. Raise WriteConflict."""
        if record.history is not context.record.history:
            self._on_event(record, record.history[-1])
        return write_deployment(self._store, record, context.etag)


def note_problem(store: ObjectStore, name: str, problem: str) -> str:
    """Write down why a deployment waits, unless its record says so already. Return the problem."""
    text = problem[:MAX_REASON_CHARS]
    try:
        record, etag = read_deployment(store, name)
        if record.problem != text:
            write_deployment(store, record.change(problem=text), etag)
    except StoreError as error:
        # The store does not answer, or another process wrote first.
        log.warning("deployment %s: its problem cannot be recorded: %s", name, error)
    return problem


def _set_step(rollout: Rollout, step: str) -> Rollout:
    return rollout.model_copy(update={"step": step})


def _format_figures(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in figures.items())
