"""What Alembic runs for each migration: on the connection and in the transaction it was given."""

from __future__ import annotations

from alembic import context

from orchestrator.registry.tables import TableBase

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=TableBase.metadata,
    # SQLite can't alter much of a table; Alembic makes it anew and moves the rows.
    render_as_batch=True,
)
# No transaction of Alembic's: it is the caller's, in which SQLite's DDL is too.
context.run_migrations()
