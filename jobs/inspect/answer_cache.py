"""The cache of answers about models: a folder of JSON files a kind, named by the digest of all that
an answer depends on. No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from jobs.store.settings import read_store_settings

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
LIBRARIES = ("transformers", "torch", "peft")
INSPECTING_CODE = (
    "jobs/inspect",
    "jobs/train/attention",
    "jobs/train/data",
    "jobs/train/model",
    "slora/formats",
    "slora/layers",
)
"""Folders of the modules that an answer depends on."""


def recall_answer(
    kind: str, identity: Any, *, parse: Callable[[bytes], T], ask: Callable[[], Any]
) -> T:
    """Return the answer of this identity: from the cache, or by asking for it once."""
    path = _find_file(kind, identity)
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError):
        text = json.dumps(ask()).encode()
    answer = parse(text)
    _write_file(path, text)
    return answer


def _find_file(kind: str, identity: Any) -> Path:
    text = json.dumps([_digest_code(), identity], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:40]
    return read_store_settings().cache / kind / f"{name}.json"


@cache
def _digest_code() -> str:
    """Return a digest of the libraries' versions and of the code that inspects a model."""
    sha256 = hashlib.sha256()
    for package in LIBRARIES:
        try:
            sha256.update(version(package).encode())
        except PackageNotFoundError:
            sha256.update(b"absent")
    for folder in INSPECTING_CODE:
        for path in sorted((ROOT / folder).glob("*.py")):
            sha256.update(path.read_bytes())
    return sha256.hexdigest()


def _write_file(path: Path, text: bytes) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(text)
        temporary.replace(path)
    except OSError:
        # A full or read-only disk: the next plan asks again.
        temporary.unlink(missing_ok=True)
