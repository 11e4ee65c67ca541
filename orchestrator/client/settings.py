"""Where the service is and who asks: the only place that reads the environment for it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from jobs.errors import Fault, InputError

DEFAULT_SERVICE = "http://127.0.0.1:8321"
LOCAL_TOKEN = Path(".cache/service-token")
"""Where `slora serve` leaves the token that it makes; good for a service of this machine only."""
HOME_TOKEN = "~/.config/slora/token"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
MOST_BYTES = 4096

_WORDS = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Settings:
    """What a client needs to know. The token is in no text that is made of it."""

    service: str
    token: str | None = field(default=None, repr=False)
    source: str | None = None
    """Where the token comes from, for words."""
    authority: Path | None = None
    """Who vouches for the service's certificate; None: whom this machine trusts."""

    @property
    def local(self) -> bool:
        """Whether the service is on this machine."""
        return urlsplit(self.service).hostname in LOOPBACK

    @property
    def in_clear(self) -> bool:
        """Whether the token would travel a network unencrypted."""
        return self.token is not None and not self.local and self.service.startswith("http://")


def settings(
    service: str | None = None,
    environment: Mapping[str, str] = os.environ,
    folder: Path | None = None,
    *,
    token: str | None = None,
) -> Settings:
    """From the option, the environment and the files at home. Raises InputError.

    `folder` is where a service of this machine was started; by default it is this one. With a
    `token` none is looked for.
    """
    url = _service(service or environment.get("SLORA_SERVICE") or DEFAULT_SERVICE)
    found = Settings(url, authority=_authority(environment.get("SLORA_CA_FILE")))
    if token is not None:
        return _with(found, token, "the caller")
    if name := environment.get("SLORA_TOKEN_FILE"):
        return _with(found, _read(Path(os.path.expanduser(name)), "SLORA_TOKEN_FILE"), name)
    if words := environment.get("SLORA_TOKEN"):
        return _with(found, words.strip(), "SLORA_TOKEN")
    home = Path(environment.get("HOME") or os.path.expanduser("~"), *HOME_TOKEN.split("/")[1:])
    local = [(folder or Path()) / LOCAL_TOKEN] if found.local else []
    for file in (home, *local):
        if file.is_file():
            return _with(found, _read(file, str(file)), str(file))
    return found


def _with(there: Settings, token: str, source: str) -> Settings:
    # Checked here, because what can't be a header's value would be shown by who refuses it.
    if not _WORDS.fullmatch(token):
        raise InputError([Fault(source, "holds no token", "A token is one word, slora_….")])
    return Settings(there.service, token, source, there.authority)


def _read(file: Path, key: str) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(MOST_BYTES).decode("utf-8", "replace").strip()
    except OSError as wrong:
        problem = f"{file} can't be read: {wrong.strerror or wrong}"
        raise InputError([Fault(key, problem, "Name a file with a token in it.")]) from wrong


def _service(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not _WORDS.fullmatch(url) or "@" in url or parts.query or parts.fragment:
        # Not shown whole: a password may stand in it.
        problem = f"{url.rpartition('@')[2][:100]!a} is no address of a service"
        raise InputError([Fault("--service", problem, f"As in {DEFAULT_SERVICE}.")])
    return url.rstrip("/")


def _authority(name: str | None) -> Path | None:
    if not name:
        return None
    file = Path(os.path.expanduser(name))
    if not file.is_file():
        raise InputError([Fault("SLORA_CA_FILE", f"{name} is no file", "Name a PEM file.")])
    return file
