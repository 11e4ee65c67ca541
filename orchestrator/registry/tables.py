"""The tables. Times are seconds since 1970 by the database's clock; `revision` guards updates.

What the store could give again (runs, adapters, searches) names no row that only lives here, so
the registry can be rebuilt from it; what only lives here (leases, schedules, tokens) may name it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from orchestrator.registry.lifecycle import REASONS, Reason, Status

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
"""Constraints with names of their own: a migration that can't name one can't drop it."""

NAME, RUN, WORD, LABEL = String(63), String(128), String(32), String(4096)
NUMBER = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite counts up by itself in columns of exactly the type INTEGER."""

SCOPES = ("viewer", "submitter", "admin")


def quote_values(values: Any) -> str:
    """Words of ours for an IN of a constraint."""
    return ", ".join(f"'{value}'" for value in sorted(values))


class TableBase(DeclarativeBase):
    """The base of all tables."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar = {float: Double(), str: Text(), dict[str, Any]: JSON()}


class ProjectRow(TableBase):
    __tablename__ = "projects"

    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    max_runs: Mapped[int | None]
    """At once; null where there is no limit."""
    max_workers: Mapped[int | None]
    max_tokens_a_day: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[float]
    revision: Mapped[int] = mapped_column(BigInteger)


class RunRow(TableBase):
    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint(f"status IN ({quote_values(Status)})", name="status"),
        CheckConstraint(f"reason IN ({quote_values(Reason)})", name="reason"),
        CheckConstraint(
            f"(status IN ({quote_values(REASONS)})) = (reason IS NOT NULL)",
            name="ends_with_a_reason",
        ),
        # Lists: of a project, by status or all, the newest first.
        Index(None, "project", "created_at", "id"),
        Index(None, "status", "priority", "created_at"),
        Index(None, "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(RUN, primary_key=True)
    project: Mapped[str] = mapped_column(NAME, ForeignKey("projects.name"))
    kind: Mapped[str] = mapped_column(WORD)
    """finetune, search, retrain, federate: the job's module."""
    name: Mapped[str] = mapped_column(NAME)
    """Of the adapter that comes out."""
    store: Mapped[str] = mapped_column(LABEL)
    """Where the run's papers lie, its spec among them."""
    spec_sha256: Mapped[str | None] = mapped_column(String(64))
    workers: Mapped[int]
    priority: Mapped[int]
    status: Mapped[str] = mapped_column(WORD)
    reason: Mapped[str | None] = mapped_column(WORD)
    detail: Mapped[str]
    """The reason in words; others wrote them."""
    attempt: Mapped[int]
    """The number of the newest attempt, which fences all before; 0 before the first."""
    search: Mapped[str | None] = mapped_column(RUN, index=True)
    """The search that the run is a trial of."""
    cluster: Mapped[str] = mapped_column(NAME, server_default="default")
    """Where it is wanted."""
    tokens: Mapped[int | None] = mapped_column(BigInteger)
    """The most that it may train, where the spec tells."""
    stop: Mapped[str | None] = mapped_column(WORD)
    """The reason to stop it, once somebody asked."""
    not_before: Mapped[float | None]
    """When another attempt may be made."""
    wait_reason: Mapped[str] = mapped_column(server_default="")
    """Why it still waits, in words."""
    origin: Mapped[str] = mapped_column(WORD)
    """Who last said what its status is: `registry`, or `store` where it was read from there."""
    created_at: Mapped[float]
    updated_at: Mapped[float]
    revision: Mapped[int] = mapped_column(BigInteger)


class AttemptRow(TableBase):
    __tablename__ = "attempts"

    run: Mapped[str] = mapped_column(
        RUN, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    submission: Mapped[str] = mapped_column(String(160), unique=True)
    """The job's id on its cluster: the run's id and this number, so that asking again is safe."""
    cluster: Mapped[str] = mapped_column(NAME)
    status: Mapped[str] = mapped_column(WORD)
    reason: Mapped[str | None] = mapped_column(WORD)
    created_at: Mapped[float]
    ended_at: Mapped[float | None]
    acknowledged_at: Mapped[float | None]
    """When the cluster first said that it knows the job: until then it may never have arrived."""


class EventRow(TableBase):
    """One thing that happened to a run.

    `position` counts from 1 without a gap within a run and an origin: a reader that goes on behind
    the last one misses none. Of `registry` it is the revision that the event made, of `store` its
    place among those of the run's journal that are kept.
    """

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("run", "origin", "position"),)

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    run: Mapped[str] = mapped_column(RUN, ForeignKey("runs.id", ondelete="CASCADE"))
    origin: Mapped[str] = mapped_column(WORD)
    position: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[float]
    kind: Mapped[str] = mapped_column(WORD)
    attempt: Mapped[int]
    body: Mapped[dict[str, Any]]


class AdapterRow(TableBase):
    """A committed version. It outlives its run's papers, so it names the run and needs no row."""

    __tablename__ = "adapters"

    store: Mapped[str] = mapped_column(LABEL, primary_key=True)
    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(NAME, ForeignKey("projects.name"), index=True)
    run: Mapped[str] = mapped_column(RUN, index=True)
    attempt: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(WORD)
    parent: Mapped[str | None] = mapped_column(LABEL)
    search: Mapped[str | None] = mapped_column(RUN)
    base_digest: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)
    committed_at: Mapped[float]
    manifest: Mapped[dict[str, Any]]


class PointerRow(TableBase):
    """What a bare name means: the store's `current`, as it was last seen."""

    __tablename__ = "pointers"
    __table_args__ = (
        ForeignKeyConstraint(
            ["store", "name", "version"],
            ["adapters.store", "adapters.name", "adapters.version"],
            ondelete="CASCADE",
        ),
    )

    store: Mapped[str] = mapped_column(LABEL, primary_key=True)
    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    version: Mapped[int]
    move: Mapped[int] = mapped_column(BigInteger)


class SearchRow(TableBase):
    """What a search looks for and has found; it is a run too, under the same id."""

    __tablename__ = "searches"

    run: Mapped[str] = mapped_column(
        RUN, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
    )
    metric: Mapped[str] = mapped_column(WORD)
    direction: Mapped[str] = mapped_column(WORD)
    trials: Mapped[dict[str, Any]]
    """How many of each status."""
    best_run: Mapped[str | None] = mapped_column(RUN)
    best_metric: Mapped[float | None]
    adapter: Mapped[str | None] = mapped_column(LABEL)


class LeaseRow(TableBase):
    """Who may act, and until when. The row stays when it lapses: its number only ever grows."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(RUN, primary_key=True)
    holder: Mapped[str] = mapped_column(RUN)
    fence: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[float]


class ScheduleRow(TableBase):
    __tablename__ = "schedules"
    __table_args__ = (
        UniqueConstraint("project", "name"),
        CheckConstraint("concurrency IN ('queue', 'replace', 'skip')", name="concurrency"),
        CheckConstraint("missed IN ('all', 'latest', 'skip')", name="missed"),
        Index(None, "paused", "next_at"),
    )

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    project: Mapped[str] = mapped_column(NAME, ForeignKey("projects.name"))
    name: Mapped[str] = mapped_column(NAME)
    cron: Mapped[str] = mapped_column(String(200))
    time_zone: Mapped[str] = mapped_column(String(63))
    concurrency: Mapped[str] = mapped_column(WORD)
    missed: Mapped[str] = mapped_column(WORD)
    jitter_s: Mapped[float]
    paused: Mapped[bool]
    spec: Mapped[dict[str, Any]]
    """What a firing asks for: the retraining's spec as plain values."""
    next_at: Mapped[float | None]
    created_at: Mapped[float]
    revision: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(WORD, server_default="retrain")
    only_new_data: Mapped[bool] = mapped_column(server_default=false())
    data_fingerprint: Mapped[str | None] = mapped_column(String(64))
    """The digest of where the data lay when it last fired."""
    cluster: Mapped[str] = mapped_column(NAME, server_default="default")
    priority: Mapped[int] = mapped_column(server_default="0")


class FiringRow(TableBase):
    """One moment of a schedule. Its key is the promise: the same moment can't be claimed twice."""

    __tablename__ = "firings"

    schedule: Mapped[int] = mapped_column(
        NUMBER, ForeignKey("schedules.id", ondelete="CASCADE"), primary_key=True
    )
    due_at: Mapped[float] = mapped_column(primary_key=True)
    fired_at: Mapped[float]
    outcome: Mapped[str] = mapped_column(WORD)
    """run, queued, skipped, no_new_data, refused."""
    run: Mapped[str | None] = mapped_column(
        RUN, ForeignKey("runs.id", ondelete="SET NULL"), index=True
    )


class RequestRow(TableBase):
    """A submission that its sender may repeat: the same key is the same run."""

    __tablename__ = "requests"

    project: Mapped[str] = mapped_column(
        NAME, ForeignKey("projects.name", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(RUN, primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    """Of what was asked: the same key for something else is an error."""
    run: Mapped[str] = mapped_column(RUN, ForeignKey("runs.id", ondelete="CASCADE"))
    created_at: Mapped[float]


class TokenRow(TableBase):
    """A bearer's token, as its digest alone: the token itself is shown once and kept nowhere."""

    __tablename__ = "tokens"
    __table_args__ = (CheckConstraint(f"scope IN ({quote_values(SCOPES)})", name="scope"),)

    id: Mapped[str] = mapped_column(WORD, primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    label: Mapped[str] = mapped_column(NAME)
    scope: Mapped[str] = mapped_column(WORD)
    project: Mapped[str | None] = mapped_column(
        NAME, ForeignKey("projects.name", ondelete="CASCADE"), index=True
    )
    """Null: all projects."""
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
