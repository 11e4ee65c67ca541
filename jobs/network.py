"""Addresses of this machine, which no proxy leads to."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import MutableMapping

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
EXEMPTIONS = ("no_proxy", "NO_PROXY")
"""Some libraries read one spelling only."""


def is_loopback(host: str | None) -> bool:
    """Return whether a host is this machine: localhost, or an address of loopback."""
    if not host:
        return False
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def exempt_loopback(
    environment: MutableMapping[str, str] = os.environ, *, hosts: tuple[str, ...] = ()
) -> None:
    """Exempt this machine, and `hosts`, from the proxies that the environment names.

    A proxy cannot reach this machine's own Ray, service or store. Both spellings are set, each with
    the entries that it had, or those of the other one.
    """
    if not any(environment.get(name) or environment.get(name.upper()) for name in PROXIES):
        return
    lists = {name: environment.get(name, "") for name in EXEMPTIONS}
    for name, other in zip(EXEMPTIONS, reversed(EXEMPTIONS), strict=True):
        entries = [part.strip() for part in (lists[name] or lists[other]).split(",")]
        missing = [host for host in (*LOOPBACK, *hosts) if host not in entries]
        if "*" not in entries and missing:
            environment[name] = ",".join([*filter(None, entries), *missing])
