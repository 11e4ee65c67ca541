"""A federation's door: the YAML of a spec with a `federation:` section, or all of its faults."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.errors import Fault, InputError
from jobs.federate.section import FederationSection
from jobs.federate.sense import given_faults, section_faults, sense_faults, spec_faults
from jobs.preflight import absolute
from jobs.spec import Spec
from jobs.spec_file import dump_mapping, read_raw, validate_spec

FEDERATION = "federation"

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


@dataclass(frozen=True)
class Federated:
    """What a user asked for: what each client trains, and how the clients come together.

    In `spec`, train.steps are those that a client drawn in every round would take, and
    method.sparse_share is that of the rounds: rounds are never cut in two by a stage.
    """

    spec: Spec
    section: FederationSection

    @property
    def sparse_rounds(self) -> int:
        """Rounds of the sparse stage."""
        return _sparse_rounds(self.spec, self.section)

    @property
    def stage_rounds(self) -> tuple[int, ...]:
        """Rounds of each stage, as the plan has them: slora has two, all others one."""
        if self.spec.method.kind != "slora":
            return (self.section.rounds,)
        return self.sparse_rounds, self.section.rounds - self.sparse_rounds

    def values(self) -> dict[str, Any]:
        """The whole of it as plain values, defaults written out, as the door takes it again."""
        spec = self.spec.model_dump(mode="json")
        # The rounds tell it, and the door refuses two that could differ.
        del spec["train"]["steps"]
        return {**spec, FEDERATION: self.section.model_dump(mode="json", exclude_none=True)}

    def text(self) -> str:
        """The same as YAML: what it records, and is repeated by."""
        return dump_mapping(self.values())


def load_federated(path: Path, overrides: Sequence[str] = ()) -> Federated:
    """Read and check a federation. Raises InputError with every fault of spec and section."""
    found = validate_federated(read_raw(path, overrides))
    # With whole paths: Ray runs its job in another directory than its user's.
    return Federated(absolute(found.spec), found.section)


def is_federated(raw: Mapping[str, Any]) -> bool:
    """Whether these plain values are a federation's."""
    return FEDERATION in raw


def validate_federated(raw: Mapping[str, Any]) -> Federated:
    """A Federated of plain values. Raises InputError."""
    rest = {key: value for key, value in raw.items() if key not in (FEDERATION, "retrain")}
    faults = [*given_faults(raw)]
    spec = section = None
    try:
        # `federation:` alone is the section with its defaults.
        written = {} if raw.get(FEDERATION) is None else raw[FEDERATION]
        section = FederationSection.model_validate(written)
        faults += section_faults(section)
    except ValidationError as refused:
        faults += _refusals(refused)
    try:
        spec = validate_spec(_with_steps(rest, section))
        faults += spec_faults(spec)
    except InputError as wrong:
        faults += wrong.faults
    if FEDERATION not in raw:
        remedy = "As in jobs/examples/federate.yaml."
        faults.append(Fault(FEDERATION, "missing: it makes a spec a federation", remedy))
    if spec is not None and section is not None:
        faults += [*sense_faults(spec, section)]
        if not faults:
            return Federated(_shared(spec, section), section)
    raise InputError(faults)


def alone(spec: Spec) -> Spec:
    """What one site does, as a spec: a run of one worker that holds its base whole."""
    one = spec.cluster.model_copy(update={"workers": 1, "sharding": "replicate"})
    return spec.model_copy(update={"cluster": one})


def _with_steps(raw: Mapping[str, Any], section: FederationSection | None) -> dict[str, Any]:
    """With the steps that the rounds make, which the user does not give."""
    train = raw.get("train")
    if not isinstance(train, dict | None):
        return dict(raw)
    plain = {key: value for key, value in (train or {}).items() if key not in ("steps", "epochs")}
    steps = section.rounds * section.local_steps if section else 1
    return {**raw, "train": {**plain, "steps": steps}}


def _shared(spec: Spec, section: FederationSection) -> Spec:
    """With the share of the sparse stage in whole rounds."""
    if spec.method.kind != "slora":
        return spec
    share = _sparse_rounds(spec, section) / section.rounds
    method = spec.method.model_copy(update={"sparse_share": share})
    return spec.model_copy(update={"method": method})


def _sparse_rounds(spec: Spec, section: FederationSection) -> int:
    if spec.method.kind == "slora":
        asked = section.sparse_rounds
        return round(section.rounds * spec.method.sparse_share) if asked is None else asked
    return section.rounds if spec.method.kind == "sparse" else 0


def _refusals(refused: ValidationError) -> Iterator[Fault]:
    seen = set[str]()
    for error in refused.errors(include_url=False):
        key = ".".join([FEDERATION, *(str(part) for part in error["loc"])])
        if key not in seen:
            seen.add(key)
            yield _said(key, error["type"], error["msg"], error["input"])


def _said(key: str, kind: str, message: str, value: Any) -> Fault:
    see = "See docs/federation.md."
    if key == FEDERATION:
        return Fault(key, f"{_short.repr(value)} is not a section with keys of its own", see)
    if kind == "extra_forbidden":
        last, known = key.rpartition(".")[2], [*FederationSection.model_fields]
        nearest = difflib.get_close_matches(last, known, n=1, cutoff=0.0)
        return Fault(key, "unknown key", f"The nearest known one is {FEDERATION}.{nearest[0]}.")
    wanted = message.removeprefix("Input ").rstrip(".")
    return Fault(key, f"{_short.repr(value)} is not allowed", f"It {wanted}. {see}")
