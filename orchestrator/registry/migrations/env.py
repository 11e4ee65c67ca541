"""Run a migration on the given connection, inside the transaction of the caller."""

from __future__ import annotations

from alembic import context

from orchestrator.registry.tables import TableBase

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=TableBase.metadata,
    # SQLite can alter little of a table; Alembic recreates it and copies the rows.
    render_as_batch=True,
)
# The transaction is the caller's, and includes the DDL on SQLite.
context.run_migrations()
