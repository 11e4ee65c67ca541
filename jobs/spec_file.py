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
from jobs.spec import SCORES, STRUCTURES, Spec

MOST_BYTES = 1_000_000
"""A spec is a page of text; more than this is some other file."""

NOT_YAML = (yaml.YAMLError, ValueError)
"""ValueError: what looks like a date or a number and is none, as 2020-13-45."""

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, which write and read the same in a fifth of the time: a service does it for every
submission."""
DEEP = 500
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


WORDS = {
    "^Input ": "",
    "Tuple should": "a list that should",
    "a valid tuple": "a list",
    r"a valid dictionary or instance of \w+": "a section with keys of its own",
    "^Keys should be strings": "should be a text, as every key",
}
"""What pydantic says, in the words of who writes YAML."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 100


def load_spec(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """Read, override and validate a spec. Raises InputError with all its faults."""
    return validate_spec(read_raw(path, overrides))


def read_raw(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The YAML as plain values, overridden but not validated. Raises InputError."""
    return _override(_read(path), overrides)


def validate_spec(raw: Mapping[str, Any]) -> Spec:
    """A Spec of plain values. Raises InputError: each key's path, value and way out."""
    try:
        spec = Spec.model_validate(raw)
    except ValidationError as refused:
        faults = _faults(refused.errors(include_url=False))
        named = {fault.key for fault in faults}
        more = [fault for fault in _exclusive(raw) if fault.key not in named]
        raise InputError([*faults, *more]) from None
    if faults := _exclusive(raw):
        raise InputError(faults)
    return spec


def _exclusive(raw: Mapping[str, Any]) -> list[Fault]:
    """Keys of which exactly one, or at most one, may be given."""
    faults = []
    steps, epochs = _dig(raw, "train.steps"), _dig(raw, "train.epochs")
    if isinstance(raw.get("train"), dict) and (steps is None) == (epochs is None):
        found = (
            "neither steps nor epochs is given"
            if steps is None
            else "steps and epochs are both given"
        )
        faults.append(Fault("train", found, "Give exactly one, e.g. steps: 60."))
    if _dig(raw, "data.eval") is not None and _dig(raw, "data.eval_fraction") is not None:
        faults.append(
            Fault("data", "eval and eval_fraction are both given", "Keep one of the two.")
        )
    return faults


def _dig(raw: Any, key: str) -> Any:
    for part in key.split("."):
        raw = raw.get(part) if isinstance(raw, Mapping) else None
    return raw


def plain_values(text: str) -> Any:
    """The YAML in `text`, read fast where it can't be nested deeply. Raises what PyYAML raises.

    A level is a bracket, or takes a column of a line at least.
    """
    brackets, columns = (
        text.count("[") + text.count("{"),
        max(map(len, text.splitlines()), default=0),
    )
    return yaml.load(text, Loader=LOADER if brackets + columns < DEEP else yaml.SafeLoader)


def dump_spec(spec: Spec) -> str:
    """The whole spec as YAML, defaults written out: what a run records."""
    return dump_mapping(spec.model_dump(mode="json"))


def dump_mapping(values: Mapping[str, Any]) -> str:
    """Plain values as YAML, in their order."""
    return yaml.dump(values, Dumper=DUMPER, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if isinstance(name, Hashable) and name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} is given twice", key.start_mark
                )
            seen.add(name if isinstance(name, Hashable) else str(name))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _read(path: Path) -> dict[str, Any]:
    where = str(path)
    if not os.path.isfile(path):
        raise InputError(
            [Fault(where, "no such spec file", "Name a YAML file, as in jobs/examples.")]
        )
    if path.stat().st_size > MOST_BYTES:
        raise InputError([Fault(where, f"larger than {MOST_BYTES:,} bytes", "Is it a spec?")])
    try:
        raw = _parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as wrong:
        raise InputError(
            [Fault(where, f"not UTF-8 at byte {wrong.start}", "Save it as UTF-8.")]
        ) from None
    except OSError as wrong:
        problem = f"can't be read: {wrong.strerror or wrong}"
        raise InputError([Fault(where, problem, "Check that it is allowed.")]) from None
    except (*NOT_YAML, RecursionError) as wrong:
        said = " ".join(str(wrong).split())
        raise InputError([Fault(where, f"not YAML: {said}", "Mend it there.")]) from None
    if not isinstance(raw, dict):
        raise InputError(
            [Fault(where, "not a mapping of keys to values", "See jobs/examples/chat.yaml.")]
        )
    return raw


def _override(raw: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    faults = []
    for text in overrides:
        where = f"--set {_short.repr(text)}"
        key, equals, value = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            faults.append(Fault(where, "not of the form key=value", "As in method.rank=16."))
            continue
        try:
            put(raw, parts, _parse(value))
        except (*NOT_YAML, RecursionError):
            faults.append(Fault(where, "its value is not YAML", "Quote it."))
    if faults:
        raise InputError(faults)
    return raw


def put(raw: dict[str, Any], parts: Sequence[str], value: Any) -> None:
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


def _faults(errors: Iterable[ErrorDetails]) -> list[Fault]:
    """One fault a key: a union refuses once per member, which helps nobody."""
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        by_key.setdefault(_key(error["loc"]), []).append(error)
    return [_fault(key, group) for key, group in by_key.items()]


def _key(loc: tuple[int | str, ...]) -> str:
    """The path as the user wrote it, without the names of the union members that pydantic adds."""
    parts: list[str] = []
    section: Any = Spec
    for part in loc:
        fields = _fields(section)
        if isinstance(part, int) and parts:
            parts[-1] += f"[{part}]"
        elif fields and part in fields:
            parts.append(str(part))
            section = fields[str(part)].annotation
        elif len(_members(section)) > 1:
            section = _model_among(section)
        else:
            parts.append(str(part))
            section = None
    return ".".join(parts)


def _fields(section: Any) -> Mapping[str, Any]:
    model = _model_among(section)
    return model.model_fields if model else {}


def _model_among(annotation: Any) -> type[BaseModel] | None:
    for candidate in _members(annotation):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, UnionType):
        return get_args(annotation)
    return (annotation,)


def _fault(key: str, group: list[ErrorDetails]) -> Fault:
    first = group[0]
    if first["type"] == "extra_forbidden":
        return _unknown_or_elsewhere(key)
    if first["type"] == "missing":
        return Fault(key, "missing", "It has no default: write it.")
    if key == "name":
        remedy = "Use letters, digits, '-', '_' and single '.', at most 63, e.g. chat."
        return Fault(key, f"{_show(first['input'])} can't be a name", remedy)
    if key in ("method.mask", "method.score"):
        return _unknown_strategy(key, first["input"])
    wanted = " or ".join(dict.fromkeys(_lower(error["msg"]) for error in group))
    return Fault(key, f"{_show(first['input'])} is not allowed", f"It {wanted}.")


def _unknown_strategy(key: str, value: Any) -> Fault:
    known = [*SCORES, *(STRUCTURES if key == "method.mask" else ())]
    # Only a short text: a few aliases in a YAML make a value whose whole text fills the memory.
    written = value[:100] if isinstance(value, str) else ""
    close = difflib.get_close_matches(written, known, n=1)
    guess = f"Did you mean {close[0]}? " if close else ""
    remedy = f"{guess}Use {', '.join(known)}, or package.module:NAME of your own."
    return Fault(key, f"{_show(value)} is no mask strategy", remedy)


def _lower(message: str) -> str:
    for said, meant in WORDS.items():
        message = re.sub(said, meant, message)
    return message.rstrip(".")


def _show(value: Any) -> str:
    # Not repr: a few aliases in a YAML make a value whose whole text fills the memory.
    text = _short.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown_or_elsewhere(key: str) -> Fault:
    if key == "search":
        remedy = "Run it with `slora search` or `python -m jobs.search`, or take the section out."
        return Fault(key, "the spec of a search, not of one run", remedy)
    if key == "retrain":
        remedy = "Run it with `slora train` or `python -m jobs.retrain`, or take the section out."
        return Fault(key, "the spec of a retraining, not of one run", remedy)
    if key == "federation":
        remedy = "Run it with `slora train` or `python -m jobs.federate`, or take the section out."
        return Fault(key, "the spec of a federation, not of one run", remedy)
    return unknown_key(key)


def unknown_key(key: str) -> Fault:
    """A fault that names the nearest known key."""
    section, _, last = key.rpartition(".")
    known = known_keys()
    here = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
    alias = ALIASES.get(last)
    # A key that stands in another section is a better guess than one that is spelt like it here.
    elsewhere = [name for name in known if name.rpartition(".")[2] in (last, alias)]
    close = difflib.get_close_matches(last, here, n=1, cutoff=0.0) or here[:1]
    if alias in here:
        nearest = f"{section}.{alias}".lstrip(".")
    elif elsewhere:
        nearest = elsewhere[0]
    else:
        nearest = f"{section}.{close[0]}".lstrip(".") if close else "see `slora schema`"
    return Fault(key, "unknown key", f"The nearest known one is {nearest}.")


def known_keys() -> list[str]:
    """Every key of the spec and every section, as `method.handoff.split`."""

    def walk(model: type[BaseModel], prefix: str) -> Iterable[str]:
        for name, field in model.model_fields.items():
            yield prefix + name
            if inner := _model_among(field.annotation):
                yield from walk(inner, f"{prefix}{name}.")

    return list(walk(Spec, ""))
