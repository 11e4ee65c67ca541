"""Bearer tokens: shown once, kept as digests, with a scope, a project, an end and a way to revoke.

A token is 256 random bits, so a plain SHA-256 hides it: a slow hash is for what people think up.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy import insert, or_, select, update
from sqlalchemy.orm import Session

from jobs.errors import Fault, InputError
from orchestrator.registry import projects
from orchestrator.registry.db_clock import now
from orchestrator.registry.errors import UnknownItem
from orchestrator.registry.tables import SCOPES, TokenRow
from orchestrator.registry.values import check_name, make_value

PREFIX = "slora_"
"""So that a token is known as one where it leaked."""
MAX_TOKEN_CHARS = 200


@dataclass(frozen=True)
class Token:
    """Who may do what; the token itself is not in it."""

    id: str
    label: str
    scope: str
    project: str | None
    """None: every project."""
    created_at: float
    expires_at: float | None
    revoked_at: float | None


def issue(
    session: Session,
    label: str,
    scope: str,
    *,
    project: str | None = None,
    seconds: float | None = None,
) -> tuple[Token, str]:
    """A new token, and the words that its bearer shows. Nobody can be told them again."""
    if scope not in SCOPES:
        problem = f"{scope[:40]!a} is no scope"
        raise InputError([Fault("scope", problem, f"Use {', '.join(SCOPES)}.")])
    if project is not None:
        projects.ensure_project(session, project)
    secret, token_id = PREFIX + secrets.token_urlsafe(32), secrets.token_hex(8)
    values = {
        "id": token_id,
        "digest": _digest_secret(secret),
        "label": check_name(label, "label"),
        "scope": scope,
        "project": project,
        "created_at": now(),
        "expires_at": None if seconds is None else now() + seconds,
    }
    session.execute(insert(TokenRow).values(values))
    return get(session, token_id), secret


def get(session: Session, token_id: str) -> Token:
    """The token of this id, or Unknown."""
    row = session.scalar(
        select(TokenRow).where(TokenRow.id == token_id).execution_options(populate_existing=True)
    )
    if row is None:
        raise UnknownItem("token", token_id)
    return make_value(Token, row)


def find_bearer(session: Session, secret: str) -> Token | None:
    """Whose words these are; None where the token is unknown, revoked or past its end."""
    if not secret.startswith(PREFIX) or len(secret) > MAX_TOKEN_CHARS or not secret.isascii():
        return None
    row = session.scalar(
        select(TokenRow).where(
            TokenRow.digest == _digest_secret(secret),
            TokenRow.revoked_at.is_(None),
            or_(TokenRow.expires_at.is_(None), TokenRow.expires_at > now()),
        )
    )
    return None if row is None else make_value(Token, row)


def revoke(session: Session, token_id: str) -> Token:
    """From now on nobody is known by it; the same again changes nothing. Raises Unknown."""
    session.execute(
        update(TokenRow)
        .where(TokenRow.id == token_id, TokenRow.revoked_at.is_(None))
        .values(revoked_at=now())
    )
    return get(session, token_id)


def list_tokens(session: Session) -> list[Token]:
    """All of them, the oldest first, dead ones too."""
    rows = session.scalars(select(TokenRow).order_by(TokenRow.created_at, TokenRow.id))
    return [make_value(Token, row) for row in rows]


def _digest_secret(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
