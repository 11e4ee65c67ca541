"""What Alembic runs for each migration: on the connection and in the transaction it was given."""

from __future__ import annotations

from alembic import context

from orchestrator.registry.models import Table

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Table.metadata,
    # SQLite can't alter much of a table; Alembic makes it anew and moves the rows.
    render_as_batch=True,
    # Ours: SQLite's DDL is in our transaction, because we begin it ourselves.
    transactional_ddl=True,
)
context.run_migrations()
