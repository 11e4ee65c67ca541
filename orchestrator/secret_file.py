"""Write a secret to a file atomically; only its owner can read it, from its creation on."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from jobs.errors import Fault, InputError


def write_secret(file: Path, secret: str) -> None:
    """Write the secret, replacing an existing file. Raise InputError if it can't be written."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secret + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        problem = f"{file} can't be written: {error.strerror or error}"
        raise InputError([Fault("token", problem, "Use a file in a writable folder.")]) from error
