"""The configuration of a service: its database, the stores that runs may use, and its clusters.

Read once, at the start. Secrets are not in it: tokens, keys and the secrets of projects lie in
files that it names, a database's password in SLORA_DATABASE or in what libpq reads.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from jobs.errors import Fault, InputError
from jobs.spec.strict_model import StrictModel
from jobs.spec.yaml_text import read_yaml_file
from jobs.store.adapters.manifest import Name
from jobs.store.open import open_store
from jobs.train.pool.pool_identity import MAX_WARM_WORKERS
from orchestrator.cluster.entrypoint import is_safe_argument
from orchestrator.control.projects.project_config import ProjectConfig
from orchestrator.control.projects.run_tokens import JobsConfig
from orchestrator.control.retention.retention_config import RetentionConfig
from orchestrator.deployments.endpoint_config import EndpointConfig
from orchestrator.registry.tenancy.audit_log import MIN_AUDIT_DAYS

DEFAULT_DATABASE = "sqlite:///.cache/registry.db"
DEFAULT_STORE = "file://.cache/store"


def _check_word(text: str) -> str:
    """Return text for a command line. Raise ValueError if a shell would interpret it."""
    if not is_safe_argument(text):
        raise ValueError(f"{text[:80]!a} may only contain letters, digits and . _ / : + -")
    return text


def _make_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _check_network(text: str) -> str:
    """Return the address or network. Raise ValueError if it is neither."""
    ipaddress.ip_network(text)
    return text


Network = Annotated[str, Field(min_length=1, max_length=50), AfterValidator(_check_network)]
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
    warm_workers: int = Field(default=0, ge=0, le=MAX_WARM_WORKERS)
    """Idle workers that it keeps for each project between runs; 0: none."""

    @property
    def token_path(self) -> Path | None:
        """Return the path of the cluster's token."""
        return Path(os.path.expanduser(self.token_file)) if self.token_file is not None else None


Rate = Annotated[float, Field(gt=0, le=10**6, strict=False)]
Timeout = Annotated[float, Field(gt=0, le=3600, strict=False)]


class HttpLimits(StrictModel):
    """Limits on requests and connections, which each instance of a service counts by itself.

    Five seconds of a rate may come at once. A request counts once, one that changes something
    twice, and each 64 KiB of a body once more.
    """

    address_requests_per_s: Rate = 2000
    """Requests of an address, which may be that of a proxy."""
    anonymous_requests_per_s: Rate = 40
    """Requests of an address without a token that was valid before."""
    token_requests_per_s: Rate = 100
    """Requests of a token for one project."""
    project_requests_per_s: Rate = 200
    """Requests of all tokens for one project."""
    header_timeout_s: Timeout = 10
    """Seconds in which the header of a request must be complete."""
    body_timeout_s: Timeout = 30
    """Seconds in which its body must be complete."""
    write_timeout_s: Timeout = 60
    """Seconds that a client may stop reading a response."""
    max_connections: int = Field(default=600, ge=1, le=10**6)
    max_connections_per_address: int = Field(default=400, ge=1, le=10**6)


class ServiceConfig(StrictModel):
    """The configuration of a service."""

    name: Name = "slora"
    """Marks the jobs of this service on a cluster that several services share."""
    database: str = DEFAULT_DATABASE
    stores: tuple[ShellWord, ...] = Field(default=(DEFAULT_STORE,), min_length=1, strict=False)
    """Stores that runs may use; the first is the default."""
    masks: tuple[Name, ...] = Field(default=(), max_length=1000, strict=False)
    """Installed mask strategies that runs may use, by the name of their entry point."""
    clusters: dict[Name, ClusterConfig] = Field(min_length=1, max_length=100)
    projects: dict[Name, ProjectConfig] = Field(default={}, max_length=1000)
    """Credentials and secrets of projects; a project without them has no S3 store."""
    jobs: JobsConfig | None = None
    """How jobs renew the credentials of their project; without it these last one session."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Attempts of a run before a lost job fails it."""
    poll_interval_s: float = Field(default=2.0, ge=0.05, le=600)
    """Seconds between two polls of a cluster."""
    lease_s: float = Field(default=30.0, ge=1, le=3600)
    """Seconds until another service takes over from one that died; longer than a poll takes."""
    signing_key: str | None = Field(default=None, min_length=1, max_length=4096)
    """PEM file of the ed25519 key that signs versions and pointers; only its owner may read it."""
    trust: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...],
        Field(strict=False, max_length=100),
        BeforeValidator(_make_list),
    ] = ()
    """Public keys whose signatures are demanded: a PEM file, or a list of files and keys
    (`ed25519:BASE64`)."""
    retention: RetentionConfig = RetentionConfig()
    """How long ended runs, firings, tokens and idempotency keys are kept."""
    audit_days: int = Field(default=400, ge=MIN_AUDIT_DAYS, le=36500)
    """Days after which an entry of the audit log is deleted."""
    trusted_proxies: tuple[Network, ...] = Field(default=(), max_length=100, strict=False)
    """Addresses or networks of the proxies whose X-Forwarded-For tells a client's address."""
    http: HttpLimits = HttpLimits()
    serving: dict[Name, EndpointConfig] = Field(default={}, max_length=100)
    """Inference servers that adapters are deployed to, by the name of the endpoint."""


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
    _check_nesting(stores)
    return config.model_copy(update={"stores": stores})


def _check_nesting(stores: tuple[str, ...]) -> None:
    """Raise InputError if a store lies below another one, where projects may have theirs."""
    for store in stores:
        if outer := [other for other in stores if store.startswith(f"{other}/")]:
            problem = f"{store} lies inside {outer[0]}, which holds the stores of projects"
            raise InputError([Fault("stores", problem, "Use stores beside each other.")])


def normalize_store_url(url: str) -> str:
    """Return the absolute URL of a store without a trailing slash."""
    return open_store(url).url("").rstrip("/")
