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
from jobs.federation.validate import check_combinations, check_keys, check_section, check_spec
from jobs.plan.preflight import make_paths_absolute
from jobs.spec.load import dump_mapping, read_raw_spec, validate_spec
from jobs.spec.schema import RunSpec
from jobs.spec.sections.federation import FederationSection

FEDERATION = "federation"

_short_repr = reprlib.Repr()
_short_repr.maxstring = _short_repr.maxother = _short_repr.maxlong = 60


@dataclass(frozen=True)
class FederatedSpec:
    """What a user asked for: what each client trains, and how the clients come together.

    In `spec`, train.steps are those that a client drawn in every round would take, and
    method.sparse_share is that of the rounds: rounds are never cut in two by a stage.
    """

    spec: RunSpec
    section: FederationSection

    @property
    def sparse_rounds(self) -> int:
        """Rounds of the sparse stage."""
        return _count_sparse_rounds(self.spec, self.section)

    @property
    def stage_rounds(self) -> tuple[int, ...]:
        """Rounds of each stage, as the plan has them: slora has two, all others one."""
        if self.spec.method.kind != "slora":
            return (self.section.rounds,)
        return self.sparse_rounds, self.section.rounds - self.sparse_rounds

    def to_values(self) -> dict[str, Any]:
        """The whole of it as plain values, defaults written out, as the door takes it again."""
        spec = self.spec.model_dump(mode="json")
        # The rounds tell it, and the door refuses two that could differ.
        del spec["train"]["steps"]
        return {**spec, FEDERATION: self.section.model_dump(mode="json", exclude_none=True)}

    def to_yaml(self) -> str:
        """The same as YAML: what it records, and is repeated by."""
        return dump_mapping(self.to_values())


def load_federated(path: Path, overrides: Sequence[str] = ()) -> FederatedSpec:
    """Read and check a federation. Raises InputError with every fault of spec and section."""
    federated = validate_federated(read_raw_spec(path, overrides))
    # With whole paths: Ray runs its job in another directory than its user's.
    return FederatedSpec(make_paths_absolute(federated.spec), federated.section)


def is_federated(raw: Mapping[str, Any]) -> bool:
    """Whether these plain values are a federation's."""
    return FEDERATION in raw


def validate_federated(raw: Mapping[str, Any]) -> FederatedSpec:
    """A Federated of plain values. Raises InputError."""
    rest = {key: value for key, value in raw.items() if key not in (FEDERATION, "retrain")}
    faults = [*check_keys(raw)]
    spec = section = None
    try:
        # `federation:` alone is the section with its defaults.
        values = {} if raw.get(FEDERATION) is None else raw[FEDERATION]
        section = FederationSection.model_validate(values)
        faults += check_section(section)
    except ValidationError as failure:
        faults += _translate_errors(failure)
    try:
        spec = validate_spec(_with_steps(rest, section))
        faults += check_spec(spec)
    except InputError as error:
        faults += error.faults
    if FEDERATION not in raw:
        remedy = "As in jobs/examples/federate.yaml."
        faults.append(Fault(FEDERATION, "missing: it makes a spec a federation", remedy))
    if spec is not None and section is not None:
        faults += [*check_combinations(spec, section)]
        if not faults:
            return FederatedSpec(_round_sparse_share(spec, section), section)
    raise InputError(faults)


def make_site_spec(spec: RunSpec) -> RunSpec:
    """What one site does, as a spec: a run of one worker that holds its base whole."""
    cluster = spec.cluster.model_copy(update={"workers": 1, "sharding": "replicate"})
    return spec.model_copy(update={"cluster": cluster})


def _with_steps(raw: Mapping[str, Any], section: FederationSection | None) -> dict[str, Any]:
    """With the steps that the rounds make, which the user does not give."""
    train = raw.get("train")
    if not isinstance(train, dict | None):
        return dict(raw)
    train_values = {
        key: value for key, value in (train or {}).items() if key not in ("steps", "epochs")
    }
    steps = section.rounds * section.local_steps if section else 1
    return {**raw, "train": {**train_values, "steps": steps}}


def _round_sparse_share(spec: RunSpec, section: FederationSection) -> RunSpec:
    """With the share of the sparse stage in whole rounds."""
    if spec.method.kind != "slora":
        return spec
    share = _count_sparse_rounds(spec, section) / section.rounds
    method = spec.method.model_copy(update={"sparse_share": share})
    return spec.model_copy(update={"method": method})


def _count_sparse_rounds(spec: RunSpec, section: FederationSection) -> int:
    if spec.method.kind == "slora":
        rounds = section.sparse_rounds
        return round(section.rounds * spec.method.sparse_share) if rounds is None else rounds
    return section.rounds if spec.method.kind == "sparse" else 0


def _translate_errors(failure: ValidationError) -> Iterator[Fault]:
    keys = set[str]()
    for error in failure.errors(include_url=False):
        key = ".".join([FEDERATION, *(str(part) for part in error["loc"])])
        if key not in keys:
            keys.add(key)
            yield _translate_message(key, error["type"], error["msg"], error["input"])


def _translate_message(key: str, kind: str, message: str, value: Any) -> Fault:
    hint = "See docs/federation.md."
    if key == FEDERATION:
        return Fault(key, f"{_short_repr.repr(value)} is not a section with keys of its own", hint)
    if kind == "extra_forbidden":
        leaf, known = key.rpartition(".")[2], [*FederationSection.model_fields]
        nearest = difflib.get_close_matches(leaf, known, n=1, cutoff=0.0)
        return Fault(key, "unknown key", f"The nearest known one is {FEDERATION}.{nearest[0]}.")
    expected = message.removeprefix("Input ").rstrip(".")
    return Fault(key, f"{_short_repr.repr(value)} is not allowed", f"It {expected}. {hint}")
