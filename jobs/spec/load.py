"""From YAML and `--set a.b=c` to a Spec, or to every fault at once: the users' door."""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from jobs.errors import Fault, InputError
from jobs.spec.schema import SCORES, STRUCTURES, RunSpec

MAX_BYTES = 1_000_000
"""A spec is a page of text; more than this is some other file."""

YAML_ERRORS = (yaml.YAMLError, ValueError)
"""ValueError: what looks like a date or a number and is none, as 2020-13-45."""

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, which write and read the same in a fifth of the time: a service does it for every
submission."""
MAX_FAST_DEPTH = 500
"""Levels that libyaml may be given: of many thousands it dies, and the process with it."""

ALIASES = {
    "lr": "learning_rate",
    "r": "rank",
    "lora_alpha": "alpha",
    "max_steps": "steps",
    "num_epochs": "epochs",
    "num_workers": "workers",
    "model_name_or_path": "path",
    "max_seq_length": "max_length",
}
"""What other trainers call it, where spelling alone would not find it."""


REWORDINGS = {
    "^Input ": "",
    "Tuple should": "a list that should",
    "a valid tuple": "a list",
    r"a valid dictionary or instance of \w+": "a section with keys of its own",
    "^Keys should be strings": "should be a text, as every key",
}
"""What pydantic says, in the words of who writes YAML."""

_short_repr = reprlib.Repr()
_short_repr.maxstring = _short_repr.maxother = _short_repr.maxlong = 100


def load_spec(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read, override and validate a spec. Raises InputError with all its faults."""
    return validate_spec(read_raw_spec(path, overrides))


def read_raw_spec(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The YAML as plain values, overridden but not validated. Raises InputError."""
    return _apply_overrides(_read_file(path), overrides)


def validate_spec(raw: Mapping[str, Any]) -> RunSpec:
    """A Spec of plain values. Raises InputError: each key's path, value and way out."""
    try:
        spec = RunSpec.model_validate(raw)
    except ValidationError as error:
        faults = _translate_errors(error.errors(include_url=False))
        reported = {fault.key for fault in faults}
        conflicts = [fault for fault in _find_conflicts(raw) if fault.key not in reported]
        raise InputError([*faults, *conflicts]) from None
    if faults := _find_conflicts(raw):
        raise InputError(faults)
    return spec


def _find_conflicts(raw: Mapping[str, Any]) -> list[Fault]:
    """Keys of which exactly one, or at most one, may be given."""
    faults = []
    steps, epochs = _get_nested(raw, "train.steps"), _get_nested(raw, "train.epochs")
    if isinstance(raw.get("train"), dict) and (steps is None) == (epochs is None):
        problem = (
            "neither steps nor epochs is given"
            if steps is None
            else "steps and epochs are both given"
        )
        faults.append(Fault("train", problem, "Give exactly one, e.g. steps: 60."))
    if (
        _get_nested(raw, "data.eval") is not None
        and _get_nested(raw, "data.eval_fraction") is not None
    ):
        faults.append(
            Fault("data", "eval and eval_fraction are both given", "Keep one of the two.")
        )
    return faults


def _get_nested(raw: Any, key: str) -> Any:
    for part in key.split("."):
        raw = raw.get(part) if isinstance(raw, Mapping) else None
    return raw


def parse_yaml_fast(text: str) -> Any:
    """The YAML in `text`, read fast where it can't be nested deeply. Raises what PyYAML raises.

    A level is a bracket, or takes a column of a line at least.
    """
    brackets, columns = (
        text.count("[") + text.count("{"),
        max(map(len, text.splitlines()), default=0),
    )
    return yaml.load(
        text, Loader=LOADER if brackets + columns < MAX_FAST_DEPTH else yaml.SafeLoader
    )


def dump_spec(spec: RunSpec) -> str:
    """The whole spec as YAML, defaults written out: what a run records."""
    return dump_mapping(spec.model_dump(mode="json"))


def dump_mapping(values: Mapping[str, Any]) -> str:
    """Plain values as YAML, in their order."""
    return yaml.dump(values, Dumper=DUMPER, sort_keys=False, allow_unicode=True)


class _StrictLoader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if isinstance(name, Hashable) and name in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} is given twice", key.start_mark
                )
            keys.add(name if isinstance(name, Hashable) else str(name))
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _parse_strict(text: str) -> Any:
    return yaml.load(text, Loader=_StrictLoader)


def _read_file(path: Path) -> dict[str, Any]:
    source = str(path)
    if not os.path.isfile(path):
        raise InputError(
            [Fault(source, "no such spec file", "Name a YAML file, as in jobs/examples.")]
        )
    if path.stat().st_size > MAX_BYTES:
        raise InputError([Fault(source, f"larger than {MAX_BYTES:,} bytes", "Is it a spec?")])
    try:
        raw = _parse_strict(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            [Fault(source, f"not UTF-8 at byte {error.start}", "Save it as UTF-8.")]
        ) from None
    except OSError as error:
        problem = f"can't be read: {error.strerror or error}"
        raise InputError([Fault(source, problem, "Check that it is allowed.")]) from None
    except (*YAML_ERRORS, RecursionError) as error:
        message = " ".join(str(error).split())
        raise InputError([Fault(source, f"not YAML: {message}", "Mend it there.")]) from None
    if not isinstance(raw, dict):
        raise InputError(
            [Fault(source, "not a mapping of keys to values", "See jobs/examples/chat.yaml.")]
        )
    return raw


def _apply_overrides(raw: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    faults = []
    for text in overrides:
        option = f"--set {_short_repr.repr(text)}"
        key, equals, value = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            faults.append(Fault(option, "not of the form key=value", "As in method.rank=16."))
            continue
        try:
            set_key(raw, parts, _parse_strict(value))
        except (*YAML_ERRORS, RecursionError):
            faults.append(Fault(option, "its value is not YAML", "Quote it."))
    if faults:
        raise InputError(faults)
    return raw


def set_key(raw: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Sets a key, its sections made where they are missing."""
    *sections, last = parts
    for part in sections:
        inner = raw.get(part)
        if not isinstance(inner, dict):
            inner = raw[part] = {}
        raw = inner
    raw[last] = value
    # steps and epochs exclude each other: naming one on the command line replaces the file's other.
    if list(sections) == ["train"] and last in ("steps", "epochs"):
        raw.pop("epochs" if last == "steps" else "steps", None)


def _translate_errors(errors: Iterable[ErrorDetails]) -> list[Fault]:
    """One fault a key: a union refuses once per member, which helps nobody."""
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        by_key.setdefault(_format_key(error["loc"]), []).append(error)
    return [_translate_error(key, group) for key, group in by_key.items()]


def _format_key(loc: tuple[int | str, ...]) -> str:
    """The path as the user wrote it, without the names of the union members that pydantic adds."""
    parts: list[str] = []
    section: Any = RunSpec
    for part in loc:
        fields = _get_fields(section)
        if isinstance(part, int) and parts:
            parts[-1] += f"[{part}]"
        elif fields and part in fields:
            parts.append(str(part))
            section = fields[str(part)].annotation
        elif len(_list_members(section)) > 1:
            section = _find_model(section)
        else:
            parts.append(str(part))
            section = None
    return ".".join(parts)


def _get_fields(section: Any) -> Mapping[str, Any]:
    model = _find_model(section)
    return model.model_fields if model else {}


def _find_model(annotation: Any) -> type[BaseModel] | None:
    for candidate in _list_members(annotation):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _list_members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, UnionType):
        return get_args(annotation)
    return (annotation,)


def _translate_error(key: str, group: list[ErrorDetails]) -> Fault:
    first = group[0]
    if first["type"] == "extra_forbidden":
        return _refuse_key(key)
    if first["type"] == "missing":
        return Fault(key, "missing", "It has no default: write it.")
    if key == "name":
        remedy = "Use letters, digits, '-', '_' and single '.', at most 63, e.g. chat."
        return Fault(key, f"{_format_value(first['input'])} can't be a name", remedy)
    if key in ("method.mask", "method.score"):
        return _refuse_strategy(key, first["input"])
    expected = " or ".join(dict.fromkeys(_rewrite_message(error["msg"]) for error in group))
    return Fault(key, f"{_format_value(first['input'])} is not allowed", f"It {expected}.")


def _refuse_strategy(key: str, value: Any) -> Fault:
    known = [*SCORES, *(STRUCTURES if key == "method.mask" else ())]
    # Only a short text: a few aliases in a YAML make a value whose whole text fills the memory.
    text = value[:100] if isinstance(value, str) else ""
    close = difflib.get_close_matches(text, known, n=1)
    guess = f"Did you mean {close[0]}? " if close else ""
    remedy = f"{guess}Use {', '.join(known)}, or package.module:NAME of your own."
    return Fault(key, f"{_format_value(value)} is no mask strategy", remedy)


def _rewrite_message(message: str) -> str:
    for pattern, replacement in REWORDINGS.items():
        message = re.sub(pattern, replacement, message)
    return message.rstrip(".")


def _format_value(value: Any) -> str:
    # Not repr: a few aliases in a YAML make a value whose whole text fills the memory.
    text = _short_repr.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_key(key: str) -> Fault:
    if key == "search":
        remedy = "Run it with `slora search` or `python -m jobs.search`, or take the section out."
        return Fault(key, "the spec of a search, not of one run", remedy)
    if key == "retrain":
        remedy = "Run it with `slora train` or `python -m jobs.retrain`, or take the section out."
        return Fault(key, "the spec of a retraining, not of one run", remedy)
    if key == "federation":
        remedy = "Run it with `slora train` or `python -m jobs.federate`, or take the section out."
        return Fault(key, "the spec of a federation, not of one run", remedy)
    return suggest_key(key)


def suggest_key(key: str) -> Fault:
    """A fault that names the nearest known key."""
    section, _, leaf = key.rpartition(".")
    known = list_keys()
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
    alias = ALIASES.get(leaf)
    # A key that stands in another section is a better guess than one that is spelt like it here.
    namesakes = [name for name in known if name.rpartition(".")[2] in (leaf, alias)]
    close = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.0) or siblings[:1]
    if alias in siblings:
        nearest = f"{section}.{alias}".lstrip(".")
    elif namesakes:
        nearest = namesakes[0]
    else:
        nearest = f"{section}.{close[0]}".lstrip(".") if close else "see `slora schema`"
    return Fault(key, "unknown key", f"The nearest known one is {nearest}.")


def list_keys() -> list[str]:
    """Every key of the spec and every section, as `method.handoff.split`."""

    def walk(model: type[BaseModel], prefix: str) -> Iterable[str]:
        for name, field in model.model_fields.items():
            yield prefix + name
            if inner := _find_model(field.annotation):
                yield from walk(inner, f"{prefix}{name}.")

    return list(walk(RunSpec, ""))
