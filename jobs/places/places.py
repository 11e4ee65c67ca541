"""The places of a project: the prefixes of paths, URLs and hub ids that its runs may read.

An address is compared part by part, as it is written: `s3://b/lab` is not a place of `s3://b/lab2`.
Whatever a reader could understand in another way (`..`, `//`, an encoded slash) is refused. Links
are followed by `boundary`, which knows the machine.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from jobs.errors import Fault
from jobs.spec.address_types import AddressKind
from jobs.spec.strict_model import StrictModel
from jobs.store.address import BUCKET

HUB, S3, FILE = "hf://", "s3://", "file://"
MAX_PLACES, MAX_PLACE_CHARS = 200, 1024
PROBLEM = "it is not inside the places of this project"
"""One sentence for whatever lies outside: it must not tell what exists there."""
REMEDY = "Use a file inside them, or ask an administrator to run `slora projects set --places`."

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/(?:[A-Za-z0-9][\w.-]*|\*))?", re.ASCII)
_WILDCARD = re.compile(r"[*?\[]")
_ENCODED = re.compile(r"%(?:2[ef]|5c|25)", re.IGNORECASE)
_SEPARATORS = "/.\\:%*?["


class BadAddress(ValueError):
    """An address that readers could understand in several ways."""


def normalize_place(text: str) -> str:
    """Return a place in its one spelling. Raise ValueError if it is none."""
    target = _normalize(text)
    if len(target) > MAX_PLACE_CHARS:
        raise BadAddress(f"{len(target)} characters are more than the {MAX_PLACE_CHARS} of a place")
    if target.startswith(HUB) and text.endswith("/") and not text.startswith(HUB):
        raise BadAddress(f"{text[:100]!a} is a relative path: write an absolute one")
    if not target.startswith(HUB) and _WILDCARD.search(target):
        raise BadAddress(f"{text[:100]!a} has a wildcard: name a folder, or hub ids as org/*")
    return target


Place = Annotated[
    str, Field(min_length=1, max_length=MAX_PLACE_CHARS), AfterValidator(normalize_place)
]
PlaceList = Annotated[tuple[Place, ...], Field(max_length=MAX_PLACES, strict=False)]


class Places(StrictModel):
    """What the runs of a project may read; None means anything."""

    data: PlaceList | None = None
    models: PlaceList | None = None
    """Models beside those in `data`."""
    store: str = ""
    """The project's own store, which its runs may always read; empty if it has none."""
    closed: tuple[str, ...] = Field(default=(), strict=False)
    """The service's stores: below them nothing can be read but the project's own store."""

    def find_fault(self, key: str, address: str, kind: AddressKind) -> Fault | None:
        """Return the fault of an address outside, or None if a run may read it."""
        if kind is AddressKind.STORE:
            is_own = not self.store or address.rstrip("/") == self.store.rstrip("/")
            return None if is_own else Fault(key, "it is not the store of this project", "Omit it.")
        try:
            target = _cut_wildcards(_normalize(address))
        except BadAddress as error:
            return Fault(key, str(error), "Write the address without it.")
        return None if self.contains(target, kind) else Fault(key, PROBLEM, REMEDY)

    def contains(self, target: str, kind: AddressKind) -> bool:
        """Return whether a normalised path, URL or hub id is inside."""
        own, closed = _strip_scheme(self.store), map(_strip_scheme, self.closed)
        # The closest of the stores that it lies in decides: projects may lie below a store.
        stores = [store for store in (own, *closed) if store and is_inside(target, store)]
        if stores:
            return max(stores, key=len) == own
        if self.data is None or (kind is AddressKind.MODEL and self.models is None):
            return True
        models = self.models or ()
        if kind is AddressKind.DATA:
            # The id of a data set on the hub may be in either list: it is not a path.
            models = tuple(item for item in models if item.startswith(HUB))
        return any(is_inside(target, item) for item in (*self.data, *models))


def is_inside(target: str, place: str) -> bool:
    """Return whether a normalised address is a place, or lies below it."""
    if place.startswith(HUB):
        folder = place.removesuffix("*")
        return target == place or (folder != place and target.startswith(folder))
    return target == place or target.startswith(place if place.endswith("/") else f"{place}/")


@dataclass(frozen=True)
class _Parts:
    """A scheme with what belongs to it, and the path behind."""

    head: str
    path: str


def _normalize(address: str) -> str:
    """Return the one spelling of an address: an absolute path, or an s3:// or hf:// URL."""
    _check_characters(address)
    if address.startswith(HUB) or not address.startswith(("/", S3, FILE)):
        return _normalize_hub_id(address)
    parts = _split_address(address)
    path = parts.path.removesuffix("/")
    names = path.split("/")[1:]
    if "" in names or "." in names or ".." in names:
        raise BadAddress(f"{address[:100]!a} has a part that is empty, '.' or '..'")
    return f"{parts.head}{path}" or "/"


def _split_address(address: str) -> _Parts:
    if not address.startswith(S3):
        path = address.removeprefix(FILE)
        if not path.startswith("/"):
            raise BadAddress(f"{address[:100]!a} names a host: write file:// and an absolute path")
        return _Parts("", path)
    bucket, slash, rest = address.removeprefix(S3).partition("/")
    if not BUCKET.fullmatch(bucket):
        raise BadAddress(f"{bucket[:100]!a} is not a valid bucket name")
    return _Parts(f"{S3}{bucket}", f"{slash}{rest}")


def _normalize_hub_id(address: str) -> str:
    """Return hf:// and the name of a model or data set, without its revision and options."""
    name = address.removeprefix(HUB).partition("?")[0].removeprefix("datasets/").rstrip("/")
    name = name.partition("@")[0]
    if not _HUB_NAME.fullmatch(name) or ".." in name:
        raise BadAddress(f"{address[:100]!a} is neither an absolute path, a URL nor a hub id")
    return f"{HUB}{name}"


def _check_characters(address: str) -> None:
    if not address.isprintable() or "\\" in address:
        raise BadAddress(f"{address[:100]!a} has a backslash, or characters that cannot be printed")
    if _ENCODED.search(address):
        raise BadAddress(f"{address[:100]!a} has an encoded dot, slash or percent sign")
    # Some file systems and servers read a compatible form of a letter as the letter itself.
    folded = unicodedata.normalize("NFKC", address)
    if any(folded.count(letter) != address.count(letter) for letter in _SEPARATORS):
        raise BadAddress(f"{address[:100]!a} has a letter that looks like a separator")


def _cut_wildcards(target: str) -> str:
    """Return the folder in front of the first wildcard, in which all matches lie."""
    match = _WILDCARD.search(target)
    if match is None or target.startswith(HUB):
        return target
    return target[: match.start()].rpartition("/")[0] or "/"


def _strip_scheme(store: str) -> str:
    return store.removeprefix(FILE).rstrip("/")
