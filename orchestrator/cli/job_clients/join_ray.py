"""Join a running Ray. Each wait is bounded, unlike Ray's own."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import requests
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from jobs.errors import Unreachable
from jobs.train.cluster.ray_address import check_listening, is_dashboard_url
from orchestrator.cli.console import note

REQUEST_TIMEOUTS_S = (5.0, 60.0)
"""Seconds to connect to a dashboard, and for it to answer."""
RESOLVE_TIMEOUT_S = 120.0
"""Seconds for Ray to name its dashboard; a busy machine needs ten, most of them for imports."""
CONNECTION_ERRORS = (
    ConnectionError,
    RuntimeError,
    AuthenticationError,
    requests.RequestException,
    # Something else than Ray answers.
    ValueError,
    KeyError,
    TypeError,
)
_RESOLVER = """
import logging, sys, ray
context = ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
print("dashboard", context.dashboard_url)
"""


class BoundedClient(JobSubmissionClient):  # type: ignore[misc]  # Ray has no types for it.
    """A client of the Jobs API whose requests end: Ray's own waits for an answer without end."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", REQUEST_TIMEOUTS_S)
        response: requests.Response = super()._do_request(method, endpoint, **options)
        return response


def join_ray(address: str) -> JobSubmissionClient:
    """Return a client of the Ray at an address. Raise Unreachable."""
    # A Ray with authentication leaves its token where clients can find it, but they only look for
    # it if RAY_AUTH_MODE says so.
    logging.getLogger("ray").setLevel(logging.ERROR)
    url = address
    try:
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        url = _resolve_dashboard_url(address)
        client = BoundedClient(url)
    except CONNECTION_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise Unreachable(
            f"Ray at {address} does not answer: {reason}. {_describe_proxy(url)}Check that it "
            "runs, and that its token is in ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH. To start a "
            "Ray here instead, unset RAY_ADDRESS and run `ray stop`."
        ) from error
    note(f"Connected to Ray at {address}.")
    return client


def _resolve_dashboard_url(address: str) -> str:
    """Return the URL of the Jobs API; Ray itself has to be asked for it. Raise Unreachable.

    In another process, because Ray neither gives up nor can be interrupted.
    """
    if is_dashboard_url(address):
        return address
    check_listening(address)
    command = [sys.executable, "-c", _RESOLVER, address]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=RESOLVE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Unreachable(
            f"Ray at {address} did not name its dashboard within {RESOLVE_TIMEOUT_S:.0f} s. Check "
            "that RAY_ADDRESS is the address of a Ray, or set it to http://HEAD:8265."
        ) from error
    names = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("dashboard")]
    if not names or ":" not in names[0]:
        lines = result.stderr.strip().splitlines() or ["it has no dashboard"]
        raise RuntimeError(lines[-1])
    return f"http://{names[0]}"


def _describe_proxy(url: str) -> str:
    """Name the proxy that requests to the URL go through, or return an empty text."""
    if not is_dashboard_url(url) or not requests.utils.get_environ_proxies(url):
        return ""
    return "Requests go through a proxy (http_proxy): add the host to no_proxy if it needs none. "
