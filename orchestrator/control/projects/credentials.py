"""The environment of a project's jobs: the project's own credentials, and none of the node's.

A job of the project `default` without credentials of its own runs as the nodes do: it is the
operator's. Any other job gets variables that name its credentials and empty those of the node.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from jobs.errors import Fault, InputError, StoreUnreachable
from jobs.store.settings import read_store_settings
from orchestrator.control.projects.operator_environment import read_operator_environment
from orchestrator.control.projects.private_file import AccessKeys, read_secret
from orchestrator.control.projects.project_config import ProjectConfig
from orchestrator.control.projects.project_sessions import ListPlaces, ProjectSessions
from orchestrator.control.projects.role_session import S3
from orchestrator.control.projects.run_tokens import JobsConfig, make_run_token
from orchestrator.registry.values import DEFAULT_PROJECT, Run

NOTHING_OF_THE_NODE: Mapping[str, str] = {
    "AWS_ACCESS_KEY_ID": "",
    "AWS_SECRET_ACCESS_KEY": "",
    "AWS_SESSION_TOKEN": "",
    "AWS_SECURITY_TOKEN": "",
    "AWS_CREDENTIAL_EXPIRATION": "",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN": "",
    "AWS_PROFILE": "",
    "AWS_DEFAULT_PROFILE": "",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_ROLE_ARN": "",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "",
    "AWS_EC2_METADATA_DISABLED": "true",
    "SLORA_SIGNING_KEY": "",
}
"""Variables of a job that empty a node's own: a job's environment can replace one, not unset it."""
STORE_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION")
"""Where the store is; a job uses the service's if the service has any."""
LOOK_VARIABLES = (
    "PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "AWS_CA_BUNDLE", "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY",
    "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "AWS_MAX_ATTEMPTS", "SLORA_S3_CONNECT_TIMEOUT",
    "SLORA_S3_READ_TIMEOUT", "SLORA_S3_SSE", "SLORA_S3_SSE_KMS_KEY_ID", "SLORA_CACHE_BYTES",
    *STORE_VARIABLES,
)  # fmt: skip
"""Variables of the service that a child process gets which looks at a project's files."""


class ProjectCredentials:
    """Makes the environments of jobs, and of the service's own looks, for each project."""

    def __init__(
        self,
        projects: Mapping[str, ProjectConfig],
        stores: Sequence[str],
        *,
        jobs: JobsConfig | None = None,
        list_places: ListPlaces = lambda project: (),
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._projects, self._jobs, self._environment = projects, jobs, environment
        self._sessions = ProjectSessions(projects, stores, list_places=list_places, clock=clock)

    def find_fault(self, project: str, store: str) -> Fault | None:
        """Return why no job of the project may use the store, or None."""
        if project == DEFAULT_PROJECT or not store.startswith(S3):
            return None
        if self._get_config(project).has_credentials:
            return None
        problem = f"the project {project} has no credentials for {store}"
        remedy = (
            f"An administrator has to set projects.{project}.role_arn or "
            f"projects.{project}.credentials_file in the service's configuration."
        )
        return Fault("store", problem, remedy)

    def make_job_environment(
        self, project: str, store: str, run: Run | None = None
    ) -> dict[str, str]:
        """Return the variables of a job, which override those of its node.

        With a `run`, and if the service is configured to renew sessions, the job asks the service
        for its keys; else they are in the variables. Only secrets for the project `default` without
        credentials of its own, which uses those of the node. Raise InputError if the project may
        not use the store, and StoreUnreachable if its credentials can't be had now.
        """
        if self._uses_operator_credentials(project):
            return self._read_secrets(project)
        if (fault := self.find_fault(project, store)) is not None:
            raise InputError([fault])
        return {
            **NOTHING_OF_THE_NODE,
            **self._select(STORE_VARIABLES),
            "SLORA_PROJECT": project,
            **self._make_credential_variables(project, run),
            **self._read_secrets(project),
        }

    def make_look_environment(self, project: str, home: Path) -> dict[str, str]:
        """Return the whole environment of a child process that looks at the project's files.

        It holds nothing of the service but where the store is and how to reach it; `home` should be
        an empty folder. Raise InputError or StoreUnreachable.
        """
        environment = {
            **self._select(LOOK_VARIABLES),
            "HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "SLORA_CACHE": str(read_store_settings(self._environment).cache),
        }
        if self._uses_operator_credentials(project):
            return {**environment, **read_operator_environment(self._environment)}
        environment |= {"AWS_EC2_METADATA_DISABLED": "true", "SLORA_PROJECT": project}
        if not self._get_config(project).has_credentials:
            return environment
        return environment | _format_keys(self._sessions.share(project))

    def get_session(self, project: str) -> AccessKeys:
        """Return keys for a job that asks for them again in time.

        Raise InputError or StoreUnreachable.
        """
        return self._sessions.share(project)

    def get_session_seconds(self, project: str) -> int:
        """Return the seconds after which a job of the project asks for its keys again."""
        return self._get_config(project).session_s

    def _get_config(self, project: str) -> ProjectConfig:
        return self._projects.get(project) or ProjectConfig()

    def _uses_operator_credentials(self, project: str) -> bool:
        return project == DEFAULT_PROJECT and not self._get_config(project).has_credentials

    def _select(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self._environment[name] for name in names if self._environment.get(name)}

    def _make_credential_variables(self, project: str, run: Run | None) -> dict[str, str]:
        if not self._get_config(project).has_credentials:
            return {}
        if self._jobs is None or run is None:
            return _format_keys(self._sessions.make(project))
        url = f"{self._jobs.url.rstrip('/')}/v1/runs/{quote(run.id, safe='')}/credentials"
        token = make_run_token(self._jobs, run.id, run.attempt)
        return {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": url,
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": f"Bearer {token}",
        }

    def _read_secrets(self, project: str) -> dict[str, str]:
        secrets = {}
        for name, file in self._get_config(project).secrets.items():
            try:
                secrets[name] = read_secret(file)
            except ValueError as error:
                problem = f"The secret {name} of the project {project} can't be read: {error}."
                raise StoreUnreachable(problem) from None
        return secrets


def _format_keys(keys: AccessKeys) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": keys.key_id,
        "AWS_SECRET_ACCESS_KEY": keys.secret,
        "AWS_SESSION_TOKEN": keys.token,
    }
