"""Look at the files of projects in the background: one look a project at a time, few in all.

A look that takes long delays its own project's next one. Those of other projects have their turn.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs.errors import JobsError
from orchestrator.control.looking.answer_folders import AnswerFolders
from orchestrator.control.looking.look_process import CHILD_MODULE, LookProcess, find_look_account
from orchestrator.control.looking.look_protocol import Account, LookLimits, LookRequest, LookResult
from orchestrator.control.projects.credentials import ProjectCredentials

CONCURRENT_LOOKS = 4

log = logging.getLogger(__name__)


@dataclass
class _Look:
    request: LookRequest
    result: Future[LookResult]


class LookRunner:
    """Starts the looks, and hands out their results as futures."""

    def __init__(
        self,
        *,
        make_environment: Callable[[str, Path], Mapping[str, str]] | None = None,
        find_account: Callable[[], Account | None] = find_look_account,
        limits: LookLimits | None = None,
        threads: int = CONCURRENT_LOOKS,
        module: str = CHILD_MODULE,
    ) -> None:
        """`make_environment` returns that of a child of a project, whose home is the folder; by
        default no project has credentials of its own. `module` is the program of the children.
        """
        without_credentials = ProjectCredentials({}, ())
        self._make_environment = make_environment or without_credentials.make_look_environment
        self._find_account, self._answers = find_account, AnswerFolders()
        self._limits, self._module = limits or LookLimits(), module
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="look")
        self._lock = threading.RLock()
        self._queues = dict[str, deque[_Look]]()
        """The looks of each project, of which the first is running or next."""
        self._processes = set[LookProcess]()
        self._is_closed = False

    def submit(self, project: str, request: LookRequest) -> Future[LookResult]:
        """Look when it is the project's turn. The limits and the user are set here."""
        look = _Look(request, Future())
        with self._lock:
            if self._is_closed:
                look.result.cancel()
                return look.result
            queue = self._queues.setdefault(project, deque())
            queue.append(look)
            if len(queue) == 1:
                self._start_next(project)
        return look.result

    def close(self) -> None:
        """End the processes, and forget the looks that wait."""
        with self._lock:
            self._is_closed = True
            for process in self._processes:
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._answers.close()

    def _start_next(self, project: str) -> None:
        running = self._pool.submit(self._look, project, self._queues[project][0].request)
        running.add_done_callback(partial(self._finish, project))

    def _finish(self, project: str, running: Future[LookResult]) -> None:
        with self._lock:
            look = self._queues[project].popleft()
            if not self._queues[project]:
                del self._queues[project]
            elif not self._is_closed:
                self._start_next(project)
        if running.cancelled():
            look.result.cancel()
        elif (error := running.exception()) is not None:
            look.result.set_exception(error)
        else:
            look.result.set_result(running.result())

    def _look(self, project: str, request: LookRequest) -> LookResult:
        try:
            process = self._start_process(project, request)
        except (JobsError, OSError) as error:
            # The project has no credentials now, or this machine is short of processes or memory.
            return LookResult(store_error=f"the service cannot look at files now: {error}")
        try:
            result = process.read_result()
        finally:
            with self._lock:
                self._processes.remove(process)
        if result.unchecked and process.last_words:
            log.warning(
                "a look of project %s: %s: %s", project, result.unchecked, process.last_words
            )
        return result

    def _start_process(self, project: str, request: LookRequest) -> LookProcess:
        account = self._find_account()
        process = LookProcess(
            request.model_copy(update={"limits": self._limits, "account": account}),
            partial(self._make_environment, project),
            self._answers.prepare(project, account),
            self._module,
        )
        with self._lock:
            self._processes.add(process)
            if self._is_closed:
                process.kill()
        return process
