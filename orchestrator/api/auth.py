"""Authentication: a route class verifies the token before anything else of a request is read.

A route declares the scope that it requires in `x-scope`, which is part of the OpenAPI document. A
route without a scope can't be created.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, HTTPException, Request, Response
from fastapi.routing import APIRoute

from jobs.errors import Fault, InputError
from jobs.spec.size_limits import check_size
from jobs.store.strict_json import load_strictly
from orchestrator.registry import tokens
from orchestrator.registry.database import Database
from orchestrator.registry.tables import SCOPES
from orchestrator.registry.tokens import Token

Scope = Literal["viewer", "submitter", "admin"]

TOKEN_CACHE_S = 1.0
"""Seconds that a token is cached: a revocation by another instance takes effect as late as this."""
TOKEN_CACHE_SIZE = 4096
MAX_LOOKUPS = 4
"""Concurrent lookups of tokens."""


@dataclass(frozen=True)
class Principal:
    """The bearer of a request's token."""

    token: Token

    @property
    def project(self) -> str | None:
        """Return the only project that the token covers, or None if it covers all."""
        return self.token.project

    def has_scope(self, scope: Scope) -> bool:
        """Return whether the token's scope includes this one."""
        return SCOPES.index(self.token.scope) >= SCOPES.index(scope)

    def can_access(self, project: str) -> bool:
        """Return whether the token covers the project."""
        return self.token.project in (None, project)


class Authenticator:
    """Verifies tokens, and caches them for a moment."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock = database, clock
        self._cache: OrderedDict[str, tuple[Token, float]] = OrderedDict()
        self._lookup_limiter = CapacityLimiter(MAX_LOOKUPS)

    async def authorize(self, request: Request, scope: Scope, *, all_projects: bool) -> Principal:
        """Return the caller. Raise HTTPException if they lack the scope or the projects."""
        principal = await self.find_principal(_read_bearer_secret(request))
        if principal is None:
            raise _make_unauthorized()
        if not principal.has_scope(scope):
            reason = f"This requires the scope {scope}; the token has {principal.token.scope}."
            raise HTTPException(403, f"{reason} Ask an admin for another token.")
        if all_projects and principal.project is not None:
            raise HTTPException(403, "This requires a token that covers all projects.")
        return principal

    async def find_principal(self, secret: str | None) -> Principal | None:
        """Return the bearer of a valid secret, or None."""
        if secret is None:
            return None
        key, now = _digest_secret(secret), self._clock()
        cached = self._cache.get(key)
        if cached is not None and now < cached[1]:
            return Principal(cached[0])
        token = await to_thread.run_sync(self._read_token, secret, limiter=self._lookup_limiter)
        if token is None:
            self._cache.pop(key, None)
            return None
        self._cache[key] = (token, now + TOKEN_CACHE_S)
        self._cache.move_to_end(key)
        if len(self._cache) > TOKEN_CACHE_SIZE:
            self._cache.popitem(last=False)
        return Principal(token)

    def has_seen_token(self, request: Request) -> bool:
        """Return whether the request's token was valid the last time; it may have expired since."""
        secret = _read_bearer_secret(request)
        return secret is not None and _digest_secret(secret) in self._cache

    def clear_cache(self) -> None:
        """Forget all cached tokens, because one was revoked."""
        self._cache.clear()

    def _read_token(self, secret: str) -> Token | None:
        with self._database.read() as session:
            return tokens.find_bearer(session, secret)


class StrictRequest(Request):
    """A request whose JSON is parsed as strictly as the files of a store."""

    async def json(self) -> Any:
        """Return the parsed body.

        Raise HTTPException if a database could not store its text, or if it holds so many values
        that validating them would keep other requests waiting.
        """
        body = await self.body()
        try:
            value = load_strictly(body)
            # Escapes may spell a lone surrogate, which can't be encoded.
            if b"\\u" in body:
                _check_encodable(value)
        except ValueError as error:
            raise HTTPException(400, f"The body is not valid JSON: {str(error)[:200]}.") from None
        if isinstance(value, dict | list):
            try:
                check_size(value, "body")
            except InputError as error:
                raise HTTPException(422, str(error)) from None
        return value


class AuthenticatedRoute(APIRoute):
    """A route that requires a token with its scope."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, which verifies the token first."""
        handle_request = super().get_route_handler()
        extra = self.openapi_extra or {}
        scope, all_projects = extra["x-scope"], bool(extra.get("x-all-projects"))
        assert scope in SCOPES
        parameters = {parameter.alias for parameter in self.dependant.query_params}

        async def handle_authenticated(request: Request) -> Response:
            authenticator: Authenticator = request.app.state.authenticator
            request.state.principal = await authenticator.authorize(
                request, scope, all_projects=all_projects
            )
            request.app.state.limits.check_token(request.state.principal.token, request)
            _check_query(request, parameters)
            return await handle_request(StrictRequest(request.scope, request.receive))

        return handle_authenticated


async def get_principal(request: Request) -> Principal:
    """Return the authenticated caller."""
    principal: Principal = request.state.principal
    return principal


CurrentPrincipal = Annotated[Principal, Depends(get_principal)]
"""Parameter of a route: its authenticated caller."""


def requires_scope(scope: Scope, *, all_projects: bool = False) -> dict[str, Any]:
    """Return what a route declares in the OpenAPI document."""
    extra: dict[str, Any] = {"x-scope": scope, "security": [{"bearer": []}]}
    return {**extra, "x-all-projects": True} if all_projects else extra


def _check_query(request: Request, allowed: set[str]) -> None:
    """Raise InputError for unknown parameters: a misspelled filter would return everything."""
    names = [name for name, _ in request.query_params.multi_items()]
    faults = [
        Fault(name[:100], "unknown parameter", f"Use one of {', '.join(sorted(allowed))}.")
        if allowed
        else Fault(name[:100], "unknown parameter", "Remove it: this route has no parameters.")
        for name in dict.fromkeys(names)
        if name not in allowed
    ]
    repeated = sorted({name for name in allowed if names.count(name) > 1})
    faults += [Fault(name, "set more than once", "Set it once.") for name in repeated]
    if faults:
        raise InputError(faults)


def _digest_secret(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def _read_bearer_secret(request: Request) -> str | None:
    headers = request.headers.getlist("authorization")
    if len(headers) != 1:
        return None
    scheme, _, secret = headers[0].partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None


def _make_unauthorized() -> HTTPException:
    detail = "Send a token of this service: Authorization: Bearer slora_…"
    return HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})


def _check_encodable(value: Any) -> None:
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for name, inner in value.items():
            name.encode()
            _check_encodable(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_encodable(inner)
