"""RAY_ADDRESS in each of its forms, and whether anything listens there. No Ray.

Ray itself waits for many minutes for an address where no Ray is.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from jobs.errors import Fault, InputError, Unreachable

VARIABLE = "RAY_ADDRESS"
LOCAL, AUTO = "local", "auto"
PROBE_TIMEOUT_S = 5.0
"""Seconds for a connection to be accepted at the address of a Ray."""

STARTING_VARIABLE = "SLORA_RAY_STARTING"
"""HOST:PORT of a raylet that a command starts beside its driver, which waits for it."""
START_TIMEOUT_S = 90.0
"""Seconds for a Ray that starts; it takes 4 on an idle machine."""
START_POLL_S = 0.05

_HOST_PORT = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
_REMEDY = (
    "Use http://HEAD:8265 (the dashboard) or HEAD:6379, auto for the Ray of this machine, or unset "
    "it to start one here."
)


def read_ray_address(environment: Mapping[str, str] = os.environ) -> str:
    """Return "" if RAY_ADDRESS is not set, else `local`, `auto`, a dashboard's URL or HOST:PORT.

    Raise InputError for any other value.
    """
    value = environment.get(VARIABLE, "")
    address = value.strip().rstrip("/")
    if address.lower() in ("", LOCAL, AUTO):
        return address.lower()
    if (problem := _find_problem(address)) is not None:
        raise InputError([Fault(VARIABLE, f"{value[:100]!a} {problem}", _REMEDY)])
    return address


def is_dashboard_url(address: str) -> bool:
    """Return whether the address is the URL of a dashboard."""
    return address.startswith(("http://", "https://"))


def check_listening(address: str) -> None:
    """Raise Unreachable if nothing accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S).close()
    except OSError as error:
        reason = f"no answer in {PROBE_TIMEOUT_S:.0f} s"
        if not isinstance(error, TimeoutError):
            reason = error.strerror or str(error)
        raise Unreachable(
            f"No Ray listens at {address} ({reason}). It may have been stopped: unset RAY_ADDRESS "
            "and run `ray stop` to start a Ray here, or set RAY_ADDRESS to the one that runs."
        ) from error


def is_listening(address: str) -> bool:
    """Return whether something accepts connections at HOST:PORT."""
    try:
        check_listening(address)
    except Unreachable:
        return False
    return True


def wait_for_starting_ray(environment: Mapping[str, str] = os.environ) -> None:
    """Wait until the Ray that starts beside this process is ready, if there is one.

    The command that starts it reports if it fails: raise Unreachable only after START_TIMEOUT_S.
    """
    address = environment.get(STARTING_VARIABLE, "")
    if not address:
        return
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_listening(address):
        if time.monotonic() > deadline:
            raise Unreachable(
                f"Ray did not start at {address} within {START_TIMEOUT_S:.0f} s. Run the command "
                "again, or start a Ray with `ray start --head` and set RAY_ADDRESS to it."
            )
        time.sleep(START_POLL_S)


def _find_problem(address: str) -> str | None:
    if address.startswith("ray://"):
        return "is an address of Ray Client, which is not used here"
    if not is_dashboard_url(address):
        match = _HOST_PORT.fullmatch(address)
        if match is None:
            return "is not an address"
        return None if 0 < int(match["port"]) < 65536 else "has no valid port"
    try:
        parts = urlsplit(address)
        is_valid = bool(parts.hostname) and parts.port != 0 and not parts.query
    except ValueError:
        is_valid = False
    return None if is_valid and re.fullmatch(r"[!-~]+", address) else "is not a valid URL"
