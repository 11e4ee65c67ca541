"""Add what makes a project a boundary: places, quotas, names, quarantine, audit, an instance id.

Existing projects other than `default` own no places until an admin sets them.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Columns = tuple[sa.Column[Any], ...]
NAME, RUN, WORD, LABEL = sa.String(63), sa.String(128), sa.String(32), sa.String(4096)
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
OLD_REASONS = (
    "'attempts', 'crashed', 'job_absent', 'outside', 'preempted', 'quota', 'refused', 'replaced', "
    "'unpublished', 'user'"
)
REASONS = (
    "'attempts', 'crashed', 'internal', 'job_absent', 'outside', 'preempted', 'quarantined', "
    "'quota', 'refused', 'replaced', 'unpublished', 'user'"
)
AUDIT_S = 30 * 86400
"""Seconds for which nobody deletes an entry of the audit log; retention is never shorter."""
REFUSED_CHANGE = "entries of the audit log are never changed, and are kept for 30 days"


def upgrade() -> None:
    """Add the columns and the tables."""
    for table, columns in _list_new_columns():
        for column in columns:
            op.add_column(table, column)
    op.execute("UPDATE projects SET places = '[]', models = '[]' WHERE name <> 'default'")
    _replace_reasons(REASONS)
    _instance()
    _adapter_names()
    _quarantine()
    _looks()
    _audit()
    _protect_audit()


def downgrade() -> None:
    """Drop the columns and the tables; runs that ended for a new reason have crashed."""
    for table in ("audit", "looks", "quarantine", "adapter_names", "instance"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_audit_change()")
    op.execute("UPDATE runs SET reason = 'crashed' WHERE reason IN ('internal', 'quarantined')")
    _replace_reasons(OLD_REASONS)
    for table, columns in reversed(_list_new_columns()):
        for column in reversed(columns):
            op.drop_column(table, column.name)


def _list_new_columns() -> tuple[tuple[str, Columns], ...]:
    """Make new columns for each call: a column belongs to the table it was added to."""
    projects: Columns = (
        sa.Column("max_queued", sa.Integer()),
        sa.Column("max_schedules", sa.Integer()),
        sa.Column("max_cpus", sa.BigInteger()),
        sa.Column("max_gpus", sa.BigInteger()),
        sa.Column("max_stored_bytes", sa.BigInteger()),
        sa.Column("max_priority", sa.Integer()),
        sa.Column("places", sa.JSON()),
        sa.Column("models", sa.JSON()),
    )
    runs: Columns = (
        sa.Column("cpus", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("gpus", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("by_token", WORD),
        sa.Column("by_label", NAME),
    )
    schedules: Columns = (sa.Column("by_token", WORD), sa.Column("by_label", NAME))
    return (("projects", projects), ("runs", runs), ("schedules", schedules))


def _replace_reasons(reasons: str) -> None:
    with op.batch_alter_table("runs") as runs:
        runs.drop_constraint(op.f("ck_runs_reason"), type_="check")
        runs.create_check_constraint(op.f("ck_runs_reason"), f"reason IN ({reasons})")


def _instance() -> None:
    instance = op.create_table(
        "instance",
        sa.Column("id", WORD, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_instance"),
    )
    op.bulk_insert(instance, [{"id": uuid.uuid4().hex, "created_at": time.time()}])


def _adapter_names() -> None:
    op.create_table(
        "adapter_names",
        sa.Column("store", LABEL, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("project", NAME, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("store", "name", name="pk_adapter_names"),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_adapter_names_project"),
    )
    op.execute(
        "INSERT INTO adapter_names (store, name, project, created_at) "
        "SELECT store, name, MIN(project), MIN(committed_at) FROM adapters GROUP BY store, name"
    )


def _quarantine() -> None:
    op.create_table(
        "quarantine",
        sa.Column("kind", WORD, nullable=False),
        sa.Column("item", sa.String(160), nullable=False),
        sa.Column("project", NAME),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("error_id", WORD),
        sa.Column("by_label", NAME),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "item", name="pk_quarantine"),
    )


def _looks() -> None:
    op.create_table(
        "looks",
        sa.Column("loop", RUN, nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("item", sa.String(160), nullable=False),
        sa.Column("project", NAME),
        sa.Column("holder", RUN, nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("deaths", sa.Integer(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("loop", name="pk_looks"),
    )


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("request_id", WORD),
        sa.Column("token", WORD),
        sa.Column("label", NAME),
        sa.Column("project", NAME),
        sa.Column("action", WORD, nullable=False),
        sa.Column("object_kind", WORD, nullable=False),
        sa.Column("object", LABEL, nullable=False),
        sa.Column("before", sa.JSON()),
        sa.Column("after", sa.JSON()),
        sa.Column("address", sa.String(63)),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_project_id", "audit", ["project", "id"])
    op.create_index("ix_audit_at", "audit", ["at"])


def _protect_audit() -> None:
    """Let the database itself refuse to change an entry, and to delete one before its time."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in _list_sqlite_triggers() if is_sqlite else _list_postgres_triggers():
        op.execute(statement)


def _list_sqlite_triggers() -> tuple[str, ...]:
    refuse = f"BEGIN SELECT RAISE(ABORT, '{REFUSED_CHANGE}'); END"
    is_young = f"OLD.at > (julianday('now') - 2440587.5) * 86400.0 - {AUDIT_S}"
    return (
        f"CREATE TRIGGER audit_update BEFORE UPDATE ON audit {refuse}",
        f"CREATE TRIGGER audit_delete BEFORE DELETE ON audit WHEN {is_young} {refuse}",
    )


def _list_postgres_triggers() -> tuple[str, ...]:
    refuse = "EXECUTE FUNCTION refuse_audit_change()"
    is_young = f"OLD.at > extract(epoch FROM clock_timestamp()) - {AUDIT_S}"
    return (
        "CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION '{REFUSED_CHANGE}' USING ERRCODE = 'integrity_constraint_violation'; "
        "END $$",
        f"CREATE TRIGGER audit_update BEFORE UPDATE ON audit FOR EACH ROW {refuse}",
        "CREATE TRIGGER audit_delete BEFORE DELETE ON audit "
        f"FOR EACH ROW WHEN ({is_young}) {refuse}",
        f"CREATE TRIGGER audit_truncate BEFORE TRUNCATE ON audit FOR EACH STATEMENT {refuse}",
    )
