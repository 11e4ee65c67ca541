"""Whole trainings of tiny models on spawned ranks, many in one group, and what they left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ranks import run_ranks


@dataclass(frozen=True)
class Asked:
    """One training: its spec as plain values, and where it is to die."""

    run: str
    spec: Mapping[str, Any]
    dies: str = ""
    """'' | 'step N' (after it) | 'commit'"""
    machines: tuple[str, ...] = ()
    """Of each rank; one machine for all where it is empty."""
    notices: int = 0
    """The step from which on the last rank is told that it will be stopped."""
    parent: str | None = None
    """The adapter that it goes on from."""


@dataclass(frozen=True)
class Left:
    """What one training left on rank 0, and what every rank saw."""

    losses: list[float]
    evaluations: dict[str, dict[str, float]]
    ledger: dict[str, float]
    files: dict[str, str]
    """Digest by name of the adapter's files; empty where it died."""
    base_untouched: bool
    masks: list[dict[str, str]]
    """Digest by layer, for each rank."""


def train_all(asked: Sequence[Asked], world_size: int) -> dict[str, Left]:
    """Runs them one after the other on `world_size` gloo ranks."""
    by_rank = run_ranks(several, world_size, list(asked), world_size)
    return {
        one.run: Left(
            **{**by_rank[0][one.run], "masks": [told[one.run]["masks"] for told in by_rank]}
        )
        for one in asked
    }


class Died(Exception):
    """The death that a training was asked to die."""


def several(rank: int, asked: list[Asked], world_size: int) -> dict[str, dict[str, Any]]:
    from jobs.deepspeed_wire import distributed

    distributed("gloo")
    return {one.run: _one(rank, one, world_size) for one in asked}


def _one(rank: int, asked: Asked, world_size: int) -> dict[str, Any]:
    import torch

    from jobs.preflight import check
    from jobs.spec_file import validate_spec
    from jobs.store.objects import open_store
    from jobs.store.runs import RunStore
    from jobs.team import team_of
    from jobs.training import Training

    class Mortal(Training):
        def _after_step(self, *told: Any) -> None:
            super()._after_step(*told)
            if asked.dies == f"step {self.step}":
                raise Died

        def _publish(self, weights: Any) -> Any:
            if asked.dies == "commit":
                raise Died
            return super()._publish(weights)

    raw = dict(asked.spec)
    asked_for = raw.get("cluster", {}).get("workers")
    workers = asked_for if isinstance(asked_for, dict) else world_size
    raw["cluster"] = {**raw.get("cluster", {}), "workers": workers}
    checked = check(validate_spec(raw))
    runs = RunStore(open_store(checked.spec.store), asked.run)
    request = checked.request(asked.run, parent=asked.parent)
    machine = asked.machines[rank] if asked.machines else "here"
    team = team_of(rank, world_size, torch.device("cpu"), machine=machine)
    training = Mortal(request, runs, team)
    if asked.notices and rank == world_size - 1:
        training._notice = lambda: training.step >= asked.notices
    manifest = None
    try:
        manifest = training.run()
    except Died:
        assert asked.dies
    metrics, _ = runs.metrics.tail(0)
    return {
        "losses": [metric["loss"] for metric in metrics if "evaluation" not in metric],
        "evaluations": training.evaluations,
        "ledger": training.ledger,
        "files": {file.name: file.sha256 for file in manifest.files} if manifest else {},
        "base_untouched": _untouched(training, checked.model.folder),
        "masks": {name: mask.digest() for name, mask in (training.method.masks or {}).items()},
    }


def _untouched(training: Any, folder: Path) -> bool:
    """Whether the base's weights in the trained model are those of the folder, bit for bit."""
    import torch
    from safetensors.torch import load_file

    from jobs.base_shards import whole

    saved = load_file(folder / "model.safetensors")
    prefix = f"{training.model.base_model_prefix}."
    with whole(*training.model.parameters()):
        there = dict(training.model.named_parameters())
        return all(
            torch.equal(
                (found := there[name if name in there else prefix + name]).detach().cpu(),
                tensor.to(found.dtype),
            )
            for name, tensor in saved.items()
            if tensor.is_floating_point()
        )
