"""One setting trained on the product's own federation, in this process, without Ray."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.paper.plan import Setting

RUN = "paper"


def train_one(setting: Setting, data: Mapping[str, str], device: str) -> dict[str, Any]:
    """The figures of one training; `unavailable` and a reason where its spec is refused."""
    from jobs.errors import InputError, TrainingFailed

    folder = Path(tempfile.mkdtemp(prefix="slora-paper-"))
    began = time.monotonic()
    try:
        found = _trained(setting, data, f"file://{folder}", device)
        return {**found, "wall_seconds": time.monotonic() - began}
    except InputError as refused:
        return {"unavailable": str(refused)}
    except TrainingFailed as diverged:
        # A rate that was too high: tried, and never chosen.
        return {"unavailable": f"diverged: {diverged}"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _trained(setting: Setting, data: Mapping[str, str], store: str, device: str) -> dict[str, Any]:
    import torch

    from jobs.federation.check import check_federation
    from jobs.federation.round_log import open_round_log
    from jobs.federation.server import make_federation
    from jobs.spec.kinds import require_kind
    from jobs.spec.load import validate_spec
    from jobs.spec.schema import FederatedSpec
    from jobs.store.open import open_store
    from jobs.store.runs.run_store import RunStore

    # The rounds are evaluated on the test rows; the validation rows only once, at the end.
    spec = require_kind(validate_spec(setting.spec(data, store, data["test"])), FederatedSpec)
    validated = check_federation(spec)
    assert validated.partition is not None
    objects = open_store(spec.store)
    runs = RunStore(objects, RUN)
    request = validated.extend_request(validated.validated_run.make_request(RUN), runs)
    sites = _judged_sites(setting, data["validation"])(
        request, objects, torch.device(device), mark_trainable=TRAINED.get(setting.trained or "")
    )
    loop = make_federation(request, runs, sites, validated.partition)
    loop.run()
    ledger = loop.trainer.ledger
    metrics, _ = runs.metrics.tail(0)
    lines, _ = open_round_log(runs).tail(0)
    return {
        **_settled(setting),
        **figures(setting.part.metric, metrics, lines, _calibration(ledger)),
        "validation": sites.validation[setting.part.metric],
        "kept": ledger.get("handoff_energy_share"),
        "parameters": ledger["model_parameters"],
        "rows_by_client": [len(rows) for rows in validated.partition.rows],
    }


def _settled(setting: Setting) -> dict[str, Any]:
    """What was asked, for people who read the file."""
    return {
        "part": setting.part.name,
        "partition": setting.partition,
        "rival": setting.rival,
        "rates": list(setting.rates),
        "seed": setting.seed,
    }


def figures(
    metric: str, metrics: list[dict[str, Any]], lines: list[dict[str, Any]], calibration: int
) -> dict[str, Any]:
    """The test figure at every evaluation, and what each round cost, from the run's journals.

    What the first round's clients sent before it, for the masks, is added to what they send in it.
    """
    points = [
        {"round": line["step"], "at": line["evaluation"], "test": line[metric]}
        for line in metrics
        if "evaluation" in line
    ]
    at = {point["at"]: point["test"] for point in points}
    rounds = [_round(line) for line in lines]
    rounds[0]["up"] += calibration
    return {
        "test": points[-1]["test"],
        "points": points,
        "rounds": rounds,
        "trained": {line["stage"]: line["trained"] for line in rounds},
        "handoff": {"before": at.get("sparse"), "after": at["handoff"]}
        if "handoff" in at
        else None,
    }


def _round(line: Mapping[str, Any]) -> dict[str, Any]:
    """One round: bytes of all clients together, and the seconds of the median one."""
    clients = line["clients"]
    answered = [one for one in clients if "failure" not in one]
    return {
        "round": line["round"],
        "stage": line["stage"],
        "clients": len(clients),
        "answered": len(answered),
        "down": sum(one["down"] + one["payload"] for one in clients),
        "up": sum(one["up"] for one in clients),
        "tokens": sum(one["tokens"] for one in answered),
        "client_seconds": statistics.median(one["seconds"] for one in answered) if answered else 0,
        "trained": clients[0]["down"] // 4,
    }


def _calibration(ledger: Mapping[str, Any]) -> int:
    """Bytes of the scores that the first round's clients sent before it."""
    return sum(causes["calibration"]["bytes"] for causes in ledger["wire"].values()
               if "calibration" in causes)  # fmt: skip


def _judged_sites(setting: Setting, validation: str) -> Any:
    """LocalSites that, before they publish, measure what they have on the validation rows too."""
    from jobs.federation.sites.local_sites import LocalSites
    from jobs.federation.sites.messages import CommitRecord, StagePayload
    from jobs.inspect.datasets.scan import scan_dataset
    from jobs.train.evaluation_sums import compute_metrics

    class Judged(LocalSites):
        validation: dict[str, float]

        def __init__(self, request: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(request, *arguments, **options)
            rows = scan_dataset(validation, setting.part.format, setting.part.task, "validation")
            request = dataclasses.replace(request, eval_data=rows)
            self._make_judge = partial(LocalSites, request, *arguments, **options)

        def open_stage(self, stage: int, payload: StagePayload) -> Any:
            self._opened = stage, payload
            return super().open_stage(stage, payload)

        def commit(self, weights: bytes, record: CommitRecord) -> Any:
            # A second site with the validation rows; like any client it gets the stage's payload.
            judge = self._make_judge()
            judge.open_stage(*self._opened)
            sums = judge.evaluate(weights)
            totals = [sum(column) for column in zip(*(e.values for e in sums), strict=True)]
            self.validation = compute_metrics(totals, "class")
            return super().commit(weights, record)

    return Judged


def biases_and_head(model: Any) -> None:
    """BitFit (Ben Zaken et al., 2022): every bias, and what the task has added to the base."""
    from jobs.train.model.base_model import list_head_modules

    head = tuple(f"{name}." for name, _ in list_head_modules(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or name.startswith(head))


def head_alone(model: Any) -> None:
    """What the task has added to the base: how much of a figure is its alone."""
    from jobs.train.model.base_model import list_head_modules

    head = tuple(f"{name}." for name, _ in list_head_modules(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(head))


TRAINED: Mapping[str, Callable[[Any], None]] = {"bitfit": biases_and_head, "head": head_alone}
"""What of kind full is trained, by name."""
