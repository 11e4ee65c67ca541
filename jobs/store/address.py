"""Check how an address is written: a folder, file:// or s3://bucket/key, in one spelling each."""

from __future__ import annotations

import re

from jobs.errors import Fault

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
SCHEMES = ("file", "s3")
_WRITTEN = re.compile(r"\s*(?P<scheme>s3[an]?|file):(?P<slashes>/*)(?P<rest>.*)", re.I | re.S)
_OTHER = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://")
_REMEDY = "Use a path or an s3:// URL."


def find_address_fault(key: str, address: str, remedy: str = _REMEDY) -> Fault | None:
    """Return what is wrong with an address that cannot be meant as it is written, or None.

    `s3:/bucket/x` would be a folder, and `S3://bucket/x` a bucket to some readers and a folder to
    others, so both are refused, with the right spelling.
    """
    if (written := _WRITTEN.fullmatch(address)) is not None:
        if written["scheme"].lower() == "file":
            return _check_file_url(key, address, written)
        return _check_bucket_url(key, address, written, remedy)
    if (other := _OTHER.match(address)) is not None:
        return Fault(key, f"{address[:100]!a}: {other[1]}:// is not supported", remedy)
    return None


def _check_file_url(key: str, address: str, written: re.Match[str]) -> Fault | None:
    if address.startswith("file://"):
        return None
    # One slash begins a path; two are those of the URL.
    slashes = {"": "//", "/": "///"}.get(written["slashes"], written["slashes"])
    return _make_spelling_fault(key, address, f"file:{slashes}{written['rest']}")


def _check_bucket_url(key: str, address: str, written: re.Match[str], remedy: str) -> Fault | None:
    bucket = written["rest"].partition("/")[0]
    if "@" in bucket:
        # Not printed: the text before the @ is a key.
        problem = "an s3:// URL must not hold credentials; set them in the environment"
        return Fault(key, problem, remedy)
    if not address.startswith("s3://") or address.startswith("s3:///"):
        return _make_spelling_fault(key, address, f"s3://{written['rest'] or 'BUCKET/PREFIX'}")
    if not BUCKET.fullmatch(bucket):
        return Fault(key, f"{bucket[:100]!a} is not a valid bucket name", remedy)
    return None


def _make_spelling_fault(key: str, address: str, right: str) -> Fault:
    return Fault(key, f"{address[:100]!a} is not spelled as a URL", f"Write {right[:100]}.")
