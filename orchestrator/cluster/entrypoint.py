"""The shell command of a job: our own module names, and arguments without shell syntax."""

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
    """Return the command. Raise InputError if an argument may contain shell syntax."""
    faults = [
        *_check_pattern(_SUBMISSION, "submission", job.submission),
        *_check_pattern(_ARGUMENT, "python", python),
        *_check_pattern(_MODULE, "module", job.module),
        *(fault for argument in job.arguments for fault in _check_argument(argument)),
    ]
    if faults:
        raise InputError(faults)
    # Quoted although nothing needs quotes: a second defence, because the Jobs API runs a shell.
    return shlex.join([python, "-m", job.module, *job.arguments])


def is_safe_argument(text: str) -> bool:
    """Return whether the text may be an argument of the command."""
    return _is_safe(_ARGUMENT, text)


def _check_argument(argument: str) -> list[Fault]:
    pattern = _OPTION if argument.startswith("-") else _ARGUMENT
    return _check_pattern(pattern, "argument", argument)


def _is_safe(pattern: re.Pattern[str], text: str) -> bool:
    return len(text) <= MAX_ARGUMENT_CHARS and bool(pattern.fullmatch(text)) and ".." not in text


def _check_pattern(pattern: re.Pattern[str], key: str, text: str) -> list[Fault]:
    if _is_safe(pattern, text):
        return []
    problem = f"{text[:80]!a} may contain shell syntax"
    return [Fault(key, problem, "Use only letters, digits and . _ / : + -.")]
