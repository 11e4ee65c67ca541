"""Ask a question about a model that needs torch to answer: here, if this process has loaded torch
already, or a child process that has. No torch.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from jobs.errors import Fault, InputError, JobsError, NotInstalled

Question = Literal["describe", "probe_packing", "probe_dtype", "find_peft_loss"]
MODULE = "jobs.train.model.inspect_main"
ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 600
"""For the imports, and for an answer with its own bound."""
MAX_TAIL = 1 << 16
"""Bytes of a failed process's standard error that are read."""


def inspect_model(question: Question, folder: Path, **arguments: Any) -> Any:
    """Return the answer to a question about the model of a folder, as JSON values.

    Raise InputError if the model cannot be used, and NotInstalled without transformers.
    """
    request = json.dumps({"question": question, "folder": str(folder), **arguments}).encode()
    answer = _answer_here(request) if "torch" in sys.modules else _child.ask(request)
    if answer is None:
        reason = _child.last_words or f"no answer within {START_TIMEOUT_S} s"
        raise JobsError(f"The process that inspects {folder} failed: {reason}.")
    if "faults" in answer:
        raise InputError([Fault(**fault) for fault in answer["faults"]])
    return answer["answer"]


class _Child:
    """The client of a process that inspects models; it is started when it is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr = -1
        self.last_words = ""
        """The last line that a process wrote to its standard error before it failed."""

    def ask(self, request: bytes) -> dict[str, Any] | None:
        """Return the answer, or None if the process ends without one. Raise NotInstalled."""
        with self._lock:
            return self._exchange(request + b"\n") or self._exchange(request + b"\n")

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
            os.close(self._stderr)

    def _exchange(self, line: bytes) -> dict[str, Any] | None:
        """Return the answer, or None if the process has ended: it does when it is idle."""
        if self._process is None:
            self._stderr = os.memfd_create("stderr")
            self._process = _start_process(self._stderr)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        try:
            stdin.write(line)
            stdin.flush()
            ready, _, _ = select.select([stdout], [], [], START_TIMEOUT_S)
            answer = stdout.readline() if ready else b""
        except OSError:
            answer = b""
        if not answer:
            self._read_last_words()
            self.close()
            return None
        parsed: dict[str, Any] = json.loads(answer)
        return parsed

    def _read_last_words(self) -> None:
        size = os.fstat(self._stderr).st_size
        tail = os.pread(self._stderr, MAX_TAIL, max(0, size - MAX_TAIL))
        lines = tail.decode(errors="replace").strip().splitlines()
        self.last_words = lines[-1][:300] if lines else ""


_child = _Child()
atexit.register(_child.close)


def _answer_here(request: bytes) -> dict[str, Any]:
    _require_libraries()
    # Imported here: it loads transformers.
    from jobs.train.model.inspect_model import answer_quietly

    answer: dict[str, Any] = json.loads(answer_quietly(json.loads(request)))
    return answer


def _require_interpreter() -> None:
    # Not so for a process that became another user, of a Python in somebody's home.
    if not os.access(sys.executable, os.X_OK):
        raise NotInstalled("a Python that this user may run", "train")


def _require_libraries() -> None:
    if find_spec("transformers") is None or find_spec("torch") is None:
        raise NotInstalled("torch and transformers", "train")


def _start_process(stderr: int) -> subprocess.Popen[bytes]:
    _require_interpreter()
    _require_libraries()
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=environment,
    )
