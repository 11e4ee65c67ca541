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
MAX_TOKEN_BYTES = 4096

_PRINTABLE = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class ClientSettings:
    """What a client needs to know. The token is in no text that is made of it."""

    url: str
    token: str | None = field(default=None, repr=False)
    token_source: str | None = None
    """Where the token comes from, for words."""
    ca_file: Path | None = None
    """Who vouches for the service's certificate; None: whom this machine trusts."""

    @property
    def is_local(self) -> bool:
        """Whether the service is on this machine."""
        return urlsplit(self.url).hostname in LOOPBACK

    @property
    def is_token_exposed(self) -> bool:
        """Whether the token would travel a network unencrypted."""
        return self.token is not None and not self.is_local and self.url.startswith("http://")


def load_settings(
    service: str | None = None,
    environment: Mapping[str, str] = os.environ,
    folder: Path | None = None,
    *,
    token: str | None = None,
) -> ClientSettings:
    """From the option, the environment and the files at home. Raises InputError.

    `folder` is where a service of this machine was started; by default it is this one. With a
    `token` none is looked for.
    """
    url = _check_url(service or environment.get("SLORA_SERVICE") or DEFAULT_SERVICE)
    settings = ClientSettings(url, ca_file=_find_ca_file(environment.get("SLORA_CA_FILE")))
    if token is not None:
        return _with_token(settings, token, "the caller")
    if name := environment.get("SLORA_TOKEN_FILE"):
        return _with_token(
            settings, _read_token(Path(os.path.expanduser(name)), "SLORA_TOKEN_FILE"), name
        )
    if secret := environment.get("SLORA_TOKEN"):
        return _with_token(settings, secret.strip(), "SLORA_TOKEN")
    home = Path(environment.get("HOME") or os.path.expanduser("~"), *HOME_TOKEN.split("/")[1:])
    local = [(folder or Path()) / LOCAL_TOKEN] if settings.is_local else []
    for file in (home, *local):
        if file.is_file():
            return _with_token(settings, _read_token(file, str(file)), str(file))
    return settings


def _with_token(settings: ClientSettings, token: str, source: str) -> ClientSettings:
    # Checked here, because what can't be a header's value would be shown by who refuses it.
    if not _PRINTABLE.fullmatch(token):
        raise InputError([Fault(source, "holds no token", "A token is one word, slora_….")])
    return ClientSettings(settings.url, token, source, settings.ca_file)


def _read_token(file: Path, key: str) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_TOKEN_BYTES).decode("utf-8", "replace").strip()
    except OSError as error:
        problem = f"{file} can't be read: {error.strerror or error}"
        raise InputError([Fault(key, problem, "Name a file with a token in it.")]) from error


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not _PRINTABLE.fullmatch(url) or "@" in url or parts.query or parts.fragment:
        # Not shown whole: a password may stand in it.
        problem = f"{url.rpartition('@')[2][:100]!a} is no address of a service"
        raise InputError([Fault("--service", problem, f"As in {DEFAULT_SERVICE}.")])
    return url.rstrip("/")


def _find_ca_file(name: str | None) -> Path | None:
    if not name:
        return None
    file = Path(os.path.expanduser(name))
    if not file.is_file():
        raise InputError([Fault("SLORA_CA_FILE", f"{name} is no file", "Name a PEM file.")])
    return file
