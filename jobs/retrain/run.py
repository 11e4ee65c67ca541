"""A retraining from its first look to its decision; each step may be repeated after a crash.

    look -> fine-tune -> judge -> gate -> promote, or keep

What a step has found lies in the run's folder or in the store before the next one begins, so an
attempt that comes after a death passes over what is done.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from jobs.errors import InputError, NotFound, Replaced
from jobs.lease import later_attempt
from jobs.preflight import Checked, check, replanned
from jobs.request import JUDGED, HeldOut, Request
from jobs.retrain.door import Retrain
from jobs.retrain.fit import start_faults
from jobs.retrain.gate import Figures, Verdict
from jobs.retrain.gate import judge as judged_by
from jobs.retrain.look import NothingNew, look, training_spec
from jobs.retrain.old_rows import old_rows
from jobs.retrain.papers import Looked, keep_looked, read_looked
from jobs.spec_file import dump_spec
from jobs.store.adapters import committed_versions, promote_after, resolve, settle
from jobs.store.listing import read_committed, split_name
from jobs.store.manifest import BadManifest, Manifest
from jobs.store.pointer import Moved
from jobs.store.runs import MASKS, PLAN, SPEC, STARTS, RunStore
from jobs.store.verify import file_faults


class Retraining:
    """One run, in one attempt. Ray is joined when the first step needs it, and not before."""

    def __init__(self, asked: Retrain, runs: RunStore, attempt: int) -> None:
        self._asked, self._runs, self._attempt = asked, runs, attempt
        self._connected = False

    def run(self) -> None:
        """To the decision. Raises InputError, TrainingFailed, StoreError, Unreachable, Replaced."""
        checked = check(self._asked.spec)
        looked = self._looked(checked)
        if looked is None:
            return
        checked = replanned(checked, training_spec(checked.spec, looked.start), past=False)
        request = checked.request(self._runs.run_id, parent=looked.start)
        made = self._made(looked) or self._trained(checked, looked, request)
        verdict = self._gated(looked, made, request)
        self._decided(looked, made, verdict)

    def _looked(self, checked: Checked) -> Looked | None:
        """How things stood when the run began; None where there was nothing to learn."""
        store, spec = self._runs.store, checked.spec
        sha256 = str(checked.train.sha256)
        before = read_looked(self._runs)
        if before is not None:
            return self._looked_again(before, sha256)
        found = look(store, spec, self._asked.section.start, sha256)
        if isinstance(found, NothingNew):
            self._tell("nothing new", adapter=found.adapter, why=found.why)
            return None
        if found.current is not None and found.move is None:
            # Or else the new version, as the newest, would be what the name means in any case.
            settle(store, *_named(found.current))
            return self._looked(checked)
        found = keep_looked(self._runs, found)
        self._tell("looked", current=found.current, start=found.start, rows=checked.train.rows)
        return found

    def _looked_again(self, before: Looked, sha256: str) -> Looked:
        if before.train_sha256 == sha256 or self._made(before) is not None:
            return before
        # A checkpoint counts the rows that it has seen, and these are others.
        self._tell("rows changed", why="data.train is not what it was: the training starts anew")
        for step in self._runs.checkpoint_steps():
            for key in self._runs.store.list(self._runs.checkpoint_key(step, "")):
                self._runs.store.delete(key)
        for part in (MASKS, STARTS):
            self._runs.store.delete(self._runs.key(part))
        again = before.model_copy(update={"train_sha256": sha256})
        return keep_looked(self._runs, again, anew=True)

    def _made(self, looked: Looked) -> Manifest | None:
        """The adapter that this run has committed."""
        store, name = self._runs.store, self._asked.spec.name
        for version in reversed(committed_versions(store, name)):
            if version <= looked.newest:
                break
            try:
                found = read_committed(store, name, version)
            except (BadManifest, NotFound):
                continue
            if found.run == self._runs.run_id:
                return found
        return None

    def _trained(self, checked: Checked, looked: Looked, request: Request) -> Manifest:
        self._check_start(checked, looked, request.base_digest)
        self._runs.write_text(SPEC, dump_spec(checked.spec))
        self._runs.write_json(PLAN, checked.plan.to_json())
        self._on_workers(request)
        made = self._made(looked)
        assert made is not None
        return made

    def _check_start(self, checked: Checked, looked: Looked, base_digest: str) -> None:
        """Raises InputError where the training can't go on from what it is to start from."""
        if looked.start is None:
            return
        store = self._runs.store
        start = resolve(store, looked.start)
        # Its own bytes first; whether its base is this one, which is read already, is asked then.
        faults = file_faults(store, start) or start_faults(store, start, checked, base_digest)
        if faults:
            raise InputError(faults)

    def _gated(self, looked: Looked, made: Manifest, request: Request) -> Verdict:
        """What the gate says of the adapter, beside the one that was current."""
        gate, store = self._asked.section.gate, self._runs.store
        baseline = looked.current if gate.baseline == "current" else None
        old: HeldOut | str | None = None
        if baseline is not None and gate.tolerance is not None:
            old = old_rows(store, resolve(store, baseline))
        request = dataclasses.replace(
            request,
            judged=(made.label, *([baseline] if baseline else ())),
            old=old if isinstance(old, HeldOut) else None,
        )
        found = self._judged(request)
        named = {label: self._figures(found, label) for label in request.judged}
        verdict = judged_by(
            gate,
            named[made.label],
            named[baseline] if baseline else None,
            gone=old if isinstance(old, str) else "",
        )
        self._tell(
            "gate",
            adapter=made.label,
            baseline=baseline,
            metric=gate.metric,
            holds=verdict.holds,
            lines=verdict.plain(),
        )
        return verdict

    def _judged(self, request: Request) -> dict[str, Any]:
        """Every adapter's figures on every set, measured now or by an earlier attempt."""
        if (before := self._read_judged(request)) is not None:
            return before
        self._on_workers(request)
        found = self._read_judged(request)
        assert found is not None
        return found

    def _read_judged(self, request: Request) -> dict[str, Any] | None:
        try:
            there = self._runs.read_json(JUDGED)
        except (NotFound, ValueError):
            return None  # not measured yet, or cut short
        return dict(there["found"]) if there.get("asked") == request.judging else None

    def _figures(self, found: dict[str, Any], label: str) -> Figures:
        name = self._asked.section.gate.measured
        return {rows: metrics.get(name) for rows, metrics in found.get(label, {}).items()}

    def _decided(self, looked: Looked, made: Manifest, verdict: Verdict) -> None:
        store = self._runs.store
        if not verdict.holds:
            return self._tell("kept", adapter=made.label, why=verdict.why)
        if not self._asked.section.promote:
            why = "the gate holds; retrain.promote is false"
            return self._tell("kept", adapter=made.label, why=why)
        if later_attempt(self._runs, self._attempt):
            why = f"{self._runs.run_id}: attempt {self._attempt} was replaced by a later one"
            raise Replaced(f"{why}, which decides. Nothing is lost: this attempt may end.")
        try:
            promote_after(store, made.name, made.version, move=looked.move)
        except Moved as moved:
            return self._tell("kept", adapter=made.label, why=str(moved))
        return self._tell("promoted", adapter=made.label, before=looked.current)

    def _on_workers(self, request: Request) -> None:
        # Here, because a run that finds nothing new is to load neither Ray nor torch.
        from jobs.cluster_run import connect, missing_resources, train

        if not self._connected:
            connect()
            self._connected = True
            if (missing := missing_resources(request)) is not None:
                print(f"waiting for the cluster: {missing}", flush=True)
        train(request, self._runs, attempt=self._attempt)

    def _tell(self, event: str, **facts: Any) -> None:
        self._runs.events.append({"event": event, "time": time.time(), **facts})


def _named(label: str) -> tuple[str, int]:
    name, version = split_name(label)
    assert version is not None
    return name, version
