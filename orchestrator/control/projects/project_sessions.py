"""The keys of each project: its own, or a session of its role that its jobs share for a while.

A server of roles that does not answer delays nobody else: one request per project waits for it, and
after a failure none is sent for a moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from threading import Lock

from jobs.errors import Fault, InputError, StoreUnreachable
from orchestrator.control.projects.private_file import AccessKeys, read_keys
from orchestrator.control.projects.project_config import ProjectConfig
from orchestrator.control.projects.role_session import assume_role
from orchestrator.registry.values import DEFAULT_PROJECT

FAILURE_PAUSE_S = 30.0
WAIT_S = 2.0
"""Seconds that a request waits for a session that another one makes."""

ListPlaces = Callable[[str], Sequence[str]]


class ProjectSessions:
    """Makes keys for the jobs of projects, and remembers sessions."""

    def __init__(
        self,
        projects: Mapping[str, ProjectConfig],
        stores: Sequence[str],
        *,
        list_places: ListPlaces = lambda project: (),
        clock: Callable[[], float] = time.time,
        assume: Callable[..., AccessKeys] = assume_role,
    ) -> None:
        self._projects, self._stores, self._assume = projects, stores, assume
        self._list_places, self._clock = list_places, clock
        self._sessions = dict[str, tuple[Sequence[str], AccessKeys]]()
        self._failures = dict[str, tuple[float, str]]()
        self._locks = dict[str, Lock]()

    def share(self, project: str) -> AccessKeys:
        """Return keys with half of their life before them, which others may have too.

        Raise InputError or StoreUnreachable.
        """
        config = self._projects.get(project)
        if config is None or config.role_arn is None:
            return self.make(project)
        lock = self._locks.setdefault(project, Lock())
        places = tuple(self._list_places(project))
        if not lock.acquire(timeout=WAIT_S):
            raise StoreUnreachable(f"{config.role_arn} is being assumed. Try again later.")
        try:
            known_places, session = self._sessions.get(project, ((), None))
            half_life = config.session_s / 2
            is_young = session and self._clock() < (session.expires_at or 0) - half_life
            if session is None or not is_young or known_places != places:
                session = self.make(project)
                self._sessions[project] = (places, session)
            return session
        finally:
            lock.release()

    def make(self, project: str) -> AccessKeys:
        """Return keys with their whole life before them. Raise InputError or StoreUnreachable."""
        config = self._projects.get(project) or ProjectConfig()
        if config.role_arn is not None:
            return self._assume_role(project, config.role_arn, config.session_s)
        if config.credentials_file is None:
            problem = "neither role_arn nor credentials_file is set"
            raise InputError([Fault(f"projects.{project}", problem, "Set one of them.")])
        try:
            return read_keys(config.credentials_file)
        except ValueError as error:
            problem = f"The project {project} has no usable credentials: {error}."
            raise StoreUnreachable(problem) from None

    def _assume_role(self, project: str, role: str, seconds: int) -> AccessKeys:
        retry_at, message = self._failures.get(project, (0.0, ""))
        if self._clock() < retry_at:
            raise StoreUnreachable(message)
        try:
            return self._assume(
                role,
                session=f"slora-{project}",
                seconds=seconds,
                stores=self._get_prefixes(project),
                places=self._list_places(project),
            )
        except StoreUnreachable as error:
            self._failures[project] = (self._clock() + FAILURE_PAUSE_S, str(error))
            raise

    def _get_prefixes(self, project: str) -> Sequence[str]:
        """Return the project's part of each store; the operator's own project has the whole."""
        part = "" if project == DEFAULT_PROJECT else f"/projects/{project}"
        return [store.rstrip("/") + part for store in self._stores]
