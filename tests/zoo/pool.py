"""Groups of gloo ranks that may crash or hang: each ends with a result or with a reason."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from tests.ranks import IMPORTED, find_free_port, join_group

PRELOADED = [
    *IMPORTED,
    "jobs.plan.preflight",
    "jobs.tools.load_adapter",
    "orchestrator.cli.commands.train",
    "orchestrator.cli.main",
    "peft",
    "transformers.generation.utils",
    # DeepSpeed's optimizers import torch's compiler: seconds for each process.
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "tests.zoo.warm_up",
]
"""Imported once, by the server that the ranks are forked from."""


class Crashed(Exception):
    """A rank raised an error, died or ran past its time."""


def run_group(
    function: Callable[..., Any], world_size: int, *args: Any, limit: float = 120.0
) -> list[Any]:
    """Return the result of `function(rank, *args)` of every rank.

    Raise Crashed as soon as one of them fails or the time is up; no rank outlives the call.
    """
    context: Any = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port, deadline = find_free_port(), time.monotonic() + limit
    with tempfile.TemporaryDirectory(prefix="zoo-ranks-") as scratch:
        ranks = []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            output = str(Path(scratch) / f"{rank}.log")
            process = context.Process(
                target=_run_rank,
                args=(dict(os.environ), output, function, rank, world_size, port, sender, args),
            )
            process.start()
            sender.close()
            ranks.append((process, receiver, output))
        try:
            return _collect_results(ranks, deadline, limit)
        finally:
            for process, receiver, _ in ranks:
                process.kill()
                process.join()
                receiver.close()


def _collect_results(ranks: list[tuple[Any, Any, str]], deadline: float, limit: float) -> list[Any]:
    pending = {receiver: rank for rank, (_, receiver, _) in enumerate(ranks)}
    results: dict[int, Any] = {}
    while pending:
        ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise Crashed(f"no end after {limit:.0f} s")
        for receiver in ready:
            rank = pending.pop(receiver)  # type: ignore[arg-type]
            process, _, output = ranks[rank]
            try:
                is_good, answer = receiver.recv()  # type: ignore[union-attr]
            except EOFError:
                process.join()
                raise Crashed(_describe_death(process.exitcode, output)) from None
            if not is_good:
                raise Crashed(answer)
            results[rank] = answer
    return [results[rank] for rank in range(len(ranks))]


def _describe_death(exit_code: int | None, output: str) -> str:
    lines = Path(output).read_text("utf-8", errors="replace").strip().splitlines()
    return f"the process ended with {exit_code}: {lines[-1] if lines else 'no output'}"


def _run_rank(
    environment: dict[str, str],
    output: str,
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    port: int,
    sender: Any,
    args: tuple[Any, ...],
) -> None:
    log = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    join_group(environment, rank, world_size, port)
    try:
        sender.send((True, function(rank, *args)))
    except BaseException as error:
        sender.send((False, _describe_error(error)))
    sys.stdout.flush()
    sender.close()
    # No teardown of the group: a peer that failed would never join it.
    os._exit(0)


def _describe_error(error: BaseException) -> str:
    """Return the error in one line, with the innermost place in the code that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({place})"
