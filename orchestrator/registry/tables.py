"""The tables. Times are seconds since 1970 by the database's clock; `revision` guards updates.

Rows that can be rebuilt from the store (runs, adapters, searches) do not reference rows that only
the registry knows (leases, schedules, tokens); references in the other direction are allowed.
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
"""Every constraint has a name, because a migration can only drop a constraint by its name."""

NAME, RUN, WORD, LABEL = String(63), String(128), String(32), String(4096)
NUMBER = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite only auto-increments columns whose type is exactly INTEGER."""

SCOPES = ("viewer", "submitter", "admin")


def quote_values(values: Any) -> str:
    """Quote constant values for an IN clause of a constraint."""
    return ", ".join(f"'{value}'" for value in sorted(values))


class TableBase(DeclarativeBase):
    """Base class of all tables."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar = {float: Double(), str: Text(), dict[str, Any]: JSON()}


class ProjectRow(TableBase):
    __tablename__ = "projects"

    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    max_runs: Mapped[int | None]
    """Runs at once; null means unlimited."""
    max_workers: Mapped[int | None]
    max_tokens_a_day: Mapped[int | None] = mapped_column(BigInteger)
    max_queued: Mapped[int | None]
    """Runs that have not ended."""
    max_schedules: Mapped[int | None]
    max_cpus: Mapped[int | None] = mapped_column(BigInteger)
    max_gpus: Mapped[int | None] = mapped_column(BigInteger)
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_priority: Mapped[int | None]
    places: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """Prefixes of paths and URLs that data and models may lie under; null means anywhere."""
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """Models beside those in its places: hub ids, folders, URLs; null means any."""
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
        # The list queries: by project, by status, or all, newest first.
        Index(None, "project", "created_at", "id"),
        Index(None, "status", "priority", "created_at"),
        Index(None, "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(RUN, primary_key=True)
    project: Mapped[str] = mapped_column(NAME, ForeignKey("projects.name"))
    kind: Mapped[str] = mapped_column(WORD)
    """A key of jobs.spec.kinds.KINDS."""
    name: Mapped[str] = mapped_column(NAME)
    """Name of the adapter that the run makes."""
    store: Mapped[str] = mapped_column(LABEL)
    """URL of the store that holds the run's files, including its spec."""
    spec_sha256: Mapped[str | None] = mapped_column(String(64))
    workers: Mapped[int]
    priority: Mapped[int]
    status: Mapped[str] = mapped_column(WORD)
    reason: Mapped[str | None] = mapped_column(WORD)
    detail: Mapped[str]
    """The reason in words; untrusted text."""
    attempt: Mapped[int]
    """Number of the newest attempt, which fences all earlier ones; 0 before the first."""
    search: Mapped[str | None] = mapped_column(RUN, index=True)
    """Id of the search, if the run is one of its trials."""
    cluster: Mapped[str] = mapped_column(NAME, server_default="default")
    """Name of the cluster that it is submitted to."""
    tokens: Mapped[int | None] = mapped_column(BigInteger)
    """The most tokens that it can train on, if the spec tells."""
    stop: Mapped[str | None] = mapped_column(WORD)
    """Reason of the request to stop it, if there is one."""
    not_before: Mapped[float | None]
    """Earliest time of the next attempt."""
    wait_reason: Mapped[str] = mapped_column(server_default="")
    """Why it is not submitted yet, in words."""
    origin: Mapped[str] = mapped_column(WORD)
    """Who wrote its status last: `registry` (the control plane) or `store` (a rebuild)."""
    cpus: Mapped[int] = mapped_column(BigInteger, server_default="0")
    gpus: Mapped[int] = mapped_column(BigInteger, server_default="0")
    by_token: Mapped[str | None] = mapped_column(WORD)
    """Id of the token that submitted it; null for a run of a rebuild."""
    by_label: Mapped[str | None] = mapped_column(NAME)
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
    """Id of the job: the run's id and this number, so that a repeated submission is safe."""
    cluster: Mapped[str] = mapped_column(NAME)
    status: Mapped[str] = mapped_column(WORD)
    reason: Mapped[str | None] = mapped_column(WORD)
    created_at: Mapped[float]
    ended_at: Mapped[float | None]
    acknowledged_at: Mapped[float | None]
    """When the cluster first reported the job; until then the submission may be lost."""


class EventRow(TableBase):
    """An event of a run.

    `position` counts from 1 without gaps within a run and origin, so a reader that resumes after
    the last one misses none. With origin `registry` it is the revision that the event made; with
    origin `store` it counts the recorded events of the run's journal.
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
    """A committed version. It can outlive its run, so `run` is not a foreign key."""

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
    """The version that a bare name resolves to: the store's `current`, as it was last read."""

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
    """Goal and progress of a search; the search is also a run with the same id."""

    __tablename__ = "searches"

    run: Mapped[str] = mapped_column(
        RUN, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
    )
    metric: Mapped[str] = mapped_column(WORD)
    direction: Mapped[str] = mapped_column(WORD)
    trials: Mapped[dict[str, Any]]
    """Number of trials by status."""
    best_run: Mapped[str | None] = mapped_column(RUN)
    best_metric: Mapped[float | None]
    adapter: Mapped[str | None] = mapped_column(LABEL)


class LeaseRow(TableBase):
    """The holder of a lease and its expiry. The row outlives the lease: `fence` only grows."""

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
    """The spec that each firing submits, as plain values."""
    next_at: Mapped[float | None]
    created_at: Mapped[float]
    revision: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(WORD, server_default="retrain")
    only_new_data: Mapped[bool] = mapped_column(server_default=false())
    data_fingerprint: Mapped[str | None] = mapped_column(String(64))
    """Fingerprint of the data at its last firing."""
    cluster: Mapped[str] = mapped_column(NAME, server_default="default")
    priority: Mapped[int] = mapped_column(server_default="0")
    by_token: Mapped[str | None] = mapped_column(WORD)
    """Id of the token that made it."""
    by_label: Mapped[str | None] = mapped_column(NAME)


class FiringRow(TableBase):
    """A due time of a schedule. The primary key guarantees that it fires at most once."""

    __tablename__ = "firings"

    schedule: Mapped[int] = mapped_column(
        NUMBER, ForeignKey("schedules.id", ondelete="CASCADE"), primary_key=True
    )
    due_at: Mapped[float] = mapped_column(primary_key=True)
    fired_at: Mapped[float]
    outcome: Mapped[str] = mapped_column(WORD)
    """A FiringOutcome."""
    run: Mapped[str | None] = mapped_column(
        RUN, ForeignKey("runs.id", ondelete="SET NULL"), index=True
    )


class RequestRow(TableBase):
    """An idempotency key: a repeated submission with the same key returns the same run."""

    __tablename__ = "requests"

    project: Mapped[str] = mapped_column(
        NAME, ForeignKey("projects.name", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(RUN, primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    """Digest of the submission; the same key with another digest is an error."""
    run: Mapped[str] = mapped_column(RUN, ForeignKey("runs.id", ondelete="CASCADE"))
    created_at: Mapped[float]


class TokenRow(TableBase):
    """A bearer token. Only its digest is stored; the secret is shown once."""

    __tablename__ = "tokens"
    __table_args__ = (CheckConstraint(f"scope IN ({quote_values(SCOPES)})", name="scope"),)

    id: Mapped[str] = mapped_column(WORD, primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    label: Mapped[str] = mapped_column(NAME)
    scope: Mapped[str] = mapped_column(WORD)
    project: Mapped[str | None] = mapped_column(
        NAME, ForeignKey("projects.name", ondelete="CASCADE"), index=True
    )
    """Null means all projects."""
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class InstanceRow(TableBase):
    """The identity of the registry, drawn once: jobs of another registry are never stopped."""

    __tablename__ = "instance"

    id: Mapped[str] = mapped_column(WORD, primary_key=True)
    created_at: Mapped[float]


class AdapterNameRow(TableBase):
    """The project that owns the name of an adapter in a store: the first that wrote it."""

    __tablename__ = "adapter_names"

    store: Mapped[str] = mapped_column(LABEL, primary_key=True)
    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    project: Mapped[str] = mapped_column(NAME, ForeignKey("projects.name"))
    created_at: Mapped[float]


class QuarantineRow(TableBase):
    """An item that no loop looks at, because looking at it ended the process."""

    __tablename__ = "quarantine"

    kind: Mapped[str] = mapped_column(WORD, primary_key=True)
    """run, schedule or job."""
    item: Mapped[str] = mapped_column(String(160), primary_key=True)
    project: Mapped[str | None] = mapped_column(NAME)
    reason: Mapped[str]
    error_id: Mapped[str | None] = mapped_column(WORD)
    by_label: Mapped[str | None] = mapped_column(NAME)
    """Label of the token that added it; null if the service did."""
    created_at: Mapped[float]


class LookRow(TableBase):
    """What a loop is looking at: written before, deleted after, and found after a crash."""

    __tablename__ = "looks"

    loop: Mapped[str] = mapped_column(RUN, primary_key=True)
    kind: Mapped[str] = mapped_column(WORD)
    item: Mapped[str] = mapped_column(String(160))
    project: Mapped[str | None] = mapped_column(NAME)
    holder: Mapped[str] = mapped_column(RUN)
    started_at: Mapped[float]
    deaths: Mapped[int] = mapped_column(server_default="0")
    """Processes in a row that ended while they looked at this item, before this look."""


class AuditRow(TableBase):
    """A change and who made it, written in its transaction. Only retention deletes it."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "project", "id"), Index(None, "at"))

    id: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    at: Mapped[float]
    request_id: Mapped[str | None] = mapped_column(WORD)
    token: Mapped[str | None] = mapped_column(WORD)
    """Id of the token; null if the service made the change itself."""
    label: Mapped[str | None] = mapped_column(NAME)
    project: Mapped[str | None] = mapped_column(NAME)
    action: Mapped[str] = mapped_column(WORD)
    object_kind: Mapped[str] = mapped_column(WORD)
    object: Mapped[str] = mapped_column(LABEL)
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    address: Mapped[str | None] = mapped_column(String(63))
    """Address of the client."""
