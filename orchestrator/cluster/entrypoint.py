"""A job as the one line that a cluster's shell runs: names of ours, and nothing a shell obeys."""

from __future__ import annotations

import re
import shlex

from jobs.errors import Fault, InputError
from orchestrator.cluster.door import Job

LONGEST_WORD = 4096

_MODULE = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*")
_OPTION = re.compile(r"--[a-z][a-z-]*")
_WORD = re.compile(r"[A-Za-z0-9/][A-Za-z0-9._/:+~-]*")
_SUBMISSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def entrypoint_of(job: Job, python: str) -> str:
    """The line. Raises InputError where any word could be more than a word."""
    faults = [
        *_unless(_SUBMISSION, "submission", job.submission),
        *_unless(_WORD, "python", python),
        *_unless(_MODULE, "module", job.module),
        *(fault for word in job.words for fault in _of_word(word)),
    ]
    if faults:
        raise InputError(faults)
    # Quoted although nothing in it needs quotes: two locks, since the Jobs API runs a shell.
    return shlex.join([python, "-m", job.module, *job.words])


def is_word(text: str) -> bool:
    """Whether it may stand on that line."""
    return _means_nothing(_WORD, text)


def _of_word(word: str) -> list[Fault]:
    pattern = _OPTION if word.startswith("-") else _WORD
    return _unless(pattern, "word", word)


def _means_nothing(pattern: re.Pattern[str], text: str) -> bool:
    return len(text) <= LONGEST_WORD and bool(pattern.fullmatch(text)) and ".." not in text


def _unless(pattern: re.Pattern[str], key: str, text: str) -> list[Fault]:
    if _means_nothing(pattern, text):
        return []
    problem = f"{text[:80]!a} may mean something to a shell"
    return [Fault(key, problem, "Use letters, digits and . _ / : + - only.")]
