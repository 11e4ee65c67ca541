"""Create the tables that only the registry knows: leases, schedules, firings and tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NAME, RUN, WORD = sa.String(63), sa.String(128), sa.String(32)
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables."""
    _leases()
    _schedules()
    _firings()
    _tokens()


def downgrade() -> None:
    """Drop the tables, referencing ones first."""
    for table in ("tokens", "firings", "schedules", "leases"):
        op.drop_table(table)


def _leases() -> None:
    op.create_table(
        "leases",
        sa.Column("name", RUN, nullable=False),
        sa.Column("holder", RUN, nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )


def _schedules() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("project", NAME, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("cron", sa.String(200), nullable=False),
        sa.Column("time_zone", sa.String(63), nullable=False),
        sa.Column("concurrency", WORD, nullable=False),
        sa.Column("missed", WORD, nullable=False),
        sa.Column("jitter_s", sa.Double(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("next_at", sa.Double()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_schedules"),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_schedules_project"),
        sa.UniqueConstraint("project", "name", name="uq_schedules_project_name"),
        sa.CheckConstraint(
            "concurrency IN ('queue', 'replace', 'skip')", name=op.f("ck_schedules_concurrency")
        ),
        sa.CheckConstraint("missed IN ('all', 'latest', 'skip')", name=op.f("ck_schedules_missed")),
    )
    op.create_index("ix_schedules_paused_next_at", "schedules", ["paused", "next_at"])


def _firings() -> None:
    op.create_table(
        "firings",
        sa.Column("schedule", NUMBER, nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("fired_at", sa.Double(), nullable=False),
        sa.Column("outcome", WORD, nullable=False),
        sa.Column("run", RUN),
        sa.PrimaryKeyConstraint("schedule", "due_at", name="pk_firings"),
        sa.ForeignKeyConstraint(
            ["schedule"], ["schedules.id"], name="fk_firings_schedule", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_firings_run", ondelete="SET NULL"),
    )


def _tokens() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", WORD, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("label", NAME, nullable=False),
        sa.Column("scope", WORD, nullable=False),
        sa.Column("project", NAME),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double()),
        sa.Column("revoked_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.ForeignKeyConstraint(
            ["project"], ["projects.name"], name="fk_tokens_project", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("digest", name="uq_tokens_digest"),
        sa.CheckConstraint(
            "scope IN ('admin', 'submitter', 'viewer')", name=op.f("ck_tokens_scope")
        ),
    )
    op.create_index("ix_tokens_project", "tokens", ["project"])
