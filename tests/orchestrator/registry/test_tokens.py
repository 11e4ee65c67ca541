"""Bearer tokens on both databases: shown once, hashed, scoped, expiring, revocable."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from jobs.errors import InputError
from orchestrator.registry import tokens
from orchestrator.registry.database import Database
from orchestrator.registry.errors import UnknownItem
from tests.orchestrator.registry.builders import read_rows


def test_a_token_is_found_by_its_secret_and_stored_as_a_digest(database: Database):
    with database.write() as session:
        token, secret = tokens.issue(session, "ci", "submitter", project="lab")
    with database.read() as session:
        assert tokens.find_bearer(session, secret) == token
    assert (token.scope, token.project, token.expires_at) == ("submitter", "lab", None)
    assert secret not in str(read_rows(database, "tokens"))
    assert len(secret) > 45


def test_tokens_are_unique(database: Database):
    with database.write() as session:
        secret = {tokens.issue(session, "ci", "viewer")[1] for _ in range(20)}
    assert len(secret) == 20


@pytest.mark.parametrize(
    "secret",
    ["", "slora_", "slora_x", "' OR 1=1 --", "slora_" + "x" * 5000, "slora_\x00", "slora_é"],
    ids=ascii,
)
def test_another_secret_finds_no_token(secret: str, database: Database):
    with database.write() as session:
        tokens.issue(session, "ci", "admin")
        assert tokens.find_bearer(session, secret) is None


def test_a_token_expires_by_the_clock_of_the_database(database: Database):
    with database.write() as session:
        _, secret = tokens.issue(session, "ci", "viewer", seconds=60)
    with database.write() as session:
        assert tokens.find_bearer(session, secret) is not None
        session.execute(text("UPDATE tokens SET expires_at = expires_at - 61"))
    with database.read() as session:
        assert tokens.find_bearer(session, secret) is None


def test_a_revoked_token_is_not_found_and_stays_listed(database: Database):
    with database.write() as session:
        token, secret = tokens.issue(session, "ci", "admin")
        other, others_words = tokens.issue(session, "cd", "viewer")
        revoked = tokens.revoke(session, token.id)
        assert tokens.revoke(session, token.id) == revoked
    with database.read() as session:
        assert tokens.find_bearer(session, secret) is None
        assert tokens.find_bearer(session, others_words) == other
        assert {listed.id for listed in tokens.list_tokens(session)} == {token.id, other.id}


def test_an_invalid_scope_or_token_is_reported(database: Database):
    with database.write() as session:
        with pytest.raises(InputError, match="Use viewer, submitter, admin"):
            tokens.issue(session, "ci", "root")
        with pytest.raises(InputError, match="label"):
            tokens.issue(session, "a b", "admin")
        with pytest.raises(UnknownItem, match="token 'none'"):
            tokens.revoke(session, "none")
