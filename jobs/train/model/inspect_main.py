"""The process that inspects models: `python -m jobs.train.model.inspect_main`.

It reads a request a line, as JSON, and answers each with a line: `{"answer": ...}` or
`{"faults": [...]}`. Each request has a process of its own, forked once the libraries are imported,
with bounds on its memory and its time: what a config.json demands must not harm anybody. The
process ends with its input, or after a while without a request.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
from pathlib import Path
from typing import Any

import torch

from jobs.errors import Fault
from jobs.train.model.inspect_model import answer_question, dump_faults, silence_library

MAX_MEMORY = 4 << 30
"""Bytes that an answer may need beyond those of the libraries. DeepSeek-V3's needs 0.6 GiB."""
TIMEOUT_S = 120
IDLE_S = 20


def main() -> None:
    """Answer requests until the input ends, or none comes for a while."""
    silence_library()
    # Not through sys.stdin: a line in its buffer would be invisible to select.
    buffer = b""
    while select.select([0], [], [], IDLE_S)[0]:
        block = os.read(0, 1 << 16)
        if not block:
            return
        buffer += block
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            os.write(1, answer_request(json.loads(line)) + b"\n")


def answer_request(request: dict[str, Any]) -> bytes:
    """Return the answer to a request, from a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _answer_and_exit(request, writing)
    os.close(writing)
    try:
        answer = _read_answer(reading)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if answer is not None:
        return answer
    return dump_faults(_refuse_size(request["folder"]))


def _answer_and_exit(request: dict[str, Any], writing: int) -> None:
    try:
        # Libraries that print must not write between the answers.
        os.dup2(2, 1)
        _limit_memory()
        torch.set_num_threads(1)
        answer = _answer_within_memory(request)
        with os.fdopen(writing, "wb") as stream:
            stream.write(answer)
    finally:
        os._exit(0)


def _answer_within_memory(request: dict[str, Any]) -> bytes:
    try:
        return answer_question(request)
    except MemoryError:
        return dump_faults(_refuse_size(request["folder"]))


def _limit_memory() -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = in_use + MAX_MEMORY
    resource.setrlimit(
        resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )


def _read_answer(reading: int) -> bytes | None:
    """Return everything that is written to a pipe, or None if it ends empty or late."""
    answer, poll = b"", select.poll()
    poll.register(reading, select.POLLIN | select.POLLHUP)
    while poll.poll(TIMEOUT_S * 1000):
        block = os.read(reading, 1 << 20)
        if not block:
            return answer or None
        answer += block
    return None


def _refuse_size(folder: str) -> Fault:
    problem = (
        f"the model of {folder}/config.json cannot be built within {TIMEOUT_S} s and "
        f"{MAX_MEMORY >> 30} GiB"
    )
    return Fault("model.path", problem, "Correct the sizes in config.json.")


if __name__ == "__main__":
    main()
