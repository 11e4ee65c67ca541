"""The one loader of specs: YAML and `--set` in, a validated RunSpec or every fault at once out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from jobs.errors import Fault, InputError
from jobs.spec.address_keys import list_addresses
from jobs.spec.checks import federation as federation_checks
from jobs.spec.checks.products import check_products
from jobs.spec.checks.retrain import check_retraining
from jobs.spec.checks.search import check_domains, check_search, flatten_space
from jobs.spec.hub_spelling import find_spelling_fault
from jobs.spec.kinds import find_kind
from jobs.spec.messages import translate_errors
from jobs.spec.paths import make_paths_absolute
from jobs.spec.schema import (
    SECTIONS,
    SLORA_FACTORS,
    MethodSection,
    RunSpec,
    SearchSpec,
    count_sparse_rounds,
)
from jobs.spec.sections.federation import FederationSection
from jobs.spec.sections.retrain import RetrainSection
from jobs.spec.sections.search import SearchSection
from jobs.spec.size_limits import cap_faults, check_size
from jobs.spec.strict_model import StrictModel
from jobs.spec.yaml_text import dump_yaml, parse_mapping, read_yaml_file, set_key

ModelT = TypeVar("ModelT", bound=StrictModel)
FACTOR_CHOICES = frozenset(f"method.{key}" for key in (*SLORA_FACTORS, "kind", "mask", "sizing"))
"""What decides which factors a spec has that names none."""


def load_spec(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read, override and validate a spec of any kind, and make its paths absolute.

    Return a SearchSpec, RetrainSpec or FederatedSpec if it has such a section. Raise InputError
    with all faults.
    """
    return make_paths_absolute(validate_spec(read_yaml_file(path, overrides)))


def parse_spec(text: str, source: str = "spec") -> RunSpec:
    """Parse and validate a spec as a run has recorded it. Raise InputError with all faults."""
    return validate_spec(parse_mapping(text, source))


def dump_spec(spec: RunSpec) -> str:
    """Write the whole spec as YAML, with defaults: what a run records, and is repeated by."""
    return dump_yaml(spec.model_dump(mode="json"))


def validate_spec(values: Mapping[str, Any]) -> RunSpec:
    """Validate a spec of any kind given as plain values. Raise InputError with all faults."""
    check_size(values)
    values = _name_whole_factors(values)
    core, faults = _validate_core(values)
    sections = dict[str, StrictModel]()
    for name, model in SECTIONS.items():
        if name in values:
            # `retrain:` alone is the section with its defaults.
            written = {} if values[name] is None else values[name]
            written = flatten_space(written) if name == "search" else written
            section, errors = _validate_model(model, written, (name,))
            faults += errors
            if section is not None:
                sections[name] = section
    faults += _check_addresses(core) if core is not None else []
    faults += _check_sections(values, core, sections)
    spec = None
    if core is not None and sections.keys() == SECTIONS.keys() & values.keys():
        spec = _combine(values, core, sections)
        if isinstance(spec, SearchSpec):
            faults += check_search(spec, lambda config: make_trial_spec(spec, config))
        faults += check_products(spec)
    if faults or spec is None:
        # One fault per key: a bad domain is reported once, not again as a value of the spec.
        raise InputError(cap_faults(faults))
    return spec


def make_trial_spec(search: SearchSpec, config: Mapping[str, Any]) -> RunSpec:
    """Return the spec of a trial: a fine-tune or a federation with the values of `config`.

    Raise InputError if a value is not allowed, or two of them exclude each other.
    """
    values = search.model_dump(mode="json", exclude={"search"})
    for key, value in config.items():
        plain = list(value) if isinstance(value, tuple) else copy.deepcopy(value)
        set_key(values, key.split("."), plain)
    return validate_spec(values)


def _name_whole_factors(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name whole factors, which other kinds have by default, where the rest of the spec needs them:
    to average products, or to compare trials of several ranks, kinds or masks.
    """
    method = values.get("method") or {}
    averages = (_get_nested(values, f"{section}.average") for section in ("federation", "cluster"))
    needs_whole = "product" in averages or not FACTOR_CHOICES.isdisjoint(_list_searched(values))
    if not (needs_whole and isinstance(method, Mapping)):
        return values
    whole = {key: MethodSection.model_fields[key].default for key in SLORA_FACTORS}
    return {**values, "method": {**whole, **method}}


def _list_searched(values: Mapping[str, Any]) -> list[Any]:
    """Return the keys that a search chooses, as far as they can be read."""
    section = flatten_space(values.get("search"))
    space = section.get("space") if isinstance(section, Mapping) else None
    return [*space] if isinstance(space, Mapping) else []


def _validate_core(values: Mapping[str, Any]) -> tuple[RunSpec | None, list[Fault]]:
    """Validate everything but the optional sections."""
    core_values = {key: value for key, value in values.items() if key not in SECTIONS}
    if "federation" in values:
        train = core_values.get("train") or {}
        if isinstance(train, dict):
            train = {key: value for key, value in train.items() if key not in ("steps", "epochs")}
        core_values["train"] = train
    core, faults = _validate_model(RunSpec, core_values, ())
    keys = {fault.key for fault in faults}
    conflicts = [fault for fault in _find_conflicts(values) if fault.key not in keys]
    return core, [*faults, *conflicts]


def _validate_model(
    model: type[ModelT], values: Any, prefix: tuple[str, ...]
) -> tuple[ModelT | None, list[Fault]]:
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        return None, translate_errors(error, prefix)


def _check_addresses(core: RunSpec) -> Iterator[Fault]:
    for item in list_addresses(core):
        if (fault := find_spelling_fault(item.key, item.text, item.kind)) is not None:
            yield fault


def _find_conflicts(values: Mapping[str, Any]) -> Iterator[Fault]:
    """Find keys and sections that exclude each other."""
    steps, epochs = _get_nested(values, "train.steps"), _get_nested(values, "train.epochs")
    if (
        "federation" not in values
        and isinstance(values.get("train"), dict)
        and (steps is None) == (epochs is None)
    ):
        problem = "both steps and epochs are set" if epochs else "neither steps nor epochs is set"
        yield Fault("train", problem, "Set exactly one, e.g. steps: 60.")
    eval_rows = _get_nested(values, "data.eval"), _get_nested(values, "data.eval_fraction")
    if None not in eval_rows:
        yield Fault("data", "both eval and eval_fraction are set", "Set one of the two.")
    for other in ("search", "federation"):
        if "retrain" in values and other in values:
            problem = f"cannot be combined with {other}"
            yield Fault("retrain", problem, f"Remove the section retrain, or {other}.")


def _get_nested(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _check_sections(
    values: Mapping[str, Any], core: RunSpec | None, sections: Mapping[str, StrictModel]
) -> Iterator[Fault]:
    """Check each section, and the rest of the spec against it, as far as they are valid."""
    federation, retrain = sections.get("federation"), sections.get("retrain")
    if "federation" in values:
        yield from federation_checks.check_keys(values)
        if core is not None:
            yield from federation_checks.check_spec(core)
    if isinstance(federation, FederationSection):
        yield from federation_checks.check_section(federation)
        if core is not None:
            yield from federation_checks.check_combinations(core, federation)
    if isinstance(retrain, RetrainSection) and core is not None:
        yield from check_retraining(core, retrain)
    if isinstance(search := sections.get("search"), SearchSection):
        yield from check_domains(search)


def _combine(
    values: Mapping[str, Any], core: RunSpec, sections: Mapping[str, StrictModel]
) -> RunSpec:
    fields = {name: getattr(core, name) for name in RunSpec.model_fields} | dict(sections)
    federation = fields["federation"]
    if federation is not None:
        steps = federation.rounds * federation.local_steps
        fields["train"] = core.train.model_copy(update={"steps": steps})
        if core.method.kind == "slora":
            share = count_sparse_rounds(core.method, federation) / federation.rounds
            fields["method"] = core.method.model_copy(update={"sparse_share": share})
    spec_class = find_kind(values).spec_class
    return spec_class.model_construct(core.model_fields_set | sections.keys(), **fields)
