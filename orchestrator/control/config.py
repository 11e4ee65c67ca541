"""What a service is told: its database, the stores that runs may use, the clusters by name.

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
    """What goes on a command line of a cluster, so nothing in it may mean anything to a shell."""
    if not is_safe_argument(text):
        raise ValueError(f"{text[:80]!a} holds more than letters, digits and . _ / : + -")
    return text


ShellWord = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_check_word)]


class ClusterConfig(StrictModel):
    """One Ray cluster."""

    address: str = Field(pattern=r"^https?://[A-Za-z0-9._:\[\]-]+(?:/[A-Za-z0-9._/-]*)?$")
    """Of the head's dashboard, where the Jobs API is."""
    token_file: str | None = None
    """The cluster's token; without it none is sent."""
    code: str = "image"
    """image: the product is installed there; else a checkout, whose packages travel."""
    python: ShellWord = "python"
    """The interpreter on the cluster."""
    max_runs: int = Field(default=50, ge=1)
    """Jobs of ours at once; Ray itself lets those wait that don't fit."""
    shared_filesystem: bool = False
    """Whether the cluster sees the files that this service sees, so that a spec can be checked
    whole before it is submitted."""
    autoscaling: bool = False
    """Whether it adds nodes when asked: its size now then says nothing about what fits."""


class ServiceConfig(StrictModel):
    """The whole configuration."""

    name: Name = "slora"
    """Which service a job on a cluster belongs to, where several share one."""
    database: str = DEFAULT_DATABASE
    stores: tuple[ShellWord, ...] = Field(default=(DEFAULT_STORE,), min_length=1, strict=False)
    """Where runs may keep what they make; the first is for those that name none."""
    clusters: dict[Name, ClusterConfig] = Field(min_length=1, max_length=100)
    max_attempts: int = Field(default=3, ge=1, le=100)
    """How often a run is submitted before a lost job is the end of it."""
    poll_interval_s: float = Field(default=2.0, ge=0.05, le=600)
    """Between two looks at a cluster."""
    lease_s: float = Field(default=30.0, ge=1, le=3600)
    """Until another service takes over from one that died; longer than a look takes."""


def load_config(path: Path, database: str | None = None) -> ServiceConfig:
    """The file, checked, its folders made whole. Raises InputError with all its faults."""
    return parse_config(read_yaml_file(path), database)


def parse_config(raw: dict[str, Any], database: str | None = None) -> ServiceConfig:
    """The same from plain values; `database` replaces the one that is written there."""
    if database is not None:
        raw = {**raw, "database": database}
    try:
        config = ServiceConfig.model_validate(raw)
    except ValidationError as validation:
        faults = [
            Fault(
                ".".join(map(str, error["loc"])) or "config", error["msg"][:200], "See operate.md."
            )
            for error in validation.errors(include_url=False, include_input=False)
        ]
        raise InputError(faults) from None
    stores = tuple(map(normalize_store_url, config.stores))
    if invalid := [store for store in stores if not is_safe_argument(store)]:
        problem = f"{invalid[0]!a} holds more than letters, digits and . _ / : + -"
        raise InputError([Fault("stores", problem, "Name a store elsewhere.")])
    return config.model_copy(update={"stores": stores})


def normalize_store_url(url: str) -> str:
    """The store's URL as it is compared and kept: whole, without a slash at its end."""
    return open_store(url).url("").rstrip("/")


def get_token_path(cluster: ClusterConfig) -> Path | None:
    """Where the cluster's token lies."""
    if cluster.token_file is None:
        return None
    return Path(os.path.expanduser(cluster.token_file))
