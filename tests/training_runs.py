"""Full trainings of tiny models on spawned ranks, many in one group, and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.train.request import TrainingRequest
from tests.ranks import run_ranks


@dataclass(frozen=True)
class TrainingCase:
    """A training: its spec as plain values, and where it dies."""

    run: str
    spec: Mapping[str, Any]
    dies: str = ""
    """'' | 'step N' (after it) | 'commit'"""
    machines: tuple[str, ...] = ()
    """The machine of each rank; empty means one for all."""
    notices: int = 0
    """The step from which on the last rank is preempted."""
    parent: str | None = None
    """The adapter to start from."""
    samples: bool = False
    """Whether answers are generated, before and after: they take longer than so small a run."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training on rank 0, and the masks of every rank."""

    losses: list[float]
    evaluations: dict[str, dict[str, float]]
    ledger: dict[str, float]
    files: dict[str, str]
    """Digest by name of the adapter's files; empty if it died."""
    base_untouched: bool
    masks: list[dict[str, str]]
    """Digest by layer, for each rank."""


def train_all(cases: Sequence[TrainingCase], world_size: int) -> dict[str, TrainingResult]:
    """Run them one after the other on `world_size` gloo ranks."""
    by_rank = run_ranks(train_several, world_size, list(cases), world_size)
    return {
        case.run: TrainingResult(
            **{**by_rank[0][case.run], "masks": [results[case.run]["masks"] for results in by_rank]}
        )
        for case in cases
    }


class Died(Exception):
    """The death of a training, as its case says."""


def train_several(
    rank: int, cases: list[TrainingCase], world_size: int
) -> dict[str, dict[str, Any]]:

    return {case.run: _train_case(rank, case, world_size) for case in cases}


def _train_case(rank: int, case: TrainingCase, world_size: int) -> dict[str, Any]:
    import torch

    from jobs.store.open import open_store
    from jobs.store.runs.run_store import RunStore
    from jobs.train.comm.collectives import make_worker_context
    from jobs.train.fine_tuning import FineTuner
    from jobs.train.hooks import RunHooks
    from jobs.train.loop import StageLoop

    class Mortal(RunHooks):
        """Dies where the case says."""

        generates_samples = case.samples

        def on_step_end(self, step: int) -> None:
            if case.dies == f"step {step}":
                raise Died

        def commit(self, publish: Any) -> Any:
            if case.dies == "commit":
                raise Died
            return publish()

    def is_preempted() -> bool:
        return bool(case.notices) and rank == world_size - 1 and loop.step >= case.notices

    request = _share_request(rank, case, world_size)
    runs = RunStore(open_store(request.spec.store), case.run)
    machine = case.machines[rank] if case.machines else "here"
    context = make_worker_context(rank, world_size, torch.device("cpu"), machine=machine)
    hooks = Mortal()
    trainer = FineTuner(request, runs, context, hooks=hooks, preemption_requested=is_preempted)
    loop = StageLoop(trainer, hooks=hooks)
    manifest = None
    try:
        manifest = loop.run()
    except Died:
        assert case.dies
    metrics, _ = runs.metrics.tail(0)
    return {
        "losses": [metric["loss"] for metric in metrics if "evaluation" not in metric],
        "evaluations": loop.evaluations,
        "ledger": trainer.ledger,
        "files": {file.name: file.sha256 for file in manifest.files} if manifest else {},
        "base_untouched": _is_base_untouched(trainer.model, request.base),
        "masks": {name: mask.digest() for name, mask in (trainer.method.masks or {}).items()},
    }


def _share_request(rank: int, case: TrainingCase, world_size: int) -> TrainingRequest:
    """Return the request that rank 0 makes for all, as the driver of a run does. A collective."""
    import torch

    shared = [_make_request(case, world_size) if rank == 0 else None]
    torch.distributed.broadcast_object_list(shared, src=0)
    (request,) = shared
    assert request is not None
    return request


def _make_request(case: TrainingCase, world_size: int) -> TrainingRequest:
    from jobs.plan.preflight import validate_run
    from jobs.spec.load import validate_spec

    raw = dict(case.spec)
    spec_workers = raw.get("cluster", {}).get("workers")
    workers = spec_workers if isinstance(spec_workers, dict) else world_size
    raw["cluster"] = {**raw.get("cluster", {}), "workers": workers}
    return validate_run(validate_spec(raw)).make_request(case.run, parent=case.parent)


def _is_base_untouched(model: Any, folder: Path) -> bool:
    """Return whether the model's base has the weights of the folder, bit for bit."""
    import torch
    from safetensors.torch import load_file

    from jobs.train.model.shard_access import gather_for_reading

    saved = load_file(folder / "model.safetensors")
    prefix = f"{model.base_model_prefix}."
    with gather_for_reading(*model.parameters()):
        parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        # A classifier lacks what only the model's other task has.
        pairs = (
            (parameters.get(name, parameters.get(prefix + name)), tensor)
            for name, tensor in saved.items()
            if tensor.is_floating_point()
        )
        return all(
            torch.equal(parameter.detach().cpu(), tensor.to(parameter.dtype))
            for parameter, tensor in pairs
            if parameter is not None
        )
