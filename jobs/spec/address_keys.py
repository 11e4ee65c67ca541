"""The keys of a spec that name files or stores: marked by their type, so that none is forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from jobs.spec.address_types import AddressKind
from jobs.spec.schema import RunSpec


@dataclass(frozen=True)
class SpecAddress:
    """An address in a spec, with its key."""

    key: str
    kind: AddressKind
    text: str


def list_addresses(spec: RunSpec) -> list[SpecAddress]:
    """List all addresses of a spec, those of the trials of a search too."""
    addresses = []
    for key, kind in list_address_keys().items():
        value: Any = spec
        for name in key.split("."):
            value = getattr(value, name, None)
        addresses += [SpecAddress(key, kind, text) for text in _list_texts(value)]
        if spec.search is not None and (domain := spec.search.space.get(key)) is not None:
            values = domain.choice or domain.grid or ()
            path = f"search.space.{key}"
            addresses += [SpecAddress(path, kind, text) for text in _list_texts(values)]
    return addresses


@cache
def list_address_keys() -> Mapping[str, AddressKind]:
    """List the keys of addresses, as the types of the schema mark them."""
    return dict(_walk_model(RunSpec, ""))


def _walk_model(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, AddressKind]]:
    for name, field in model.model_fields.items():
        annotation = Annotated[field.annotation, *field.metadata] if field.metadata else None
        yield from _walk_annotation(annotation or field.annotation, f"{prefix}{name}")


def _walk_annotation(annotation: Any, key: str) -> Iterator[tuple[str, AddressKind]]:
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        yield from ((key, mark) for mark in arguments[1:] if isinstance(mark, AddressKind))
        yield from _walk_annotation(arguments[0], key)
    elif get_origin(annotation) in (Union, UnionType, tuple, list):
        for member in arguments:
            yield from _walk_annotation(member, key)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _walk_model(annotation, f"{key}.")


def _list_texts(value: Any) -> list[str]:
    """Return the texts of a value: one, several in a list, or none."""
    if isinstance(value, str):
        return [value] if value else []
    return [text for item in value for text in _list_texts(item)] if _is_list(value) else []


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple | list)
