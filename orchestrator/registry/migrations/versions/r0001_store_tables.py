"""Create the tables that can be rebuilt from the store, and projects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Not imported from tables.py: migrations never change, tables do.
NAME, RUN, WORD, LABEL = sa.String(63), sa.String(128), sa.String(32), sa.String(4096)
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
STATUSES = (
    "'done', 'failed', 'lost', 'planned', 'publishing', 'running', 'stopped', 'submitted'"
)  # fmt: skip
REASONS = (
    "'attempts', 'crashed', 'job_absent', 'outside', 'preempted', 'quota', 'refused', 'replaced', "
    "'unpublished', 'user'"
)
ENDS = "(status IN ('failed', 'lost', 'stopped')) = (reason IS NOT NULL)"


def upgrade() -> None:
    """Create the tables."""
    _projects()
    _runs()
    _attempts()
    _events()
    _adapters()
    _pointers()
    _searches()


def downgrade() -> None:
    """Drop the tables, referencing ones first."""
    for table in ("searches", "pointers", "adapters", "events", "attempts", "runs", "projects"):
        op.drop_table(table)


def _projects() -> None:
    op.create_table(
        "projects",
        sa.Column("name", NAME, nullable=False),
        sa.Column("max_runs", sa.Integer()),
        sa.Column("max_workers", sa.Integer()),
        sa.Column("max_tokens_a_day", sa.BigInteger()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_projects"),
    )


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", RUN, nullable=False),
        sa.Column("project", NAME, nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("store", LABEL, nullable=False),
        sa.Column("spec_sha256", sa.String(64)),
        sa.Column("workers", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("status", WORD, nullable=False),
        sa.Column("reason", WORD),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("search", RUN),
        sa.Column("origin", WORD, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_runs_project"),
        sa.CheckConstraint(f"status IN ({STATUSES})", name=op.f("ck_runs_status")),
        sa.CheckConstraint(f"reason IN ({REASONS})", name=op.f("ck_runs_reason")),
        sa.CheckConstraint(ENDS, name=op.f("ck_runs_ends_with_a_reason")),
    )
    op.create_index("ix_runs_project_created_at_id", "runs", ["project", "created_at", "id"])
    status = ["status", "priority", "created_at"]
    op.create_index("ix_runs_status_priority_created_at", "runs", status)
    op.create_index("ix_runs_created_at_id", "runs", ["created_at", "id"])
    op.create_index("ix_runs_search", "runs", ["search"])


def _attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("run", RUN, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("submission", sa.String(160), nullable=False),
        sa.Column("cluster", NAME, nullable=False),
        sa.Column("status", WORD, nullable=False),
        sa.Column("reason", WORD),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double()),
        sa.PrimaryKeyConstraint("run", "number", name="pk_attempts"),
        sa.ForeignKeyConstraint(
            ["run"], ["runs.id"], name="fk_attempts_run", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("submission", name="uq_attempts_submission"),
    )  # fmt: skip


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("run", RUN, nullable=False),
        sa.Column("origin", WORD, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_events_run", ondelete="CASCADE"),
        sa.UniqueConstraint("run", "origin", "position", name="uq_events_run_origin_position"),
    )


def _adapters() -> None:
    op.create_table(
        "adapters",
        sa.Column("store", LABEL, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("project", NAME, nullable=False),
        sa.Column("run", RUN, nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("parent", LABEL),
        sa.Column("search", RUN),
        sa.Column("base_digest", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("committed_at", sa.Double(), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("store", "name", "version", name="pk_adapters"),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_adapters_project"),
    )
    op.create_index("ix_adapters_project", "adapters", ["project"])
    op.create_index("ix_adapters_run", "adapters", ["run"])


def _pointers() -> None:
    columns = ["store", "name", "version"]
    op.create_table(
        "pointers",
        sa.Column("store", LABEL, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("move", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("store", "name", name="pk_pointers"),
        sa.ForeignKeyConstraint(
            columns,
            [f"adapters.{column}" for column in columns],
            name="fk_pointers_store_name_version",
            ondelete="CASCADE",
        ),
    )


def _searches() -> None:
    op.create_table(
        "searches",
        sa.Column("run", RUN, nullable=False),
        sa.Column("metric", WORD, nullable=False),
        sa.Column("direction", WORD, nullable=False),
        sa.Column("trials", sa.JSON(), nullable=False),
        sa.Column("best_run", RUN),
        sa.Column("best_metric", sa.Double()),
        sa.Column("adapter", LABEL),
        sa.PrimaryKeyConstraint("run", name="pk_searches"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_searches_run", ondelete="CASCADE"),
    )
