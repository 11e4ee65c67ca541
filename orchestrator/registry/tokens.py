"""Bearer tokens with a scope, a project and an expiry. They can be revoked.

A token is 256 random bits, so a plain SHA-256 hides it: a slow hash is for what people think up.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy import ColumnElement, insert, or_, select, update
from sqlalchemy.orm import Session

from jobs.errors import Fault, InputError
from orchestrator.registry import projects
from orchestrator.registry.db_clock import now
from orchestrator.registry.errors import UnknownItem
from orchestrator.registry.tables import SCOPES, TokenRow
from orchestrator.registry.values import check_name, make_value

PREFIX = "slora_"
"""Lets scanners recognise a leaked token."""
MAX_TOKEN_CHARS = 200


@dataclass(frozen=True)
class Token:
    """A token without its secret."""

    id: str
    label: str
    scope: str
    project: str | None
    """None means all projects."""
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
    """Issue a token and return it with its secret, which cannot be read again."""
    if scope not in SCOPES:
        problem = f"{scope[:40]!a} is not a scope"
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
    """Read a token. Raise UnknownItem."""
    row = session.scalar(
        select(TokenRow).where(TokenRow.id == token_id).execution_options(populate_existing=True)
    )
    if row is None:
        raise UnknownItem("token", token_id)
    return make_value(Token, row)


def find_bearer(session: Session, secret: str) -> Token | None:
    """Find the token of a secret; return None if it is unknown, revoked or expired."""
    if not secret.startswith(PREFIX) or len(secret) > MAX_TOKEN_CHARS or not secret.isascii():
        return None
    row = session.scalar(
        select(TokenRow).where(TokenRow.digest == _digest_secret(secret), *_is_valid())
    )
    return None if row is None else make_value(Token, row)


def list_valid_ids(session: Session, token_ids: Collection[str]) -> set[str]:
    """List which of these tokens exist and are neither revoked nor expired."""
    query = select(TokenRow.id).where(TokenRow.id.in_(token_ids), *_is_valid())
    return set(session.scalars(query))


def revoke(session: Session, token_id: str) -> Token:
    """Revoke a token; do nothing if it is revoked. Raise UnknownItem."""
    session.execute(
        update(TokenRow)
        .where(TokenRow.id == token_id, TokenRow.revoked_at.is_(None))
        .values(revoked_at=now())
    )
    return get(session, token_id)


def list_tokens(session: Session) -> list[Token]:
    """List all tokens, oldest first, including expired and revoked ones."""
    rows = session.scalars(select(TokenRow).order_by(TokenRow.created_at, TokenRow.id))
    return [make_value(Token, row) for row in rows]


def _is_valid() -> tuple[ColumnElement[bool], ...]:
    return (
        TokenRow.revoked_at.is_(None),
        or_(TokenRow.expires_at.is_(None), TokenRow.expires_at > now()),
    )


def _digest_secret(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
