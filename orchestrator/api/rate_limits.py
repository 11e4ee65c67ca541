"""Limit requests by address, by token and by project, in the memory of each instance.

Health checks are never limited. A token for all projects is the operator's: only its address is
limited.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from fastapi import HTTPException, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.api.auth import Authenticator
from orchestrator.api.problems import make_problem
from orchestrator.control.config import HttpLimits
from orchestrator.registry.tokens import Token

BURST_S = 5.0
"""A key that was idle for this long may use all of it at once."""
MAX_KEYS = 10_000
BYTES_PER_UNIT = 1 << 16
"""A request costs one unit, and one for each of these bytes of its body."""
WRITE_COST = 2.0
HEALTH_PATHS = frozenset({"/healthz", "/readyz"})
MONITORING_PATHS = HEALTH_PATHS | {"/metrics"}
READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class RateLimiter:
    """A bucket for each key, which refills at a constant rate up to BURST_S of it."""

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._burst = max(1.0, rate * BURST_S)
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What is left of each bucket, and when that was so; the least recent first."""

    def take(self, key: str, cost: float = 1.0) -> float:
        """Take the cost and return 0, or take nothing and return the seconds until it is there."""
        now = self._clock()
        level, since = self._levels.get(key, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._rate)
        missing = min(cost, self._burst) - level
        self._levels[key] = (level if missing > 0 else level - min(cost, self._burst), now)
        self._levels.move_to_end(key)
        if len(self._levels) > MAX_KEYS:
            self._levels.popitem(last=False)
        return max(0.0, missing / self._rate)


class RequestLimits:
    """The limits of one instance of the service."""

    def __init__(self, limits: HttpLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._addresses = RateLimiter(limits.address_requests_per_s, clock=clock)
        self._anonymous = RateLimiter(limits.anonymous_requests_per_s, clock=clock)
        self._tokens = RateLimiter(limits.token_requests_per_s, clock=clock)
        self._projects = RateLimiter(limits.project_requests_per_s, clock=clock)

    def find_wait_of_address(self, address: str, cost: float) -> float:
        """Count a request of an address; return the seconds to wait if it is above the limit."""
        return self._addresses.take(address, cost)

    def find_wait_of_anonymous(self, address: str) -> float:
        """Count a request whose token is not known to be valid, as above."""
        return self._anonymous.take(address)

    def check_token(self, token: Token, request: Request) -> None:
        """Count a request of a token and its project. Raise HTTPException above a limit."""
        if token.project is None:
            return
        cost = _compute_cost(request)
        for limiter, key, owner in (
            (self._tokens, token.id, "this token"),
            (self._projects, token.project, "the project"),
        ):
            if wait_s := limiter.take(key, cost):
                detail, headers = _describe_wait(owner, wait_s)
                raise HTTPException(429, detail, headers=headers)


class RequestLimit:
    """Refuses the requests of an address that sends too many, before anything else is read."""

    def __init__(self, app: ASGIApp, limits: RequestLimits, authenticator: Authenticator) -> None:
        self._app, self._limits, self._authenticator = app, limits, authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        wait_s = self._find_wait(scope) if scope["type"] == "http" else 0.0
        if wait_s:
            detail, headers = _describe_wait("this address", wait_s)
            # The body stays unread, so the connection can't be reused.
            response = make_problem(429, detail, headers={**headers, "Connection": "close"})
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _find_wait(self, scope: Scope) -> float:
        path = scope["path"]
        if path in HEALTH_PATHS:
            return 0.0
        request = Request(scope)
        address = "" if request.client is None else request.client.host
        if not self._authenticator.has_seen_token(request) and (
            wait_s := self._limits.find_wait_of_anonymous(address)
        ):
            return wait_s
        if path in MONITORING_PATHS:
            return 0.0
        return self._limits.find_wait_of_address(address, _compute_cost(request))


def _compute_cost(request: Request) -> float:
    cost = 1.0 if request.method in READ_METHODS else WRITE_COST
    length = request.headers.get("content-length", "")
    if length.isdecimal() and length.isascii() and len(length) < 20:
        return cost + int(length) // BYTES_PER_UNIT
    return cost


def _describe_wait(owner: str, wait_s: float) -> tuple[str, dict[str, str]]:
    seconds = max(1, math.ceil(wait_s))
    detail = f"Too many requests of {owner}. Retry in {seconds} s, and send them more slowly."
    return detail, {"Retry-After": str(seconds)}
