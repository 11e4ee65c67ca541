"""Projects as text: their limits in a table of 80 columns, and what one of them uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.cli.console import format_size, show_pairs, show_table
from orchestrator.schemas.admin import ProjectDetailResponse, ProjectResponse

ANY = "any"


@dataclass(frozen=True)
class LimitText:
    """How a limit is shown."""

    key: str
    """Its key in a project."""
    used_key: str | None
    """The key of what counts towards it."""
    name: str
    """Its name beside the usage."""
    phrase: str
    """The limit in a list of limits: `{}` is the number."""
    format: Callable[[int], str] = "{:,}".format


LIMITS = (
    LimitText("max_runs", "runs", "runs at once", "{} runs"),
    LimitText("max_queued", "queued", "runs not ended", "{} queued"),
    LimitText("max_workers", "workers", "workers at once", "{} workers"),
    LimitText("max_cpus", "cpus", "CPUs at once", "{} CPUs"),
    LimitText("max_gpus", "gpus", "GPUs at once", "{} GPUs"),
    LimitText("max_tokens_a_day", "tokens", "tokens in 24 hours", "{} tokens a day"),
    LimitText("max_stored_bytes", "stored_bytes", "stored adapters", "{} stored", format_size),
    LimitText("max_schedules", "schedules", "schedules", "{} schedules"),
    LimitText("max_priority", None, "highest priority", "priority up to {}"),
)


def show_projects(projects: list[ProjectResponse]) -> None:
    """Print the projects and those limits that they have."""
    rows = [(project.name, format_limits(project)) for project in projects]
    show_table(rows, headers=("project", "limits"), folded=("limits",))


def show_project(project: ProjectDetailResponse) -> None:
    """Print what a project uses beside its limits, and what its runs may read."""
    show_pairs(
        [
            ("project", project.name),
            ("places", _format_list(project.places)),
            ("models", _format_list(project.models)),
        ]
    )
    rows = [
        (
            limit.name,
            "" if limit.used_key is None else limit.format(getattr(project.usage, limit.used_key)),
            _format_limit(project, limit) or "no limit",
        )
        for limit in LIMITS
    ]
    show_table(rows, headers=("", "used", "limit"), right=("used", "limit"))


def format_limits(project: ProjectResponse) -> str:
    """Format the limits of a project as a list."""
    texts = [
        limit.phrase.format(text) for limit in LIMITS if (text := _format_limit(project, limit))
    ]
    return ", ".join(texts) or "no limits"


def _format_limit(project: ProjectResponse, limit: LimitText) -> str:
    value: int | None = getattr(project, limit.key)
    return "" if value is None else limit.format(value)


def _format_list(items: Sequence[str] | None) -> str:
    return ANY if items is None else " ".join(items) or "none"
