"""One setting trained on the product's own loop, without Ray, and measured on the test rows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.quality.plan import Part, Setting


def prepared(part: Part, folder: Path) -> dict[str, str]:
    """train, validation (cut from train) and test rows as files, the same ones every time."""
    name = f"{part.name}-{part.train_rows}-{part.validation_rows}-{part.test_rows}"
    paths = {kind: folder / f"{name}.{kind}.jsonl" for kind in ("train", "validation", "test")}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        train, test = (_shuffled(Path(part.data[kind])) for kind in ("train", "test"))
        cut = part.validation_rows
        rows = {
            "validation": train[:cut],
            "train": train[cut : None if part.train_rows is None else cut + part.train_rows],
            "test": test[: part.test_rows],
        }
        for kind, path in paths.items():
            path.write_text("".join(rows[kind]), encoding="utf-8")
    data = {kind: str(path) for kind, path in paths.items()}
    return {**data, "model": _model(part, folder)}


def _model(part: Part, folder: Path) -> str:
    """The part's model, or a folder with its first layers alone."""
    if part.layers is None:
        return part.model
    made = folder / f"{Path(part.model).name}-{part.layers}"
    if not (made / "config.json").exists():
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

        config = AutoConfig.from_pretrained(part.model, num_hidden_layers=part.layers)
        kind = AutoModelForCausalLM if part.task == "causal-lm" else AutoModel
        kind.from_pretrained(part.model, config=config).save_pretrained(made)
        AutoTokenizer.from_pretrained(part.model).save_pretrained(made)
    return str(made)


def _shuffled(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return sorted(lines, key=lambda line: hashlib.sha256(line.encode()).hexdigest())


def start_process(threads: int, device: str) -> None:
    """A process group of one, as the loop expects it."""
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
        HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error",
    )  # fmt: skip
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    torch.set_num_threads(threads)
    store = torch.distributed.HashStore()
    backend = "gloo" if device == "cpu" else "nccl"
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


def train_one(setting: Setting, data: Mapping[str, str], device: str) -> dict[str, Any]:
    """The figures of one training; `unavailable` and a reason where its spec is refused."""
    import torch

    from jobs.errors import InputError, TrainingFailed
    from jobs.plan.preflight import validate_run
    from jobs.spec.load import validate_spec
    from jobs.store.open import open_store
    from jobs.store.runs.run_store import RunStore

    folder = Path(tempfile.mkdtemp(prefix="slora-quality-"))
    began = time.monotonic()
    try:
        checked = validate_run(validate_spec(setting.spec(data, f"file://{folder}")))
        runs = RunStore(open_store(checked.spec.store), "quality")
        request = checked.make_request("quality")
        training, hooks = _make_training(request, runs, torch.device(device), data["test"])
        training.run()
        figures = _figures(setting, training, hooks.test, runs)
        return {**figures, "seconds": time.monotonic() - began}
    except InputError as refused:
        return {"unavailable": str(refused)}
    except TrainingFailed as diverged:
        # A rate that was too high: the worst figure there is, so that it is not chosen.
        return {"unavailable": f"diverged: {diverged}"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_training(request: Any, runs: Any, device: Any, test: str) -> Any:
    """The training's loop and its hooks: one more evaluation at its end, on the test rows."""
    import dataclasses

    from jobs.inspect.datasets.scan import scan_dataset
    from jobs.train.comm.collectives import WorkerContext
    from jobs.train.data.worker_feeds import make_eval_feed
    from jobs.train.evaluation import evaluate
    from jobs.train.fine_tuning import FineTuner
    from jobs.train.hooks import RunHooks
    from jobs.train.loop import StageLoop
    from jobs.train.model.tokenizer import load_tokenizer

    class TestRows(RunHooks):
        # They take longer than the training.
        generates_samples = False
        test: dict[str, float]

        def on_evaluation(self, report: Any) -> bool:
            if report.name == "end":
                spec = request.spec
                scan = scan_dataset(test, spec.data.format, spec.model.task, "test")
                on_test = dataclasses.replace(request, eval_data=scan)
                tokenizer = load_tokenizer(str(request.base))
                feed = make_eval_feed(on_test, tokenizer, rank=0, world_size=1)
                self.test = evaluate(trainer.model, feed, device=device)
            return True

    hooks = TestRows()
    trainer = FineTuner(request, runs, WorkerContext(0, 1, device), hooks=hooks)
    return StageLoop(trainer, hooks=hooks), hooks


def _figures(setting: Setting, training: Any, test: Any, runs: Any) -> dict[str, Any]:
    part, ledger = setting.part, training.trainer.ledger
    metrics, _ = runs.metrics.tail(0)
    trained = [ledger[key] for key in ledger if key.endswith("_trainable")]
    return {
        "rival": setting.rival,
        "part": part.name,
        "rates": list(setting.rates),
        "seed": setting.seed,
        "validation": training.evaluations["end"][part.metric],
        "test": test[part.metric],
        "stages": {at: found[part.metric] for at, found in training.evaluations.items()},
        "kept": ledger.get("handoff_energy_share"),
        "trainable": max(trained),
        "share": max(trained) / ledger["model_parameters"],
        "tokens": ledger["tokens"],
        "tokens_to_target": _tokens_to(part, metrics),
        "step_seconds": ledger["seconds"],
    }


def _tokens_to(part: Part, metrics: list[dict[str, Any]]) -> float | None:
    """Tokens trained on when an evaluation first met the target; None if none did."""
    tokens = 0.0
    for line in metrics:
        if "evaluation" not in line:
            tokens = line["tokens"]
        elif _met(part, line[part.metric]):
            return tokens
    return None


def _met(part: Part, figure: float) -> bool:
    return figure >= part.target if part.metric == "accuracy" else figure <= part.target


def append(path: Path, line: Mapping[str, Any]) -> None:
    """One result, whole or not at all, however many processes write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(line) + "\n").encode())
