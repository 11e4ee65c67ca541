"""The configuration of a project: whose credentials its jobs use, and the secrets they get.

The service's file names files and roles. Keys and secrets lie in those files, which only the owner
may read: they are never in the database, in the API or in a log.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from jobs.spec.strict_model import StrictModel
from orchestrator.control.projects.private_file import read_keys, read_secret

ROLE = r"^arn:aws[a-z-]*:iam::[0-9]{0,12}:role/[A-Za-z0-9+=,.@_/-]{1,512}$"
MAX_SECRETS = 32

_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,127}")
_PROCESS_VARIABLES = frozenset(
    (
        "ALL_PROXY", "BASH_ENV", "CURL_CA_BUNDLE", "ENV", "HOME", "HTTPS_PROXY", "HTTP_PROXY",
        "IFS", "NO_PROXY", "PATH", "REQUESTS_CA_BUNDLE", "SHELL", "SSL_CERT_DIR", "SSL_CERT_FILE",
        "TEMP", "TMP", "TMPDIR", "USER",
    )
)  # fmt: skip
_PROCESS_PREFIXES = (
    "AWS_", "CUDA_", "DYLD_", "HF_HUB_", "LD_", "NCCL_", "PYTHON", "RAY_", "SLORA_", "TORCH_",
    "TRANSFORMERS_",
)  # fmt: skip
"""Variables that change how a process runs, or whose credentials it uses."""


def _check_variable(name: str) -> str:
    """Return the name of a secret. Raise ValueError if it may not be a job's variable."""
    if not _VARIABLE.fullmatch(name):
        raise ValueError(f"{name[:80]!a} is not an upper-case environment variable")
    if name in _PROCESS_VARIABLES or name.startswith(_PROCESS_PREFIXES):
        raise ValueError(f"{name} changes how a process runs, so it can't be a secret's name")
    return name


def _check_keys_file(name: str) -> str:
    read_keys(name)
    return name


def _check_secret_file(name: str) -> str:
    read_secret(name)
    return name


FileName = Annotated[str, Field(min_length=1, max_length=4096)]
KeysFile = Annotated[FileName, AfterValidator(_check_keys_file)]
SecretFile = Annotated[FileName, AfterValidator(_check_secret_file)]
SecretName = Annotated[str, AfterValidator(_check_variable)]


class ProjectConfig(StrictModel):
    """The credentials and the secrets of one project's jobs."""

    role_arn: str | None = Field(default=None, pattern=ROLE)
    """Role that the service assumes for each job, in a session that reaches the project's own
    prefixes only."""
    credentials_file: KeysFile | None = None
    """File with the project's own access key, as a profile of AWS or as JSON."""
    session_s: int = Field(default=3600, ge=1800, le=43200)
    """Seconds that a session lasts; a job renews it if `jobs` is configured. Below 1800 boto3 would
    renew it all the time: it begins 900 seconds before the end."""
    secrets: dict[SecretName, SecretFile] = Field(default={}, max_length=MAX_SECRETS)
    """Files by the environment variable that holds their content in the project's jobs."""

    @model_validator(mode="before")
    @classmethod
    def _check_one_source(cls, values: Any) -> Any:
        sources = ("role_arn", "credentials_file")
        if isinstance(values, dict) and all(values.get(source) for source in sources):
            raise ValueError("role_arn and credentials_file exclude each other")
        return values

    @property
    def has_credentials(self) -> bool:
        """Return whether the project has credentials of its own."""
        return self.role_arn is not None or self.credentials_file is not None
