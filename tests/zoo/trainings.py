"""Trainings of one model in this process, and what an observer of the model sees of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.zoo.case import ZooCase


@dataclass
class Forward:
    """One call of a model: its inputs and its logits."""

    inputs: dict[str, Any]
    logits: Tensor
    trains: bool
    """Whether gradients were asked for."""


@dataclass
class Training:
    """A run that came to its end."""

    losses: list[float]
    evaluations: dict[str, dict[str, float]]
    forwards: list[Forward]
    plan: dict[str, Any]
    """As `slora plan --json` shows it before the run."""
    final_plan: dict[str, Any]
    """As the run wrote it, from the loaded model."""
    adapter: Path | None = None
    """The committed folder; None on other ranks than the first."""
    label: str = ""
    state: dict[str, Tensor] = field(default_factory=dict)
    """The model's tensors after the run, by name."""


def train(
    case: ZooCase,
    kind: str,
    plan: dict[str, Any],
    *,
    rank: int = 0,
    world_size: int = 1,
    sharding: str = "auto",
) -> Training:
    """Run the training loop that a worker runs, and return what came of it."""
    import json

    from jobs.plan.preflight import validate_run
    from jobs.spec.load import validate_spec
    from jobs.store.open import open_store
    from jobs.store.runs.run_store import RunStore
    from jobs.train.comm.collectives import make_worker_context
    from jobs.train.fine_tuning import FineTuner
    from jobs.train.hooks import RunHooks
    from jobs.train.loop import StageLoop

    cluster = {"workers": world_size, "sharding": sharding}
    checked = validate_run(validate_spec(case.make_spec(kind, cluster=cluster)))
    run = f"{kind}-{sharding}-{world_size}"
    runs = RunStore(open_store(checked.spec.store), run)
    context = make_worker_context(rank, world_size, torch.device("cpu"), machine="here")
    hooks = RunHooks()
    # Samples are the slowest part of so small a run: those of one kind show that they work.
    hooks.generates_samples = kind == "lora"
    trainer = FineTuner(checked.make_request(run), runs, context, hooks=hooks)
    loop = StageLoop(trainer, hooks=hooks)
    with observe_forwards() as forwards:
        manifest = loop.run()
    metrics, _ = runs.metrics.tail(0)
    store = case.folder / "store"
    return Training(
        losses=[metric["loss"] for metric in metrics if "evaluation" not in metric],
        evaluations=loop.evaluations,
        forwards=forwards,
        plan=plan,
        final_plan=json.loads((store / "runs" / run / "plan.json").read_text("utf-8")),
        adapter=store / manifest.prefix if manifest else None,
        label=manifest.label if manifest else "",
        state={} if world_size > 1 else copy_state(trainer.model),
    )


def copy_state(model: Any) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, also those that are never saved."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in named.items()}


@contextmanager
def observe_forwards() -> Iterator[list[Forward]]:
    """Record every call of a transformers model inside the block, by a hook of torch's own."""
    forwards: list[Forward] = []

    def record(module: Any, args: Any, inputs: Any, output: Any) -> None:
        logits = getattr(output, "logits", None)
        if not isinstance(module, PreTrainedModel) or not isinstance(logits, Tensor):
            return
        if not isinstance(inputs.get("input_ids"), Tensor):
            return
        copies = {
            name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        forwards.append(Forward(copies, logits.detach().clone(), torch.is_grad_enabled()))

    handle = torch.nn.modules.module.register_module_forward_hook(record, with_kwargs=True)
    try:
        yield forwards
    finally:
        handle.remove()
