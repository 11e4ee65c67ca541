"""The configuration of a service: its database, the stores that runs may use, and its clusters.

Read once, at the start. Secrets are not in it: tokens lie in files, a database's password in
SLORA_DATABASE or in what libpq reads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from jobs.errors import Fault, InputError
from jobs.spec.strict_model import StrictModel
from jobs.spec.yaml_text import read_yaml_file
from jobs.store.adapters.manifest import Name
from jobs.store.open import open_store
from orchestrator.cluster.entrypoint import is_safe_argument

DEFAULT_DATABASE = "sqlite:///.cache/registry.db"
DEFAULT_STORE = "file://.cache/store"


def _check_word(text: str) -> str:
    """Return text for a command line. Raise ValueError if a shell would interpret it."""
    if not is_safe_argument(text):
        raise ValueError(f"{text[:80]!a} may only contain letters, digits and . _ / : + -")
    return text


ShellWord = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_check_word)]


class ClusterConfig(StrictModel):
    """A Ray cluster."""

    address: str = Field(pattern=r"^https?://[A-Za-z0-9._:\[\]-]+(?:/[A-Za-z0-9._/-]*)?$")
    """URL of the head's dashboard, which serves the Jobs API."""
    token_file: str | None = None
    """File with the cluster's token; without it no token is sent."""
    code: str = "image"
    """`image` if slora is installed on the cluster; else a checkout whose packages are uploaded."""
    python: ShellWord = "python"
    """Python interpreter on the cluster."""
    max_runs: int = Field(default=50, ge=1)
    """Jobs of this service at once; Ray queues those that do not fit."""
    shared_filesystem: bool = False
    """Whether the cluster sees the same files as the service, so that a run's plan can be checked
    before it is submitted."""
    autoscaling: bool = False
    """Whether it adds nodes on demand, so that its current size does not limit a run."""

    @property
    def token_path(self) -> Path | None:
        """Return the path of the cluster's token."""
        return Path(os.path.expanduser(self.token_file)) if self.token_file is not None else None


class ServiceConfig(StrictModel):
    """The configuration of a service."""

    name: Name = "slora"
    """Marks the jobs of this service on a cluster that several services share."""
    database: str = DEFAULT_DATABASE
    stores: tuple[ShellWord, ...] = Field(default=(DEFAULT_STORE,), min_length=1, strict=False)
    """Stores that runs may use; the first is the default."""
    clusters: dict[Name, ClusterConfig] = Field(min_length=1, max_length=100)
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Attempts of a run before a lost job fails it."""
    poll_interval_s: float = Field(default=2.0, ge=0.05, le=600)
    """Seconds between two polls of a cluster."""
    lease_s: float = Field(default=30.0, ge=1, le=3600)
    """Seconds until another service takes over from one that died; longer than a poll takes."""


def load_config(path: Path, database: str | None = None) -> ServiceConfig:
    """Load a file and make its store URLs absolute. Raise InputError with all faults."""
    return parse_config(read_yaml_file(path), database)


def parse_config(raw: dict[str, Any], database: str | None = None) -> ServiceConfig:
    """Validate plain values; `database` replaces their database. Raise InputError."""
    if database is not None:
        raw = {**raw, "database": database}
    try:
        config = ServiceConfig.model_validate(raw)
    except ValidationError as validation:
        faults = [
            Fault(
                ".".join(map(str, error["loc"])) or "config",
                error["msg"][:200],
                "See docs/guides/operation.md.",
            )
            for error in validation.errors(include_url=False, include_input=False)
        ]
        raise InputError(faults) from None
    stores = tuple(map(normalize_store_url, config.stores))
    if invalid := [store for store in stores if not is_safe_argument(store)]:
        problem = f"{invalid[0]!a} may only contain letters, digits and . _ / : + -"
        raise InputError([Fault("stores", problem, "Use a store at another path.")])
    return config.model_copy(update={"stores": stores})


def normalize_store_url(url: str) -> str:
    """Return the absolute URL of a store without a trailing slash."""
    return open_store(url).url("").rstrip("/")
