"""Find the Ray that runs, by RAY_ADDRESS or `ray start`, without loading its client."""

from __future__ import annotations

from ray._private.services import canonicalize_bootstrap_address

from jobs.errors import Unreachable
from jobs.train.cluster.ray_address import AUTO, LOCAL, check_listening, read_ray_address
from orchestrator.cli.console import note


def find_running_ray() -> str | None:
    """Return the configured Ray's dashboard URL or its own address, None if there is none.

    Raise InputError if RAY_ADDRESS is not an address, and Unreachable if no Ray is there.
    """
    configured = read_ray_address()
    if configured == LOCAL:
        return None
    if configured not in ("", AUTO):
        return configured
    try:
        address: str | None = canonicalize_bootstrap_address(None)
    except (ValueError, OSError) as error:
        if configured == AUTO:
            raise Unreachable(
                "RAY_ADDRESS is auto, but no Ray runs on this machine. Run `ray start --head`, or "
                "unset RAY_ADDRESS to start a Ray for this run."
            ) from error
        return None
    return _drop_stale(address) if address and not configured else address


def _drop_stale(address: str) -> str | None:
    """Return the address of `ray start` on this machine, or None if that Ray is gone."""
    try:
        check_listening(address)
    except Unreachable:
        note(f"The Ray that was started at {address} is gone.")
        return None
    return address
