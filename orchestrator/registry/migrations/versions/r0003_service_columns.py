"""Add the columns and the table of the service: clusters, limits, stop requests, idempotency keys.

Existing schedules become retrainings on the default cluster.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

Columns = tuple[sa.Column[Any], ...]
NAME, RUN, WORD = sa.String(63), sa.String(128), sa.String(32)


def upgrade() -> None:
    """Add the columns and the table."""
    for table, columns in _list_new_columns():
        for column in columns:
            op.add_column(table, column)
    op.create_index("ix_firings_run", "firings", ["run"])
    op.create_table(
        "requests",
        sa.Column("project", NAME, nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("run", RUN, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("project", "key", name="pk_requests"),
        sa.ForeignKeyConstraint(
            ["project"], ["projects.name"], name="fk_requests_project", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_requests_run", ondelete="CASCADE"),
    )


def downgrade() -> None:
    """Drop the columns and the table."""
    op.drop_table("requests")
    op.drop_index("ix_firings_run", "firings")
    for table, columns in reversed(_list_new_columns()):
        for column in reversed(columns):
            op.drop_column(table, column.name)


def _list_new_columns() -> tuple[tuple[str, Columns], ...]:
    """Make new columns for each call: a column belongs to the table it was added to."""
    runs: Columns = (
        sa.Column("cluster", NAME, nullable=False, server_default="default"),
        sa.Column("tokens", sa.BigInteger()),
        sa.Column("stop", WORD),
        sa.Column("not_before", sa.Double()),
        sa.Column("wait_reason", sa.Text(), nullable=False, server_default=""),
    )
    attempts: Columns = (sa.Column("acknowledged_at", sa.Double()),)
    schedules: Columns = (
        sa.Column("kind", WORD, nullable=False, server_default="retrain"),
        sa.Column("only_new_data", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("data_fingerprint", sa.String(64)),
        sa.Column("cluster", NAME, nullable=False, server_default="default"),
        sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
    )
    return (("runs", runs), ("attempts", attempts), ("schedules", schedules))
