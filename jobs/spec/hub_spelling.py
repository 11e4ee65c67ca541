"""Check how an address of the hub is written: hf:// for data, a bare id for a model."""

from __future__ import annotations

import re
from urllib.parse import unquote

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.hub import HUB_SCHEME, parse_hub_address
from jobs.spec.address_types import AddressKind
from jobs.store.address import find_address_fault

REMEDIES = {
    AddressKind.DATA: f"Use a path, an s3:// URL or {HUB_SCHEME}org/name.",
    AddressKind.MODEL: "Use a path, an s3:// URL or a hub id, org/name.",
    AddressKind.STORE: "Use a path or an s3:// URL.",
}
_WRITTEN = re.compile(r"\s*(?:hf|huggingface):/*(?P<rest>.*?)\s*", re.I | re.S)
_PAGE = re.compile(
    r"\s*https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<kind>datasets/)?"
    r"(?P<name>[^\s/?#]+(?:/[^\s/?#]+)?)(?:[/?#].*)?\s*",
    re.I | re.S,
)
_BARE = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?\?(?:config|split)=.*")


def find_spelling_fault(key: str, address: str, kind: AddressKind) -> Fault | None:
    """Return what is wrong with an address that cannot be meant as it is written, or None."""
    if kind is not AddressKind.STORE and (page := _PAGE.fullmatch(address)) is not None:
        return _make_page_fault(key, address, page, kind)
    if kind is AddressKind.DATA:
        if address.startswith(HUB_SCHEME):
            return _find_data_fault(key, address)
        if _BARE.fullmatch(address):
            return _make_fault(key, address, "has options, as only hf:// has", HUB_SCHEME + address)
    written = _WRITTEN.fullmatch(address)
    if written is None or kind is AddressKind.STORE:
        return find_address_fault(key, address, REMEDIES[kind])
    if kind is AddressKind.DATA:
        right = f"{HUB_SCHEME}{written['rest'] or 'org/name'}"
        return _make_fault(key, address, "is not spelled as a URL", right)
    name = re.split("[@?]", written["rest"].removeprefix("models/"))[0].rstrip("/") or "org/name"
    return _make_fault(key, address, "is no id of a model: it has no hf:// in front", name)


def _find_data_fault(key: str, address: str) -> Fault | None:
    try:
        parse_hub_address(address, key)
    except InputError as error:
        return error.faults[0]
    return None


def _make_page_fault(key: str, address: str, page: re.Match[str], kind: AddressKind) -> Fault:
    name = unquote(page["name"])
    if kind is AddressKind.DATA:
        problem = "is a web page, not a data set"
        return _make_fault(key, address, problem, f"{HUB_SCHEME}{name}")
    if page["kind"]:
        problem = f"{address[:100]!a} is a data set, not a model"
        return Fault(key, problem, REMEDIES[kind])
    return _make_fault(key, address, "is a web page, not a model", name)


def _make_fault(key: str, address: str, problem: str, right: str) -> Fault:
    return Fault(key, f"{address[:100]!a} {problem}", f"Write {right[:100]}.")
