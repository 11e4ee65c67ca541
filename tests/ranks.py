"""`run_ranks(function, world_size, *args)` runs a function on that many gloo processes."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.queues import Queue
from typing import Any

import torch
import torch.multiprocessing as mp

IMPORTED = ["tests.ranks", "tests.storage.test_faults_s3", "tests.rank_imports"]
"""Imported once for all ranks of a test session: it takes a rank longer than most of its work. And
what the writers of `test_faults_s3` need: a process has one fork server, of whoever forks first.
"""


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, spawned: bool = False
) -> list[Any]:
    """Return the result of `function(rank, *args)` of every rank; a rank's error is raised here.

    `spawned`: every rank imports for itself, and shares no memory with the others.
    """
    context: Any = mp.get_context("spawn" if spawned else "forkserver")
    if not spawned:
        context.set_forkserver_preload(IMPORTED)
    answers = context.Queue()
    port = find_free_port()
    started = [
        context.Process(
            target=_run_rank,
            args=(dict(os.environ), function, rank, world_size, port, answers, args),
        )
        for rank in range(world_size)
    ]
    for process in started:
        process.start()
    try:
        results = dict(answers.get(timeout=900) for _ in started)
    finally:
        for process in started:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()
    for rank, (good, answer) in sorted(results.items()):
        if not good:
            raise AssertionError(f"rank {rank} of {world_size}:\n{answer}")
    return [results[rank][1] for rank in range(world_size)]


def join_group(environment: dict[str, str], rank: int, world_size: int, port: int) -> None:
    """Make this process a rank of a gloo group on this machine, with one thread."""
    # A fork server keeps the environment of the test that started it.
    os.environ.clear()
    os.environ.update(environment)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)


def _run_rank(
    environment: dict[str, str],
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    port: int,
    answers: Queue[Any],
    args: tuple[Any, ...],
) -> None:
    join_group(environment, rank, world_size, port)
    try:
        answers.put((rank, (True, function(rank, *args))))
    except BaseException:
        answers.put((rank, (False, traceback.format_exc())))
    # No teardown of the group: a peer that failed would never join it.


def find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
