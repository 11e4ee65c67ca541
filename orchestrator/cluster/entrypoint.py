"""A job as the one line that a cluster's shell runs: names of ours, and nothing a shell obeys."""

from __future__ import annotations

import re
import shlex

from jobs.errors import Fault, InputError
from orchestrator.cluster.base import Job

MAX_ARGUMENT_CHARS = 4096

_MODULE = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*")
_OPTION = re.compile(r"--[a-z][a-z-]*")
_ARGUMENT = re.compile(r"[A-Za-z0-9/][A-Za-z0-9._/:+~-]*")
_SUBMISSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def build_entrypoint(job: Job, python: str) -> str:
    """The line. Raises InputError where any word could be more than a word."""
    faults = [
        *_check_pattern(_SUBMISSION, "submission", job.submission),
        *_check_pattern(_ARGUMENT, "python", python),
        *_check_pattern(_MODULE, "module", job.module),
        *(fault for argument in job.arguments for fault in _check_argument(argument)),
    ]
    if faults:
        raise InputError(faults)
    # Quoted although nothing in it needs quotes: two locks, since the Jobs API runs a shell.
    return shlex.join([python, "-m", job.module, *job.arguments])


def is_safe_argument(text: str) -> bool:
    """Whether it may stand on that line."""
    return _is_safe(_ARGUMENT, text)


def _check_argument(argument: str) -> list[Fault]:
    pattern = _OPTION if argument.startswith("-") else _ARGUMENT
    return _check_pattern(pattern, "word", argument)


def _is_safe(pattern: re.Pattern[str], text: str) -> bool:
    return len(text) <= MAX_ARGUMENT_CHARS and bool(pattern.fullmatch(text)) and ".." not in text


def _check_pattern(pattern: re.Pattern[str], key: str, text: str) -> list[Fault]:
    if _is_safe(pattern, text):
        return []
    problem = f"{text[:80]!a} may mean something to a shell"
    return [Fault(key, problem, "Use letters, digits and . _ / : + - only.")]
