"""The translation of pydantic's errors into faults: the key as written, the problem and the fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from jobs.errors import Fault
from jobs.spec.schema import SCORES, STRUCTURES, RunSpec
from jobs.spec.sections.search import Domain
from jobs.spec.size_limits import MAX_FAULTS, shorten_key
from jobs.spec.yaml_text import short_repr

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
"""Names of keys in other trainers that are spelled nothing like ours."""
REWORDINGS = {
    "^Input ": "",
    "Tuple should": "a list that should",
    "a valid tuple": "a list",
    r"a valid dictionary or instance of \w+": "a section with keys",
    "^Keys should be strings": "should be a string, like every key",
}
"""Pydantic's phrases, in the words of people who write YAML."""
SPACE = "search.space"


def translate_errors(error: ValidationError, prefix: tuple[str, ...] = ()) -> list[Fault]:
    """Return one fault per key: pydantic reports one error per member of a union.

    `prefix` is the section that was validated, for keys relative to the whole spec.
    """
    by_key: dict[str, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        by_key.setdefault(_format_key((*prefix, *details["loc"])), []).append(details)
    # Of thousands only the first are shown, and a suggestion takes as long as all the rest.
    return [
        _translate(key, group) if number < MAX_FAULTS else Fault(shorten_key(key), "not allowed")
        for number, (key, group) in enumerate(by_key.items())
    ]


def suggest_key(key: str) -> Fault:
    """Return the fault of an unknown key, which names the nearest known one."""
    key = shorten_key(key)
    section, _, leaf = key.rpartition(".")
    siblings = _list_siblings(section)
    alias = ALIASES.get(leaf)
    # The same name in another section is a better guess than a similar one in this section.
    namesakes = [name for name in list_keys() if name.rpartition(".")[2] in (leaf, alias)]
    close = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.0) or siblings[:1]
    if alias in siblings:
        nearest = f"{section}.{alias}".lstrip(".")
    elif namesakes:
        nearest = namesakes[0]
    else:
        nearest = f"{section}.{close[0]}".lstrip(".") if close else "listed by `slora schema`"
    return Fault(key, "unknown key", f"The nearest known key is {nearest}.")


@cache
def list_keys() -> tuple[str, ...]:
    """List every key and section of a spec, as `method.handoff.split`."""

    def walk_keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, field in model.model_fields.items():
            yield prefix + name
            if inner := _find_model(field.annotation):
                yield from walk_keys(inner, f"{prefix}{name}.")

    return tuple(walk_keys(RunSpec, ""))


def _list_siblings(section: str) -> list[str]:
    if section.startswith(f"{SPACE}."):
        return list(Domain.model_fields)
    keys = (name.rpartition(".") for name in list_keys())
    return [leaf for parent, _, leaf in keys if parent == section]


def _format_key(loc: Iterable[int | str]) -> str:
    """Format the path as the user wrote it, without the union members that pydantic adds."""
    parts: list[str] = []
    section: Any = RunSpec
    for part in loc:
        fields = _get_fields(section)
        if part == "[key]":
            # Pydantic's name for the key itself, where it is wrong and not its value.
            continue
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
    """List the members of a union, without None, for which pydantic adds nothing to a path."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(member for member in get_args(annotation) if member is not type(None))
    return (annotation,)


def _translate(key: str, group: list[ErrorDetails]) -> Fault:
    first = group[0]
    kind, value = first["type"], _format_value(first["input"])
    if kind == "extra_forbidden":
        return suggest_key(key)
    key = shorten_key(key)
    if key.startswith(SPACE) and (fault := _explain_domain(key, kind)):
        return fault
    if kind == "missing":
        return Fault(key, "missing", "This key is required and has no default.")
    if key == "name":
        remedy = "Use letters, digits, '-', '_' and single '.', at most 63, e.g. chat."
        return Fault(key, f"{value} is not a valid name", remedy)
    if key == "retrain.start":
        remedy = "Use current, scratch, or a version such as v3."
        return Fault(key, f"{value} is not allowed", remedy)
    if key in ("method.mask", "method.score"):
        return refuse_strategy(key, first["input"])
    expected = " or ".join(dict.fromkeys(_rewrite_message(error["msg"]) for error in group))
    return Fault(key, f"{value} is not allowed", f"It {expected}.")


def _explain_domain(key: str, kind: str) -> Fault | None:
    example = "For example: method.rank: {choice: [4, 8]}."
    if kind == "too_short" and key == SPACE:
        return Fault(key, "it lists no keys to search over", example)
    if key == SPACE:
        return None
    if kind in ("missing", "too_long"):
        return Fault(key, "two numbers are required, a lower and an upper bound", "Use [0.1, 1].")
    if kind == "too_short":
        return Fault(key, "the list of values is empty", example)
    if kind == "model_type":
        return Fault(key, "not a domain", example)
    return None


def refuse_strategy(key: str, value: Any, installed: Collection[str] = ()) -> Fault:
    """Return the fault of a mask strategy that is neither built in nor installed."""
    structures = STRUCTURES if key.endswith("method.mask") else ()
    known = [*SCORES, *structures, *sorted(installed)]
    # Only a short text: a few aliases in a YAML make a value whose full text fills the memory.
    text = value[:100] if isinstance(value, str) else ""
    close = difflib.get_close_matches(text, known, n=1)
    guess = f"Did you mean {close[0]}? " if close else ""
    remedy = f"{guess}Use {', '.join(known)}, or an installed entry point of slora.masks."
    return Fault(key, f"{_format_value(value)} is not a mask strategy", remedy)


def _rewrite_message(message: str) -> str:
    for pattern, replacement in REWORDINGS.items():
        message = re.sub(pattern, replacement, message)
    return message.rstrip(".")


def _format_value(value: Any) -> str:
    # Not repr: a few aliases in a YAML make a value whose full text fills the memory.
    text = short_repr.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
