"""Read keys and secrets from files that only their owner may read. No message quotes a content."""

from __future__ import annotations

import configparser
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY_ID, SECRET_KEY, TOKEN = "aws_access_key_id", "aws_secret_access_key", "aws_session_token"
MAX_BYTES = 64 << 10
PROFILE = "default"


@dataclass(frozen=True)
class AccessKeys:
    """Credentials of S3, long-lived or of a session. Its text shows none of them."""

    key_id: str = field(repr=False)
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)
    expires_at: float | None = None
    """Time of a session's end; None for keys that do not expire."""


def read_keys(name: str) -> AccessKeys:
    """Read the access key of a profile file (its section `default`, or its only one) or of JSON.

    Raise ValueError, which says what is wrong with the file.
    """
    text = read_private_file(name)
    values = _parse_json(name, text) if text.lstrip().startswith("{") else _parse_ini(name, text)
    keys = {key: values.get(key, "") for key in (KEY_ID, SECRET_KEY, TOKEN)}
    if missing := [key for key in (KEY_ID, SECRET_KEY) if not keys[key]]:
        raise ValueError(f"{name} has no {' and no '.join(missing)}")
    for key, value in keys.items():
        if not isinstance(value, str) or not all("!" <= letter <= "~" for letter in value):
            raise ValueError(f"{name} has a {key} with a character that no key has")
    return AccessKeys(keys[KEY_ID], keys[SECRET_KEY], keys[TOKEN])


def read_secret(name: str) -> str:
    """Read a secret, without the line end. Raise ValueError if no variable could hold it."""
    secret = read_private_file(name).rstrip("\r\n")
    if not secret:
        raise ValueError(f"{name} is empty")
    if not secret.isprintable():
        raise ValueError(f"{name} has more than one line, or a control character")
    if "$" in secret:
        raise ValueError(f"{name} has a $, which Ray would replace by a variable of the node")
    return secret


def read_private_file(name: str) -> str:
    """Read a file that only its owner may access. Raise ValueError.

    A file of another owner, such as a mounted secret of root, may be readable by our group.
    """
    path = Path(os.path.expanduser(name))
    try:
        with path.open("rb") as stream:
            info = os.fstat(stream.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ValueError(f"{name} is not a file")
            shared = 0o037 if info.st_uid != os.getuid() else 0o077
            if info.st_mode & shared:
                mode = stat.S_IMODE(info.st_mode)
                raise ValueError(f"{name} is open to others (mode {mode:04o}): chmod 600 it")
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{name} can't be read: {error.strerror or 'I/O error'}") from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name} has more than {MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None


def _parse_json(name: str, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is not valid JSON") from None
    assert isinstance(values, dict)
    return values


def _parse_ini(name: str, text: str) -> dict[str, Any]:
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(text)
    except configparser.Error:
        raise ValueError(f"{name} is neither a profile file of AWS nor JSON") from None
    sections = parser.sections()
    if PROFILE not in sections and len(sections) != 1:
        raise ValueError(f"{name} has {len(sections)} profiles, none of them [{PROFILE}]")
    return dict(parser[PROFILE if PROFILE in sections else sections[0]])
