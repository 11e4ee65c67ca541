"""Everything that can be known before a worker starts, all faults reported together. No torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder

from jobs.data.files import HUB_ID
from jobs.data.heldout import check_split
from jobs.data.survey import Progress, Survey, check_eval_labels, check_train_labels, survey
from jobs.errors import Fault, InputError, StoreError, Unreachable
from jobs.model_files import ModelFiles, model_digest, read_model
from jobs.plan import Plan, Shape, batch_faults, make_plan
from jobs.predict.base import read_base
from jobs.predict.from_spec import Outlook
from jobs.predict.speed import Speed, known_speed
from jobs.request import Request
from jobs.spec import Spec
from jobs.stopping import stop_faults
from jobs.store.objects import open_store

QUICK_ROWS = 200
"""Rows that a plan looks at; a run reads them all."""


@dataclass(frozen=True)
class Checked:
    """A spec that can be run, and what was learnt while checking it."""

    spec: Spec
    model: ModelFiles
    train: Survey
    evaluation: Survey | None
    plan: Plan

    def request(
        self,
        run_id: str,
        *,
        digest: str | None = None,
        search: str | None = None,
        parent: str | None = None,
    ) -> Request:
        """What its workers get. `digest` is the base's where it is known: to make it reads it."""
        return Request(
            spec=self.spec,
            run_id=run_id,
            plan=self.plan,
            base=self.model.folder,
            base_digest=digest or model_digest(self.model.folder),
            train=self.train,
            evaluation=self.evaluation,
            search=search,
            parent=parent,
        )


def check(
    spec: Spec, *, quick: bool = False, store: bool = True, progress: Progress | None = None
) -> Checked:
    """Raises InputError with every fault of the spec, the model, the data and the store.

    `quick` looks at the first rows only and writes nothing to the store. Without `store` that is
    not looked at: who submits a run elsewhere may not reach it.
    """
    faults = [*stop_faults(spec), *_strategy_faults(spec)]
    model, more = read_model(spec.model)
    faults += more
    train, evaluation, more = _data(spec, QUICK_ROWS if quick else None, progress)
    faults += more
    faults += _fit_faults(spec, model, train)
    plan = None
    if model:
        plan, more = _plan(spec, model, train, evaluation, past=store)
        faults += more
    else:
        faults += batch_faults(spec)
    faults += _store_faults(spec, write=not quick) if store else []
    if faults or not (model and train and plan):
        raise InputError(faults)
    return Checked(spec, model, train, evaluation, plan)


def replanned(checked: Checked, spec: Spec, *, past: bool = True) -> Checked:
    """The same model and data under another spec. Raises InputError.

    Without `past` the store's runs are not asked how fast they were: with many, that takes seconds.
    """
    faults = [*stop_faults(spec), *_strategy_faults(spec)]
    faults += _fit_faults(spec, checked.model, checked.train)
    plan, more = _plan(spec, checked.model, checked.train, checked.evaluation, past=past)
    faults += more
    if faults or plan is None:
        raise InputError(faults)
    return replace(checked, spec=spec, plan=plan)


def _plan(
    spec: Spec,
    model: ModelFiles,
    train: Survey | None,
    evaluation: Survey | None,
    *,
    past: bool = True,
) -> tuple[Plan | None, list[Fault]]:
    labels = len(train.labels) if train else 0
    head = model.head_parameters(spec.model.task, labels)
    shape = Shape(model.parameters, model.linears, head, model.experts)
    speed = _speed(spec) if past else known_speed(spec, None)
    outlook = _outlook(spec, model, head, train, evaluation, speed)
    return make_plan(spec, shape, outlook=outlook)


def _strategy_faults(spec: Spec) -> list[Fault]:
    """Of a mask strategy of the user's own: its package has to be there. Nothing is imported."""
    faults = []
    for key in ("mask", "score"):
        named: str = getattr(spec.method, key)
        package = named.partition(":")[0].partition(".")[0]
        if ":" in named and PathFinder.find_spec(package, [os.getcwd(), *sys.path]) is None:
            problem = f"there is no package {package} here for {named}"
            remedy = "Install it, or start where its folder lies."
            faults.append(Fault(f"method.{key}", problem, remedy))
    return faults


def absolute(spec: Spec) -> Spec:
    """The same spec with whole paths: Ray runs a job in another directory than its user's."""
    data = {
        key: _absolute(value)
        for key in ("train", "eval")
        if (value := getattr(spec.data, key)) is not None
    }
    return spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"path": _absolute(spec.model.path)}),
            "data": spec.data.model_copy(update=data),
            "store": _absolute_store(spec.store),
        }
    )


def _absolute(path: str) -> str:
    """A relative path made whole; a URL stays what it is, and a hub id where there is no file."""
    plain = path.removeprefix("file://")
    hub_id = HUB_ID.fullmatch(plain) and not os.path.exists(plain)
    return plain if hub_id or "://" in plain else _whole(plain)


def _absolute_store(url: str) -> str:
    """A folder made whole, with file:// before it; what names none is left to open_store."""
    scheme, slashes, folder = url.partition("://")
    if slashes:
        return f"file://{_whole(folder)}" if folder and scheme.lower() == "file" else url
    return url if url.lower().startswith("file:") else f"file://{_whole(url)}"


def _whole(path: str) -> str:
    # Not pathlib, which raises for the home of somebody who is not known here.
    whole = os.path.expanduser(path)
    return whole if os.path.isabs(whole) else os.path.abspath(whole)


def _data(
    spec: Spec, limit: int | None, progress: Progress | None
) -> tuple[Survey | None, Survey | None, list[Fault]]:
    data, faults = spec.data, list[Fault]()
    found: dict[str, Survey] = {}
    for key, where in (("data.train", data.train), ("data.eval", data.eval)):
        if where is None:
            continue
        try:
            found[key] = survey(
                where, data.format, spec.model.task, key, limit=limit, progress=progress
            )
        except InputError as wrong:
            faults += [fault for fault in wrong.faults if fault not in faults]
    train, evaluation = found.get("data.train"), found.get("data.eval")
    if train and limit is None:
        faults += check_train_labels(train)
        if evaluation:
            faults += check_eval_labels(train, evaluation)
        if data.eval_fraction:
            faults += check_split(
                train.rows_by_file, fraction=data.eval_fraction, seed=spec.train.seed
            )
    if train and evaluation and train.format != evaluation.format:
        problem = f"{evaluation.format} rows, while data.train has {train.format} rows"
        faults.append(Fault("data.eval", problem, "Use rows of one format."))
    return train, evaluation, faults


def _fit_faults(spec: Spec, model: ModelFiles | None, train: Survey | None) -> list[Fault]:
    faults = []
    if train and train.format == "chat" and model and not model.chat_template:
        problem = f"{model.folder} has no chat template, and the rows are conversations"
        remedy = "Use an instruct model, or prompt-completion or text rows."
        faults.append(Fault("data.format", problem, remedy))
    if model and model.max_positions and spec.data.max_length > model.max_positions:
        problem = f"{spec.data.max_length} is above the model's {model.max_positions} positions"
        faults.append(Fault("data.max_length", problem, f"Use {model.max_positions} or less."))
    return faults


def _outlook(
    spec: Spec,
    model: ModelFiles,
    head: int,
    train: Survey | None,
    evaluation: Survey | None,
    speed: Speed | None,
) -> Outlook:
    base = read_base(
        model.shapes,
        model.linears,
        model.config,
        causal=spec.model.task == "causal-lm",
        file_bytes=model.bytes,
    )
    return Outlook(base, head, _eval_rows(spec, train, evaluation), speed)


def _eval_rows(spec: Spec, train: Survey | None, evaluation: Survey | None) -> int | None:
    """The held-out rows, where a whole look at the data has counted them."""
    if evaluation is not None:
        return evaluation.rows if evaluation.sha256 else None
    fraction = spec.data.eval_fraction
    if fraction is None or train is None or not train.sha256:
        return None
    return round(train.rows * fraction)


def _speed(spec: Spec) -> Speed | None:
    try:
        return known_speed(spec, open_store(spec.store))
    except (InputError, StoreError, Unreachable):
        # What is wrong with the store is told among its own faults; a plan goes on without a past.
        return known_speed(spec, None)


def _store_faults(spec: Spec, *, write: bool) -> list[Fault]:
    try:
        store = open_store(spec.store)
    except InputError as wrong:
        return list(wrong.faults)
    return store.check_writable() if write else []
