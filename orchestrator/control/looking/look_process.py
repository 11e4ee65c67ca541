"""Run one child process that looks at files, and read its answer."""

from __future__ import annotations

import os
import pwd
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from jobs.errors import JobsError
from jobs.store.settings import HEAD_BYTES
from orchestrator.control.looking.look_environment import make_process_environment
from orchestrator.control.looking.look_protocol import (
    Account,
    LookRequest,
    LookResult,
    parse_answer,
)

CHILD_MODULE = "orchestrator.control.looking.child"
MAX_ANSWER_BYTES = 1 << 20
MAX_TAIL = 4096
"""Bytes of the standard error of a child that failed which are read."""
NOBODY = 65534


def find_look_account() -> Account | None:
    """Return the account `nobody` if this process is root's; else None: looks run as it does."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return Account(user=NOBODY, group=NOBODY)
    return Account(user=entry.pw_uid, group=entry.pw_gid)


class LookProcess:
    """A child process, and its empty folder, in a process group of their own."""

    def __init__(
        self,
        request: LookRequest,
        make_environment: Callable[[Path], Mapping[str, str]],
        answers: Path,
        module: str = CHILD_MODULE,
    ) -> None:
        """Start it. `answers` is a folder that it may keep.

        Raise OSError if it cannot start, and JobsError if `make_environment` does.
        """
        self._limits, self._answers = request.limits, answers
        self._home = Path(tempfile.mkdtemp(prefix="slora-look-"))
        self._errors = _open_unnamed_file()
        if request.account is not None:
            os.chown(self._home, request.account.user, request.account.group)
        self._ending = threading.Lock()
        self.last_words = ""
        """The last line that the process wrote to its standard error."""
        self._deadline = time.monotonic() + request.limits.wall_s
        try:
            self._process = self._start(request, make_environment(self._home), module)
        except (OSError, JobsError):
            self._remove_files()
            raise

    def read_result(self) -> LookResult:
        """Wait for the answer, end the process group, and return what is known."""
        try:
            answer = self._read_answer()
        finally:
            self._end()
        if answer is None:
            return LookResult(unchecked=f"it needs more than {self._limits.wall_s:g} seconds")
        try:
            return parse_answer(answer)
        except ValueError:
            return LookResult(unchecked=self._describe_end())

    def kill(self) -> None:
        """End the process and all that it started. Its id is not free before it is waited for."""
        with self._ending:
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self) -> None:
        with self._ending:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.last_words = self._read_last_words()
        self._remove_files()

    def _remove_files(self) -> None:
        os.close(self._errors)
        shutil.rmtree(self._home, ignore_errors=True)

    def _read_last_words(self) -> str:
        size = os.fstat(self._errors).st_size
        tail = os.pread(self._errors, MAX_TAIL, max(0, size - MAX_TAIL))
        lines = tail.decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def _start(
        self, request: LookRequest, environment: Mapping[str, str], module: str
    ) -> subprocess.Popen[bytes]:
        folder = str(self._home)
        values = {
            **environment,
            **make_process_environment(),
            "HOME": folder,
            "TMPDIR": folder,
            "SLORA_CACHE": str(self._answers),
            HEAD_BYTES: str(request.limits.copy_bytes),
        }
        # A file, because writing to a pipe would wait for a child that does not read.
        with tempfile.TemporaryFile() as stdin:
            stdin.write(request.model_dump_json().encode())
            stdin.seek(0)
            return subprocess.Popen(
                [sys.executable, "-P", "-s", "-m", module],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=values,
                cwd=folder,
                start_new_session=True,
            )

    def _read_answer(self) -> bytes | None:
        """Return what the process writes until it ends, or None if it takes too long."""
        stdout = self._process.stdout
        assert stdout is not None
        answer = b""
        with stdout, selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while (remaining := self._deadline - time.monotonic()) > 0:
                if not selector.select(remaining):
                    continue
                block = os.read(stdout.fileno(), 1 << 16)
                answer += block
                if not block or len(answer) > MAX_ANSWER_BYTES:
                    return answer[: MAX_ANSWER_BYTES + 1]
        return None

    def _describe_end(self) -> str:
        code = self._process.returncode
        if code == -signal.SIGXCPU:
            return f"it needs more than {self._limits.cpu_s} seconds of processor time"
        if code < 0 and code != -signal.SIGKILL:
            return f"the process that looks at it was ended by signal {-code}"
        return f"the process that looks at it failed with exit code {code}"


def _open_unnamed_file() -> int:
    """Return a descriptor of a file without a name, which nobody can replace by a link."""
    descriptor, path = tempfile.mkstemp(prefix="slora-look-")
    os.unlink(path)
    return descriptor
