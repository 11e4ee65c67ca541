"""The environment of this process, made usable before libraries read it: home and proxies."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from jobs.network import exempt_loopback


def prepare_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set a usable HOME, and exempt this machine from proxies."""
    environment["HOME"] = str(find_home(environment))
    exempt_loopback(environment)


def find_home(environment: Mapping[str, str] = os.environ) -> Path:
    """Return HOME if it is an absolute path, else the home of the user's account.

    A container may run as a user without an account, whose home is `/`.
    """
    if environment.get("HOME", "").startswith("/"):
        return Path(environment["HOME"])
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir or "/")
    except KeyError:
        return Path("/")
