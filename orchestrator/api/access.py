"""Who may do what: one route class asks for a token before anything else of a request is read.

A route names the scope that it needs in `x-scope`, so the OpenAPI document says it too; one that
names none can't be made.
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
from jobs.store.strict_json import load_strictly
from orchestrator.registry import tokens
from orchestrator.registry.database import Database
from orchestrator.registry.models import SCOPES
from orchestrator.registry.tokens import Token

Scope = Literal["viewer", "submitter", "admin"]

KEPT_S = 1.0
"""That a token is believed without another look: another service's revocation needs as long."""
REMEMBERED = 4096
LOOKS = 4
"""Tokens that are looked up at once."""


@dataclass(frozen=True)
class Who:
    """The bearer of a request's token."""

    token: Token

    @property
    def project(self) -> str | None:
        """The only project that there is for them; None: all."""
        return self.token.project

    def may(self, scope: Scope) -> bool:
        """Whether the token's scope includes this one."""
        return SCOPES.index(self.token.scope) >= SCOPES.index(scope)

    def sees(self, project: str) -> bool:
        """Whether what belongs to the project is there for them."""
        return self.token.project in (None, project)


class Doorman:
    """Knows tokens, and remembers them for a moment."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock = database, clock
        self._known: OrderedDict[str, tuple[Token, float]] = OrderedDict()
        self._looks = CapacityLimiter(LOOKS)

    async def admit(self, request: Request, scope: Scope, *, everywhere: bool) -> Who:
        """Who asks. Raises HTTPException where they may not."""
        who = await self.bearer(_words(request))
        if who is None:
            raise _unknown()
        if not who.may(scope):
            what = f"This needs the scope {scope}; the token's is {who.token.scope}."
            raise HTTPException(403, f"{what} Ask an admin for another token.")
        if everywhere and who.project is not None:
            raise HTTPException(403, "This needs a token for all projects; this one is for one.")
        return who

    async def bearer(self, words: str | None) -> Who | None:
        """Whose words these are; None for nobody's."""
        if words is None:
            return None
        key, now = sha256(words.encode()).hexdigest(), self._clock()
        known = self._known.get(key)
        if known is not None and now < known[1]:
            return Who(known[0])
        found = await to_thread.run_sync(self._looked_up, words, limiter=self._looks)
        if found is None:
            self._known.pop(key, None)
            return None
        self._known[key] = (found, now + KEPT_S)
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return Who(found)

    def forget(self) -> None:
        """A token was revoked: look again."""
        self._known.clear()

    def _looked_up(self, words: str) -> Token | None:
        with self._database.read() as session:
            return tokens.bearer(session, words)


class Strict(Request):
    """A request whose JSON is read as strictly as a store's papers."""

    async def json(self) -> Any:
        """The body's value; one that no database and no file could keep is refused."""
        body = await self.body()
        try:
            found = load_strictly(body)
            # What is written with escapes may be half of a character, which no encoding has.
            if b"\\u" in body:
                _encoded(found)
        except ValueError as wrong:
            raise HTTPException(400, f"The body is no JSON: {str(wrong)[:200]}.") from None
        return found


class Guarded(APIRoute):
    """A route that nobody passes without a token of its scope."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, behind the check."""
        inner = super().get_route_handler()
        about = self.openapi_extra or {}
        scope, everywhere = about["x-scope"], bool(about.get("x-all-projects"))
        assert scope in SCOPES
        known = {one.alias for one in self.dependant.query_params}

        async def handler(request: Request) -> Response:
            doorman: Doorman = request.app.state.doorman
            request.state.who = await doorman.admit(request, scope, everywhere=everywhere)
            _check_query(request, known)
            return await inner(Strict(request.scope, request.receive))

        return handler


async def who_asks(request: Request) -> Who:
    """The dependency: whom the route let in."""
    found: Who = request.state.who
    return found


Asker = Annotated[Who, Depends(who_asks)]
"""A route's parameter: whom it let in."""


def needs(scope: Scope, *, all_projects: bool = False) -> dict[str, Any]:
    """What a route says of itself in the document."""
    about: dict[str, Any] = {"x-scope": scope, "security": [{"bearer": []}]}
    return {**about, "x-all-projects": True} if all_projects else about


def _check_query(request: Request, known: set[str]) -> None:
    """A filter that is misspelled would be none, and its answer everything. Raises InputError."""
    names = [name for name, _ in request.query_params.multi_items()]
    faults = [
        Fault(name[:100], "there is no such parameter", f"There is: {', '.join(sorted(known))}.")
        if known
        else Fault(name[:100], "this takes no parameters", "Leave it out.")
        for name in dict.fromkeys(names)
        if name not in known
    ]
    twice = sorted({name for name in known if names.count(name) > 1})
    faults += [Fault(name, "it is given twice", "Give it once.") for name in twice]
    if faults:
        raise InputError(faults)


def _words(request: Request) -> str | None:
    given = request.headers.getlist("authorization")
    if len(given) != 1:
        return None
    kind, _, words = given[0].partition(" ")
    return words.strip() if kind.lower() == "bearer" else None


def _unknown() -> HTTPException:
    detail = "Send a token of this service: Authorization: Bearer slora_…"
    return HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})


def _encoded(value: Any) -> None:
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for name, inner in value.items():
            name.encode()
            _encoded(inner)
    elif isinstance(value, list):
        for inner in value:
            _encoded(inner)
