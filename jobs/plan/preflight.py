"""Validation of a run before any worker starts; all faults are reported together. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import entry_points

from jobs.errors import Fault, InputError, NotInstalled
from jobs.inspect.base_digest import BaseDigest, digest_base, list_base_files
from jobs.inspect.datasets.file_selection import resolve_files
from jobs.inspect.datasets.heldout import check_split
from jobs.inspect.datasets.scan import (
    DatasetScan,
    ScanProgress,
    check_eval_labels,
    check_train_labels,
    scan_dataset,
)
from jobs.inspect.file_stamps import FileStamp, stamp_files
from jobs.inspect.model_files import ModelFiles, read_model
from jobs.plan.attention_choice import (
    check_attention,
    holds_masks,
    name_attention,
)
from jobs.plan.checks import check_batch, check_labels
from jobs.plan.dtype_choice import choose_dtype, set_dtype
from jobs.plan.estimate.base_tensors import find_hidden_size
from jobs.plan.packing_choice import check_causality, check_packing, choose_packing
from jobs.plan.peft_loss import find_peft_note
from jobs.plan.plan import Plan, add_tallies
from jobs.plan.plan_subject import PlanSubject, describe_run, plan_run
from jobs.plan.rate_choice import RateChoice, choose_rates, set_rates
from jobs.spec.messages import refuse_strategy
from jobs.spec.schema import RunSpec
from jobs.spec.strategies import (
    MASK_GROUP,
    find_refused_strategies,
    get_allowed_masks,
    list_installed_strategies,
)
from jobs.store.open import open_store
from jobs.train.early_stopping import find_stop_faults
from jobs.train.request import TrainingRequest

QUICK_ROWS = 200
"""Rows that a plan reads; a run reads all of them."""


@dataclass(frozen=True)
class ValidatedRun:
    """A spec that can be run, and what its validation learned."""

    spec: RunSpec
    """The fine-tune alone, without sections."""
    model: ModelFiles
    train_scan: DatasetScan
    eval_scan: DatasetScan | None
    plan: Plan
    base: BaseDigest | None = None
    """Digest of the base, if it has been computed: that reads all of its weights."""
    stamps: tuple[FileStamp, ...] = ()
    """Files of the base and the data, as they were before they were read."""

    def make_request(
        self,
        run_id: str,
        *,
        base: BaseDigest | None = None,
        search: str | None = None,
        parent: str | None = None,
    ) -> TrainingRequest:
        """Return the request for the run's workers; compute the base's digest if not given."""
        base = base or self.digest_base()
        return TrainingRequest(
            spec=self.spec,
            run_id=run_id,
            plan=self.plan,
            base=self.model.folder,
            base_digest=base.digest,
            base_files=base.files,
            train_data=self.train_scan,
            eval_data=self.eval_scan,
            search=search,
            parent=parent,
        )

    def digest_base(self) -> BaseDigest:
        """Return the base's digest: the one that is known, or of its files, all of which are read.

        Raise OSError if one is missing.
        """
        return self.base or digest_base(self.model.folder)


def validate_run(
    spec: RunSpec,
    *,
    quick: bool = False,
    with_store: bool = True,
    progress: ScanProgress | None = None,
    tokenizes_next: bool = False,
    max_bytes: int | None = None,
) -> ValidatedRun:
    """Validate a spec with its model, its data and its store. Raise InputError with all faults, and
    NotInstalled if there are none, but the model cannot be built on this machine.

    `quick` reads the first rows only, and writes nothing to the store. Without `with_store` the
    store is not opened: the machine that submits a run may not reach it. With `tokenizes_next` the
    faults of single rows are left to `tokenize_run`, which reports them with those of rendering.
    Raise ReadLimitExceeded if the rows of a data set take more than `max_bytes`.
    """
    spec = spec.training
    faults = [*find_stop_faults(spec), *check_strategies(spec), *check_labels(spec)]
    model, extra_faults, missing = _read_model(spec)
    faults += extra_faults
    # Before anything is read: a change during the validation must not go unnoticed.
    stamps = _stamp_inputs(spec, model)
    train_scan, eval_scan, extra_faults = _scan_data(
        spec, QUICK_ROWS if quick else None, progress, max_bytes
    )
    faults += extra_faults
    row_faults = [*_list_row_faults(train_scan, eval_scan)]
    faults += _check_model_fit(spec, model, train_scan)
    plan = None
    if model:
        dtype = choose_dtype(spec, model)
        spec = set_dtype(spec, dtype.dtype)
        subject = describe_run(spec, dtype, model, train_scan, eval_scan, with_history=with_store)
        labels = subject.shape.labels
        rates = _choose_rates(spec, model, new_head=labels is None or labels.new_head)
        spec, subject = set_rates(spec, rates), replace(subject, rates=rates)
        plan, extra_faults = plan_run(spec, subject)
        faults += [*check_attention(spec, model.description), *extra_faults]
    else:
        faults += check_batch(spec)
    faults += check_store(spec, write=not quick) if with_store else []
    if missing is not None and not (faults or row_faults):
        raise missing
    if model and plan and not (faults or row_faults):
        plan, faults = _try_model(spec, model, subject, plan)
    if faults or not (model and train_scan and plan) or (row_faults and not tokenizes_next):
        raise InputError([*row_faults, *faults])
    return ValidatedRun(spec, model, train_scan, eval_scan, plan, stamps=stamps)


def replan(validated: ValidatedRun, spec: RunSpec, *, with_history: bool = True) -> ValidatedRun:
    """Return the same model and data planned for another spec. Raise InputError.

    Without `with_history` the speed of past runs is not read: with many runs that takes seconds.
    """
    dtype = validated.plan.dtype
    if spec.model.dtype != dtype.dtype:
        dtype = choose_dtype(spec, validated.model)
        spec = set_dtype(spec, dtype.dtype)
    rates = _choose_rates(spec, validated.model, new_head=validated.plan.new_head)
    spec = set_rates(spec, rates)
    if spec == validated.spec:
        return validated
    if spec.train == validated.spec.train:
        rates = validated.plan.rates
    faults = [*find_stop_faults(spec), *check_strategies(spec), *check_labels(spec)]
    faults += _check_model_fit(spec, validated.model, validated.train_scan)
    subject = describe_run(
        spec,
        dtype,
        validated.model,
        validated.train_scan,
        validated.eval_scan,
        with_history=with_history,
    )
    subject = replace(subject, rates=rates)
    plan, extra_faults = plan_run(spec, subject)
    faults += [*check_attention(spec, validated.model.description), *extra_faults]
    if plan and not faults:
        plan, faults = _try_model(spec, validated.model, subject, plan)
    if faults or plan is None:
        raise InputError(faults)
    tokens = spec.method.train_tokens
    if (spec.data, tokens) == (validated.spec.data, validated.spec.method.train_tokens):
        plan = add_tallies(plan, validated.plan.tallies)
    return replace(validated, spec=spec, plan=plan)


def _choose_rates(spec: RunSpec, model: ModelFiles, *, new_head: bool) -> RateChoice:
    hidden = find_hidden_size(model.config, model.linears)
    return choose_rates(
        spec, hidden=hidden, keeps_head=model.description.has_saved_head and not new_head
    )


def check_strategies(spec: RunSpec) -> Iterator[Fault]:
    """Check that a mask strategy is installed and allowed, without importing its entry point."""
    allowed = get_allowed_masks()
    if allowed is not None and (faults := [*find_refused_strategies(spec, allowed)]):
        yield from faults
        return
    strategies = list(list_installed_strategies(spec))
    # Reading the metadata of all packages takes milliseconds, which a built-in mask does not need.
    installed = entry_points(group=MASK_GROUP).names if strategies else set()
    for key, strategy in strategies:
        if strategy not in installed:
            yield refuse_strategy(key, strategy, installed)


def check_store(spec: RunSpec, *, write: bool) -> list[Fault]:
    """Check that the store can be opened, and with `write` that it can be written."""
    try:
        store = open_store(spec.store)
    except InputError as error:
        return list(error.faults)
    reason = store.check_writable() if write else None
    return [Fault("store", reason, "Use a store that you may write to.")] if reason else []


def stamp_base(model: ModelFiles) -> tuple[FileStamp, ...]:
    """Return the stamps of the base's files."""
    return stamp_files(list_base_files(model.folder))


def stamp_data(spec: RunSpec) -> tuple[FileStamp, ...]:
    """Return the stamps of all data files. Raise InputError or OSError if there are none."""
    paths = {"data.train": spec.data.train, "data.eval": spec.data.eval}
    return tuple(
        stamp
        for key, path in paths.items()
        if path is not None
        for stamp in stamp_files(resolve_files(path, key=key))
    )


def _read_model(
    spec: RunSpec,
) -> tuple[ModelFiles | None, list[Fault], NotInstalled | None]:
    """Return the model, its faults, and the error if it cannot be built on this machine."""
    try:
        return *read_model(spec.model), None
    except NotInstalled as error:
        return None, [], error


def _stamp_inputs(spec: RunSpec, model: ModelFiles | None) -> tuple[FileStamp, ...]:
    try:
        return (*stamp_base(model), *stamp_data(spec)) if model else ()
    except (InputError, OSError):
        # The scan reports it with its key.
        return ()


def _try_model(
    spec: RunSpec, model: ModelFiles, subject: PlanSubject, plan: Plan
) -> tuple[Plan | None, list[Fault]]:
    """Return the plan with the packing and the attention, and with a note if PEFT can't hold the
    adapter. Where attention holds masks, their memory is planned too.

    Last, because it takes seconds to try them.
    """
    packing = choose_packing(spec, model)
    kernel = name_attention(plan.attention, packing)
    if holds_masks(kernel, model.description.window, spec.data.max_length):
        facts = replace(subject.facts, holds_masks=True)
        planned, faults = plan_run(spec, replace(subject, facts=facts))
        if planned is None:
            return None, faults
        plan = planned
    note = find_peft_note(spec, model, plan.targets, plan.labels)
    notes = (*plan.notes, note) if note else plan.notes
    faults = [*check_causality(spec, model), *check_packing(spec, packing)]
    return replace(plan, packing=packing, attention=kernel, notes=notes), faults


def _scan_data(
    spec: RunSpec, limit: int | None, progress: ScanProgress | None, max_bytes: int | None
) -> tuple[DatasetScan | None, DatasetScan | None, list[Fault]]:
    data, faults = spec.data, list[Fault]()
    scans: dict[str, DatasetScan] = {}
    for key, path in (("data.train", data.train), ("data.eval", data.eval)):
        if path is None:
            continue
        try:
            scans[key] = scan_dataset(
                path,
                data.format,
                spec.model.task,
                key,
                columns=data.columns,
                label_kind=data.labels,
                limit=limit,
                progress=progress,
                row_faults="skip" if data.on_bad_row == "skip" else "return",
                streaming=data.streaming,
                max_bytes=max_bytes,
            )
        except InputError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    train_scan, eval_scan = scans.get("data.train"), scans.get("data.eval")
    if train_scan and train_scan.is_complete and not train_scan.row_faults:
        faults += check_train_labels(train_scan)
        if eval_scan:
            faults += check_eval_labels(train_scan, eval_scan)
        if data.eval_fraction:
            faults += check_split(
                train_scan.rows_by_file, fraction=data.eval_fraction, seed=spec.train.seed
            )
    if train_scan and eval_scan and train_scan.format != eval_scan.format:
        problem = f"{eval_scan.format} rows, while data.train has {train_scan.format} rows"
        faults.append(Fault("data.eval", problem, "Use the same format for both."))
    return train_scan, eval_scan, faults


def _list_row_faults(*scans: DatasetScan | None) -> Iterator[Fault]:
    """Yield the faults of single rows, each once: both sides may take the same file."""
    faults = (fault for scan in scans if scan for fault in scan.row_faults)
    yield from dict.fromkeys(faults)


def _check_model_fit(
    spec: RunSpec, model: ModelFiles | None, train_scan: DatasetScan | None
) -> Iterator[Fault]:
    if train_scan and train_scan.needs_template and model and not model.chat_template:
        problem = f"{model.folder} has no chat template, but the rows are conversations"
        remedy = "Use an instruct model, or prompt-completion or text rows."
        yield Fault("data.format", problem, remedy)
    if model and model.max_positions and spec.data.max_length > model.max_positions:
        problem = f"{spec.data.max_length} exceeds the model's {model.max_positions} positions"
        yield Fault("data.max_length", problem, f"Use {model.max_positions} or less.")
