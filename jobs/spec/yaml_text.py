"""YAML as people mean it: read strictly, with overrides by `--set a.b=c`, and written back."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import Fault, InputError
from jobs.spec.size_limits import check_size

MAX_BYTES = 1_000_000
"""A spec is a page of text; a larger file is something else."""
YAML_ERRORS = (yaml.YAMLError, ValueError)
"""ValueError: text that looks like a date or a number and is not, such as 2020-13-45."""
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, which read and write the same in a fifth of the time: a service does it for every
submission."""
MAX_FAST_DEPTH = 500
"""Nesting that libyaml may be given: at many thousand levels it crashes the process."""


class _ShortRepr(reprlib.Repr):
    """Short texts of any value: Python refuses to write an integer of more than 4,300 digits."""

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:
            return f"an integer of {x.bit_length():,} bits"


short_repr = _ShortRepr()
short_repr.maxstring = short_repr.maxother = short_repr.maxlong = 100


class _StrictLoader(yaml.SafeLoader):
    """A loader for which 1e-3 is a number and a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if isinstance(name, Hashable) and name in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} appears twice", key.start_mark
                )
            keys.add(name if isinstance(name, Hashable) else str(name))
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml_file(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML mapping and apply overrides. Raise InputError if either is malformed."""
    return apply_overrides(parse_mapping(_read_text(path), str(path)), overrides)


def parse_mapping(text: str, source: str) -> dict[str, Any]:
    """Parse a YAML mapping strictly. Raise InputError, which names the source."""
    try:
        values = _parse_strict(text)
    except (*YAML_ERRORS, RecursionError) as error:
        message = " ".join(str(error).split())
        raise _make_error(source, f"invalid YAML: {message}", "Fix it at that line.") from None
    if not isinstance(values, dict):
        raise _make_error(source, "not a mapping of keys to values", "See jobs/examples/chat.yaml.")
    check_size(values, source)
    return values


def parse_yaml_fast(text: str) -> Any:
    """Parse YAML, with libyaml unless it may be nested deeply. Raise what PyYAML raises.

    A level takes a bracket, or at least one column of a line.
    """
    brackets = text.count("[") + text.count("{")
    columns = max(map(len, text.splitlines()), default=0)
    return yaml.load(
        text, Loader=LOADER if brackets + columns < MAX_FAST_DEPTH else yaml.SafeLoader
    )


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Write plain values as YAML, in their order."""
    return yaml.dump(values, Dumper=DUMPER, sort_keys=False, allow_unicode=True)


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Set the keys of `--set KEY=VALUE`. Raise InputError with every malformed override."""
    faults = []
    for text in overrides:
        option = f"--set {short_repr.repr(text)}"
        key, equals, value = text.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            faults.append(
                Fault(option, "not of the form key=value", "For example: method.rank=16.")
            )
            continue
        try:
            set_key(values, parts, _parse_strict(value))
        except (*YAML_ERRORS, RecursionError):
            faults.append(Fault(option, "the value is invalid YAML", "Put it in quotes."))
    if faults:
        raise InputError(faults)
    return values


def set_key(values: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Set a key, and create the sections that it is in."""
    *sections, last = parts
    for part in sections:
        inner = values.get(part)
        if not isinstance(inner, dict):
            inner = values[part] = {}
        values = inner
    values[last] = value
    # steps and epochs exclude each other: an override of one replaces the other in the file.
    if sections == ["train"] and last in ("steps", "epochs"):
        values.pop("epochs" if last == "steps" else "steps", None)


def _parse_strict(text: str) -> Any:
    return yaml.load(text, Loader=_StrictLoader)


def _read_text(path: Path) -> str:
    source = str(path)
    if not os.path.isfile(path):
        raise _make_error(
            source, "no such spec file", "Use a YAML file like those in jobs/examples."
        )
    if path.stat().st_size > MAX_BYTES:
        raise _make_error(source, f"larger than {MAX_BYTES:,} bytes", "Use the path of a spec.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _make_error(source, f"not UTF-8 at byte {error.start}", "Save it as UTF-8.") from None
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise _make_error(source, problem, "Check its permissions.") from None


def _make_error(source: str, problem: str, remedy: str) -> InputError:
    return InputError([Fault(source, problem, remedy)])
