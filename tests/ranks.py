"""`run_ranks(function, world_size, *args)`: the function on that many gloo processes."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.queues import Queue
from typing import Any

import torch
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """What `function(rank, *args)` returns on every rank; a rank's error is raised here."""
    context = mp.get_context("spawn")
    answers = context.Queue()
    port = _free_port()
    started = [
        context.Process(target=_one, args=(function, rank, world_size, port, answers, args))
        for rank in range(world_size)
    ]
    for process in started:
        process.start()
    try:
        found = dict(answers.get(timeout=900) for _ in started)
    finally:
        for process in started:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()
    for rank, (good, answer) in sorted(found.items()):
        if not good:
            raise AssertionError(f"rank {rank} of {world_size}:\n{answer}")
    return [found[rank][1] for rank in range(world_size)]


def _one(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    port: int,
    answers: Queue[Any],
    args: tuple[Any, ...],
) -> None:
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
    try:
        answers.put((rank, (True, function(rank, *args))))
    except BaseException:
        answers.put((rank, (False, traceback.format_exc())))
    # No teardown of the group: a peer that failed would never join it.


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
