"""Everything that can be known before a worker starts, all faults reported together. No torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder

from jobs.errors import Fault, InputError, StoreError, Unreachable
from jobs.inspect.datasets.heldout import check_split
from jobs.inspect.datasets.scan import (
    DatasetScan,
    ScanProgress,
    check_eval_labels,
    check_train_labels,
    scan_dataset,
)
from jobs.inspect.model_files import ModelFiles, digest_model, read_model
from jobs.plan.estimate.base_tensors import describe_base
from jobs.plan.estimate.from_spec import CheckedFacts
from jobs.plan.estimate.speed import Speed, find_speed
from jobs.plan.plan import ModelShape, Plan, check_batch, make_plan
from jobs.spec.schema import RunSpec
from jobs.store.base import open_store
from jobs.train.early_stopping import find_stop_faults
from jobs.train.request import TrainingRequest

QUICK_ROWS = 200
"""Rows that a plan looks at; a run reads them all."""


@dataclass(frozen=True)
class ValidatedRun:
    """A spec that can be run, and what was learnt while checking it."""

    spec: RunSpec
    model: ModelFiles
    train_scan: DatasetScan
    eval_scan: DatasetScan | None
    plan: Plan

    def make_request(
        self,
        run_id: str,
        *,
        base_digest: str | None = None,
        search: str | None = None,
        parent: str | None = None,
    ) -> TrainingRequest:
        """What its workers get. `digest` is the base's where it is known: to make it reads it."""
        return TrainingRequest(
            spec=self.spec,
            run_id=run_id,
            plan=self.plan,
            base=self.model.folder,
            base_digest=base_digest or digest_model(self.model.folder),
            train_data=self.train_scan,
            eval_data=self.eval_scan,
            search=search,
            parent=parent,
        )


def validate_run(
    spec: RunSpec,
    *,
    quick: bool = False,
    with_store: bool = True,
    progress: ScanProgress | None = None,
) -> ValidatedRun:
    """Raises InputError with every fault of the spec, the model, the data and the store.

    `quick` looks at the first rows only and writes nothing to the store. Without `store` that is
    not looked at: who submits a run elsewhere may not reach it.
    """
    spec = spec.training
    faults = [*find_stop_faults(spec), *_check_strategies(spec)]
    model, extra_faults = read_model(spec.model)
    faults += extra_faults
    train_scan, eval_scan, extra_faults = _scan_data(spec, QUICK_ROWS if quick else None, progress)
    faults += extra_faults
    faults += _check_model_fit(spec, model, train_scan)
    plan = None
    if model:
        plan, extra_faults = _plan_run(spec, model, train_scan, eval_scan, with_history=with_store)
        faults += extra_faults
    else:
        faults += check_batch(spec)
    faults += _check_store(spec, write=not quick) if with_store else []
    if faults or not (model and train_scan and plan):
        raise InputError(faults)
    return ValidatedRun(spec, model, train_scan, eval_scan, plan)


def replan(validated: ValidatedRun, spec: RunSpec, *, with_history: bool = True) -> ValidatedRun:
    """The same model and data under another spec. Raises InputError.

    Without `past` the store's runs are not asked how fast they were: with many, that takes seconds.
    """
    faults = [*find_stop_faults(spec), *_check_strategies(spec)]
    faults += _check_model_fit(spec, validated.model, validated.train_scan)
    plan, extra_faults = _plan_run(
        spec, validated.model, validated.train_scan, validated.eval_scan, with_history=with_history
    )
    faults += extra_faults
    if faults or plan is None:
        raise InputError(faults)
    return replace(validated, spec=spec, plan=plan)


def _plan_run(
    spec: RunSpec,
    model: ModelFiles,
    train_scan: DatasetScan | None,
    eval_scan: DatasetScan | None,
    *,
    with_history: bool = True,
) -> tuple[Plan | None, list[Fault]]:
    labels = len(train_scan.labels) if train_scan else 0
    head = model.count_head_parameters(spec.model.task, labels)
    shape = ModelShape(model.parameters, model.linears, head, model.experts)
    speed = _read_speed(spec) if with_history else find_speed(spec, None)
    facts = _collect_facts(spec, model, head, train_scan, eval_scan, speed)
    return make_plan(spec, shape, facts=facts)


def _check_strategies(spec: RunSpec) -> list[Fault]:
    """Of a mask strategy of the user's own: its package has to be there. Nothing is imported."""
    faults = []
    for key in ("mask", "score"):
        strategy: str = getattr(spec.method, key)
        package = strategy.partition(":")[0].partition(".")[0]
        if ":" in strategy and PathFinder.find_spec(package, [os.getcwd(), *sys.path]) is None:
            problem = f"there is no package {package} here for {strategy}"
            remedy = "Install it, or start where its folder lies."
            faults.append(Fault(f"method.{key}", problem, remedy))
    return faults


def _scan_data(
    spec: RunSpec, limit: int | None, progress: ScanProgress | None
) -> tuple[DatasetScan | None, DatasetScan | None, list[Fault]]:
    data, faults = spec.data, list[Fault]()
    scans: dict[str, DatasetScan] = {}
    for key, path in (("data.train", data.train), ("data.eval", data.eval)):
        if path is None:
            continue
        try:
            scans[key] = scan_dataset(
                path, data.format, spec.model.task, key, limit=limit, progress=progress
            )
        except InputError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    train_scan, eval_scan = scans.get("data.train"), scans.get("data.eval")
    if train_scan and limit is None:
        faults += check_train_labels(train_scan)
        if eval_scan:
            faults += check_eval_labels(train_scan, eval_scan)
        if data.eval_fraction:
            faults += check_split(
                train_scan.rows_by_file, fraction=data.eval_fraction, seed=spec.train.seed
            )
    if train_scan and eval_scan and train_scan.format != eval_scan.format:
        problem = f"{eval_scan.format} rows, while data.train has {train_scan.format} rows"
        faults.append(Fault("data.eval", problem, "Use rows of one format."))
    return train_scan, eval_scan, faults


def _check_model_fit(
    spec: RunSpec, model: ModelFiles | None, train_scan: DatasetScan | None
) -> list[Fault]:
    faults = []
    if train_scan and train_scan.format == "chat" and model and not model.chat_template:
        problem = f"{model.folder} has no chat template, and the rows are conversations"
        remedy = "Use an instruct model, or prompt-completion or text rows."
        faults.append(Fault("data.format", problem, remedy))
    if model and model.max_positions and spec.data.max_length > model.max_positions:
        problem = f"{spec.data.max_length} is above the model's {model.max_positions} positions"
        faults.append(Fault("data.max_length", problem, f"Use {model.max_positions} or less."))
    return faults


def _collect_facts(
    spec: RunSpec,
    model: ModelFiles,
    head: int,
    train_scan: DatasetScan | None,
    eval_scan: DatasetScan | None,
    speed: Speed | None,
) -> CheckedFacts:
    base = describe_base(
        model.shapes,
        model.linears,
        model.config,
        causal=spec.model.task == "causal-lm",
        file_bytes=model.bytes,
    )
    return CheckedFacts(base, head, _count_eval_rows(spec, train_scan, eval_scan), speed)


def _count_eval_rows(
    spec: RunSpec, train_scan: DatasetScan | None, eval_scan: DatasetScan | None
) -> int | None:
    """The held-out rows, where a whole look at the data has counted them."""
    if eval_scan is not None:
        return eval_scan.rows if eval_scan.sha256 else None
    fraction = spec.data.eval_fraction
    if fraction is None or train_scan is None or not train_scan.sha256:
        return None
    return round(train_scan.rows * fraction)


def _read_speed(spec: RunSpec) -> Speed | None:
    try:
        return find_speed(spec, open_store(spec.store))
    except (InputError, StoreError, Unreachable):
        # What is wrong with the store is told among its own faults; a plan goes on without a past.
        return find_speed(spec, None)


def _check_store(spec: RunSpec, *, write: bool) -> list[Fault]:
    try:
        store = open_store(spec.store)
    except InputError as error:
        return list(error.faults)
    return store.check_writable() if write else []
