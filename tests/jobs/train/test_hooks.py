"""The loop and its hooks, driven by a scripted trainer: no model and no workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.plan.plan import Plan, StagePlan
from jobs.spec.load import validate_spec
from jobs.store.adapters.manifest import Manifest
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import LEDGER, RunStore
from jobs.train.comm.collectives import WorkerContext
from jobs.train.hooks import CheckpointReport, EvaluationReport, RunHooks, StoppedEarly
from jobs.train.loop import NeedsSync, StageLoop, StepOutcome
from jobs.train.monitor.ledger import Ledger
from jobs.train.monitor.phases import PhaseStart, collect_starts
from jobs.train.monitor.recorder import RunRecorder

SPEC = {
    "name": "scripted", "model": {"path": "m", "task": "causal-lm"},
    "data": {"train": "x.jsonl", "eval": "y.jsonl"},
    "train": {"steps": 6, "eval_every": 2, "checkpoint_every": 2},
}  # fmt: skip


class ScriptedTrainer:
    """Counts up one weight in two stages of 4 and 2 rounds. Its own stages, too."""

    unit = "round"

    def __init__(self, runs: RunStore) -> None:
        self.spec, self.runs = validate_spec(SPEC), runs
        self.context = WorkerContext(0, 1, torch.device("cpu"))
        self.recorder, self.ledger = RunRecorder(runs, writes=True), Ledger(self.context)
        self.trained = torch.zeros(1)
        self.evaluated = list[float]()

    def load(self, state: Any) -> Plan:
        stages = (StagePlan("sparse", 4, 1, 0.1), StagePlan("low-rank", 2, 1, 0.1))
        return Plan(
            name="a", kind="slora", model_parameters=1, targets=("q",), target_weights=1, head=0,
            stages=stages, sharding="replicate", sharding_reason="", workers=1, batch_size=1,
            per_worker=1, micro_batch_size=1, accumulation=1,
        )  # fmt: skip

    def describe_start(self, plan: Plan) -> dict[str, Any]:
        return {"steps": 6}

    def get_length(self, stage: StagePlan) -> int:
        return stage.steps or 0

    def open_stage(self, index: int, weights: Mapping[str, Tensor], resumed: Any) -> Any:
        source = resumed.weights if resumed else weights
        self.trained = source.get("weight", torch.zeros(1)).clone()
        return self

    def make_record(self) -> dict[str, Any]:
        return {"own": True}

    def close_ledger(self, plan: Plan, step: int, lengths: Mapping[str, int]) -> None:
        self.ledger.close(plan, step, lengths)

    def publish(self, weights: Any, evaluations: Any) -> Manifest:
        raise AssertionError("every test replaces the commit")

    def train_step(self, number: int, step: int, needs_sync: NeedsSync) -> StepOutcome:
        self.trained += 1
        self.ledger["tokens"] += 10
        return StepOutcome(((step, {"loss": 1.0 / step}),))

    def evaluate(self) -> dict[str, float]:
        self.evaluated.append(float(self.trained))
        return {"loss": 1.0 / (1 + float(self.trained)), "perplexity": 1.0}

    def keep_start(self) -> None: ...

    def generate_samples(self, name: str) -> None: ...

    def gather_weights(self) -> dict[str, Tensor]:
        return {"weight": self.trained.clone()}

    def gather_moments(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def close(self, weights: Any) -> None: ...


class Watching(RunHooks):
    """Notes all calls, knows the first evaluation, and commits nothing."""

    wait_for_checkpoints = True

    def __init__(self, stop_at: int | None = None) -> None:
        self.evaluations, self.checkpoints = list[EvaluationReport](), list[CheckpointReport]()
        self.steps, self._stop_at = list[int](), stop_at

    def load_evaluation(self, name: str) -> dict[str, float] | None:
        return {"loss": 9.0, "perplexity": 9.0} if name == "before" else None

    def on_evaluation(self, report: EvaluationReport) -> bool:
        self.evaluations.append(report)
        return report.step != self._stop_at

    def on_checkpoint(self, report: CheckpointReport) -> None:
        self.checkpoints.append(report)

    def on_step_end(self, step: int) -> None:
        self.steps.append(step)

    def commit(self, publish: Any) -> None: ...


@pytest.fixture
def runs(tmp_path) -> RunStore:
    return RunStore(DirectoryStore(tmp_path), "run")


def test_hooks_observe_every_evaluation_and_checkpoint_and_may_replace_the_commit(runs):
    trainer, hooks = ScriptedTrainer(runs), Watching()
    loop = StageLoop(trainer, hooks=hooks)
    assert loop.run() is None
    names = ["round 2", "sparse", "handoff", "end"]
    assert [report.name for report in hooks.evaluations] == names
    assert [report.is_periodic for report in hooks.evaluations] == [True, False, False, False]
    # Known before: recorded, but neither evaluated nor reported.
    assert trainer.evaluated == [2, 4, 4, 6]
    assert loop.evaluations["before"] == {"loss": 9.0, "perplexity": 9.0}
    saved = [(report.step, report.is_stage_end, report.tokens) for report in hooks.checkpoints]
    assert saved == [(2, False, 20), (4, True, 40), (6, True, 60)]
    assert hooks.steps == [1, 2, 3, 4, 5, 6]
    assert runs.read_json(LEDGER)["steps_by_stage"] == {"sparse": 4, "low-rank": 2}
    kinds = [event["event"] for event in runs.events.tail(0)[0]]
    assert "published" not in kinds


def test_a_hook_ends_the_run_after_its_checkpoint_and_another_try_resumes_there(runs):
    with pytest.raises(StoppedEarly):
        StageLoop(ScriptedTrainer(runs), hooks=Watching(stop_at=2)).run()
    assert runs.list_checkpoint_steps() == [2]
    trainer, hooks = ScriptedTrainer(runs), Watching()
    StageLoop(trainer, hooks=hooks).run()
    assert hooks.steps == [3, 4, 5, 6]
    assert float(trainer.trained) == 6
    resumed = [event for event in runs.events.tail(0)[0] if event["event"] == "resumed"]
    assert [(event["step"], event["unit"]) for event in resumed] == [(2, "round")]


class RevisitingTrainer(ScriptedTrainer):
    """Keeps the weight of its start until the first step is done."""

    def __init__(self, runs: RunStore) -> None:
        super().__init__(runs)
        self.recorder = RunRecorder(runs, writes=True, start=PhaseStart.begin(3))

    def keep_start(self) -> Any:
        start = self.trained.clone()

        @contextmanager
        def revisit() -> Iterator[None]:
            trained, self.trained = self.trained, start
            yield
            self.trained = trained

        return SimpleNamespace(revisit=revisit)


class Uncommitted(RunHooks):
    def commit(self, publish: Any) -> None: ...


def test_the_first_evaluation_is_made_after_the_first_step_with_the_weights_of_the_start(runs):
    trainer = RevisitingTrainer(runs)
    loop = StageLoop(trainer, hooks=Uncommitted())
    loop.run()
    assert trainer.evaluated == [0, 2, 4, 4, 6]
    assert loop.evaluations["before"] == {"loss": 1.0, "perplexity": 1.0}
    events = runs.events.tail(0)[0]
    first = next(event for event in events if event["event"] == "evaluated")
    assert (first["at"], first["step"]) == ("before", 0)
    kinds = [event.get("phase", event["event"]) for event in events]
    assert kinds.index("first_step") < kinds.index("evaluated")
    assert [start.attempt for start in collect_starts(events)] == [3]


def test_the_loop_ends_the_phases_up_to_the_first_step_once(runs):
    StageLoop(RevisitingTrainer(runs), hooks=Uncommitted()).run()
    phases = [event["phase"] for event in runs.events.tail(0)[0] if "phase" in event]
    assert phases == ["compile", "evaluation", "first_step"]
