"""Settings of the client: URL, token and CA bundle, from options, environment and files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from jobs.errors import Fault, InputError
from jobs.process_environment import find_home

DEFAULT_SERVICE = "http://127.0.0.1:8321"
LOCAL_TOKEN = Path(".cache/service-token")
"""File of the token that `slora serve` creates; used for a local service only."""
HOME_TOKEN = "~/.config/slora/token"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
MAX_TOKEN_BYTES = 4096

_PRINTABLE = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class ClientSettings:
    """Settings of a client. The token is not part of their text."""

    url: str
    token: str | None = field(default=None, repr=False)
    token_source: str | None = None
    """Where the token comes from, for messages."""
    ca_file: Path | None = None
    """CA bundle; None means the system trust store."""

    @property
    def is_local(self) -> bool:
        """Return whether the service is on this machine."""
        return urlsplit(self.url).hostname in LOOPBACK

    @property
    def is_token_exposed(self) -> bool:
        """Return whether the token would be sent over a network unencrypted."""
        return self.token is not None and not self.is_local and self.url.startswith("http://")


def load_settings(
    service: str | None = None,
    environment: Mapping[str, str] = os.environ,
    folder: Path | None = None,
    *,
    token: str | None = None,
) -> ClientSettings:
    """Load the settings from the option, the environment and the home folder. Raise InputError.

    `folder` is the folder where a local service was started, by default the current one. An
    explicit `token` takes precedence over all other sources.
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
    home = find_home(environment).joinpath(*HOME_TOKEN.split("/")[1:])
    local = [(folder or Path()) / LOCAL_TOKEN] if settings.is_local else []
    for file in (home, *local):
        # Not pathlib, which raises for a home that is closed to this user.
        if os.path.isfile(file):
            return _with_token(settings, _read_token(file, str(file)), str(file))
    return settings


def _with_token(settings: ClientSettings, token: str, source: str) -> ClientSettings:
    # Checked here, because the HTTP library would print an invalid header value.
    if not _PRINTABLE.fullmatch(token):
        raise InputError(
            [Fault(source, "not a token", "Set it to a token, which begins with slora_.")]
        )
    return ClientSettings(settings.url, token, source, settings.ca_file)


def _read_token(file: Path, key: str) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_TOKEN_BYTES).decode("utf-8", "replace").strip()
    except OSError as error:
        problem = f"{file} can't be read: {error.strerror or error}"
        raise InputError(
            [Fault(key, problem, "Set it to a file that contains a token.")]
        ) from error


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not _PRINTABLE.fullmatch(url) or "@" in url or parts.query or parts.fragment:
        # The user information is not shown, because it may contain a password.
        problem = f"{url.rpartition('@')[2][:100]!a} is not the URL of a service"
        raise InputError([Fault("--service", problem, f"Use a URL like {DEFAULT_SERVICE}.")])
    return url.rstrip("/")


def _find_ca_file(name: str | None) -> Path | None:
    if not name:
        return None
    file = Path(os.path.expanduser(name))
    if not file.is_file():
        raise InputError([Fault("SLORA_CA_FILE", f"{name} is not a file", "Set it to a PEM file.")])
    return file
