"""A retraining's door: the YAML of a spec with a `retrain:` section, or all of its faults."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.errors import Fault, InputError
from jobs.plan.preflight import make_paths_absolute
from jobs.spec.load import dump_mapping, read_raw_spec, validate_spec
from jobs.spec.metrics import list_metrics
from jobs.spec.schema import RunSpec
from jobs.spec.sections.retrain import GateSection, RetrainSection

RETRAIN = "retrain"
SCRATCH = "scratch"


@dataclass(frozen=True)
class RetrainSpec:
    """What a user asked for: the fine-tune, and when its adapter may take over."""

    spec: RunSpec
    section: RetrainSection

    def to_yaml(self) -> str:
        """The whole of it as YAML, defaults written out: what it records, and is repeated by."""
        values = {
            **self.spec.model_dump(mode="json"),
            RETRAIN: self.section.model_dump(mode="json"),
        }
        return dump_mapping(values)


def load_retrain(path: Path, overrides: Sequence[str] = ()) -> RetrainSpec:
    """Read and check a retraining. Raises InputError with every fault of spec and section."""
    retrain = validate_retrain(read_raw_spec(path, overrides))
    # With whole paths: Ray runs its job in another directory than its user's.
    return RetrainSpec(make_paths_absolute(retrain.spec), retrain.section)


def is_retrain(raw: Mapping[str, Any]) -> bool:
    """Whether these plain values are a retraining's."""
    return RETRAIN in raw


def validate_retrain(raw: Mapping[str, Any]) -> RetrainSpec:
    """A Retrain of plain values. Raises InputError."""
    rest = {key: value for key, value in raw.items() if key != RETRAIN}
    faults = list[Fault]()
    spec = section = None
    try:
        spec = validate_spec(rest)
    except InputError as error:
        faults += error.faults
    try:
        # `retrain:` alone is the section with its defaults.
        section = RetrainSection.model_validate({} if raw.get(RETRAIN) is None else raw[RETRAIN])
    except ValidationError as failure:
        faults += _translate_errors(failure)
    if RETRAIN not in raw:
        remedy = "As in jobs/examples/retrain.yaml; `retrain: {}` has the defaults."
        faults.append(Fault(RETRAIN, "missing: it makes a spec a retraining", remedy))
    if spec is not None and section is not None:
        faults += [*_check_combinations(spec, section)]
        if not faults:
            return RetrainSpec(spec, section)
    raise InputError(faults)


def _translate_errors(failure: ValidationError) -> Iterator[Fault]:
    keys = set[str]()
    for error in failure.errors(include_url=False):
        key = ".".join([RETRAIN, *(str(part) for part in error["loc"])])
        if key not in keys:
            keys.add(key)
            yield Fault(
                key, _translate_message(key, error["type"], error["msg"]), "See docs/retrain.md."
            )


def _translate_message(key: str, kind: str, message: str) -> str:
    if key == f"{RETRAIN}.start":
        return "neither current, scratch nor a version, as v3 is one"
    if kind == "extra_forbidden":
        known = [*RetrainSection.model_fields, *GateSection.model_fields]
        close = difflib.get_close_matches(key.rpartition(".")[2], known, n=1, cutoff=0.5)
        return f"unknown key{f', did you mean {close[0]}?' if close else ''}"
    return message[:1].lower() + message[1:]


def _check_combinations(spec: RunSpec, section: RetrainSection) -> Iterator[Fault]:
    names = list_metrics(spec.model.task)
    if section.gate.metric not in names:
        problem = f"{spec.model.task} does not report {section.gate.metric}"
        yield Fault("retrain.gate.metric", problem, f"Use {' or '.join(names)}.")
    if spec.data.eval is None and spec.data.eval_fraction is None:
        problem = "nothing is held out to judge the adapter by"
        yield Fault("data.eval", problem, "Name data.eval, or data.eval_fraction: 0.05.")
    if section.start == SCRATCH:
        return
    if spec.method.init != "zero":
        problem = f"{spec.method.init} says where factors start, and so does retrain.start"
        yield Fault("method.init", problem, "Leave it out, or use retrain.start: scratch.")
    if spec.method.factor_density < 1:
        problem = "sparse or pruned factors have entries that a new training can't go on from"
        yield Fault("method.factor_density", problem, "Use 1, or retrain.start: scratch.")
