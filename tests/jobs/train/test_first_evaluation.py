"""A training whose base is evaluated after the first step is the one that evaluates it before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.store.open import open_store
from jobs.store.runs.canary_file import CANARY_FILE, parse_canary
from tests.ranks import run_ranks
from tests.tiny import chat_rows, merge_spec, tiny_chat_model, tiny_spec

pytestmark = [pytest.mark.long, pytest.mark.ranks, pytest.mark.timeout(600)]
CASES: dict[str, dict[str, Any]] = {
    "slora": {"method": {"kind": "slora"}},
    "sparse": {"method": {"kind": "sparse"}, "model": {"dtype": "bfloat16"}},
    "lora": {"method": {"kind": "lora"}, "cluster": {"sharding": "cluster"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("first")
    tiny_chat_model(path / "model")
    chat_rows(path / "train.jsonl", 60)
    chat_rows(path / "eval.jsonl", 9)
    return path


def test_losses_evaluations_answers_and_adapters_are_the_same_to_the_bit(folder: Path):
    results = run_ranks(train_both_ways, 2, str(folder))[0]
    for name in CASES:
        late, early = results[name, True], results[name, False]
        assert late["order"] != early["order"], name
        assert {**late, "order": None} == {**early, "order": None}, name


def test_the_canary_file_has_the_loss_of_the_committed_adapter_on_its_rows(folder: Path):
    import torch

    from jobs.tools.load_adapter import load_adapted_model

    store = open_store(tiny_spec(folder)["store"])
    for name in ("slora", "lora"):
        canary = parse_canary(store.get(f"runs/{name}-1/{CANARY_FILE}"), CANARY_FILE)
        assert (len(canary.rows), len(canary.prompts), canary.is_chat) == (4, 3, True)
        model, total, count = load_adapted_model(store, name).model, 0.0, 0
        for row in canary.rows:
            with torch.no_grad():
                scores = model(torch.tensor([row.tokens])).logits[0].log_softmax(-1)
            for position in row.targets:
                total -= float(scores[position - 1, row.tokens[position]])
                count += 1
        assert canary.loss == pytest.approx(total / count, rel=1e-5), name


def train_both_ways(rank: int, folder: str) -> dict[tuple[str, bool], dict[str, Any]]:

    return {
        (name, keeps): _train(rank, Path(folder), name, keeps)
        for name in CASES
        for keeps in (True, False)
    }


def _train(rank: int, folder: Path, name: str, keeps_start: bool) -> dict[str, Any]:
    import torch

    from jobs.plan.preflight import validate_run
    from jobs.spec.load import validate_spec
    from jobs.store.open import open_store
    from jobs.store.runs.run_store import RunStore
    from jobs.train.comm.collectives import make_worker_context
    from jobs.train.fine_tuning import FineTuner, FineTuningStage
    from jobs.train.loop import StageLoop

    class EarlyStage(FineTuningStage):
        def keep_start(self) -> None:
            return None

    class EarlyTuner(FineTuner):
        def open_stage(self, *arguments: Any) -> FineTuningStage:
            stage = super().open_stage(*arguments)
            if not keeps_start:
                stage.__class__ = EarlyStage
            return stage

    train = {"steps": 6, "eval_every": 2, "checkpoint_every": 2}
    data = {"eval": str(folder / "eval.jsonl")}
    spec = tiny_spec(folder, name=name, data=data, train=train, cluster={"workers": 2})
    checked = validate_run(validate_spec(merge_spec(spec, CASES[name])))
    runs = RunStore(open_store(checked.spec.store), f"{name}-{int(keeps_start)}")
    request = checked.make_request(runs.run_id)
    context = make_worker_context(rank, 2, torch.device("cpu"), machine="here")
    loop = StageLoop(EarlyTuner(request, runs, context))
    manifest = loop.run()
    events, metrics = runs.events.tail(0)[0], runs.metrics.tail(0)[0]
    samples = {event["at"]: event["samples"] for event in events if event["event"] == "samples"}
    return {
        "losses": [metric["loss"] for metric in metrics if "evaluation" not in metric],
        "evaluations": loop.evaluations,
        "samples": samples,
        "canary": runs.read_json(CANARY_FILE),
        "files": {file.name: file.sha256 for file in manifest.files} if manifest else {},
        "order": [metric.get("evaluation", "step") for metric in metrics][:2],
    }
