"""Remember the highest move of each pointer that this user has read: a rollback by hand shows.

One small file a pointer, in the user's state folder. Only moves with a trusted signature are
remembered, so nobody else can raise a counter.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from jobs.errors import Fault, InputError
from jobs.spec.strict_model import StrictModel
from jobs.store.file_lock import take_lock
from jobs.store.settings import read_store_settings

LOCK_TIMEOUT_S = 60.0
MAX_FILE_BYTES = 16384

log = logging.getLogger(__name__)


class _MoveFile(StrictModel):
    store: str
    name: str
    move: Annotated[int, Field(ge=1, lt=2**53)]
    version: Annotated[int, Field(ge=1, lt=10**9)]


@dataclass(frozen=True)
class SeenMove:
    """The highest move of a pointer, and the version that it named; 0 and 0 before the first."""

    move: int = 0
    version: int = 0


def recall_move(store_url: str, name: str) -> SeenMove:
    """Return the highest move that was remembered. Raise InputError for a corrupt file."""
    path = _locate_file(store_url, name)
    try:
        with path.open("rb") as file:
            record = _MoveFile.model_validate_json(file.read(MAX_FILE_BYTES))
    except FileNotFoundError:
        return SeenMove()
    except OSError as error:
        log.warning("%s cannot be read (%s): earlier moves of %s are unknown.", path, error, name)
        return SeenMove()
    except ValidationError as error:
        problem = "the record of the highest move is corrupt"
        remedy = f"Delete the file if you trust the present pointer of {name}."
        raise InputError([Fault(str(path), problem, remedy)]) from error
    return SeenMove(record.move, record.version)


def remember_move(store_url: str, name: str, seen: SeenMove) -> None:
    """Remember a move unless a higher one is remembered. Warn if the folder is read-only."""
    if recall_move(store_url, name).move >= seen.move:
        return
    path = _locate_file(store_url, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.with_suffix(".lock").open("ab") as lock:
            take_lock(lock, purpose=f"it records a move of {name}", timeout_s=LOCK_TIMEOUT_S)
            # Again, now that no other process can write it.
            if recall_move(store_url, name).move < seen.move:
                record = _MoveFile(store=store_url, name=name, move=seen.move, version=seen.version)
                _replace_file(path, record.model_dump_json(indent=2).encode())
    except OSError as error:
        log.warning("%s cannot be written (%s): a rollback would go unnoticed.", path, error)


def _locate_file(store_url: str, name: str) -> Path:
    digest = hashlib.sha256(f"{store_url.rstrip('/')}\0{name}".encode()).hexdigest()
    return read_store_settings().seen_moves / f"{digest[:32]}.json"


def _replace_file(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
