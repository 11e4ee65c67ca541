"""Looks wait for those of their own project, not for others', and end with their runner."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.places.places import Places
from orchestrator.control.looking.fingerprints import MAX_AGE_S, Fingerprints, LookPending
from orchestrator.control.looking.look_protocol import LookLimits, LookRequest
from orchestrator.control.looking.look_runner import LookRunner
from tests.orchestrator.control.looker import WAIT_S, Looker, make_fifo
from tests.orchestrator.control.misbehaving_child import MODULE


class PipeLooker:
    """Looks that take until the test lets them end."""

    def __init__(self, folder: Path, looker: Looker, **changes: Any) -> None:
        self.folder, self.runner = folder, looker.make(module=MODULE, **changes)

    def make_pipe(self, name: str) -> str:
        return str(make_fifo(self.folder / name))

    def release(self, pipe: str, text: str = "f") -> None:
        """Wait until a child reads the pipe, and let it end."""
        Path(pipe).write_text(text)


def submit(runner: LookRunner, project: str, location: str) -> Any:
    return runner.submit(project, LookRequest(question="fingerprint_data", location=location))


def test_a_project_looks_at_one_thing_at_a_time_and_others_need_not_wait(
    open_folder: Path, looker: Looker
):
    pipes = PipeLooker(open_folder, looker, threads=2)
    first, second, other = map(pipes.make_pipe, ("first", "second", "other"))
    slow = [submit(pipes.runner, "lab", pipe) for pipe in (first, second)]
    quick = submit(pipes.runner, "default", other)
    pipes.release(other)
    assert quick.result(WAIT_S).fingerprint == "f" and not slow[0].done()
    # Nobody reads the second pipe yet.
    with pytest.raises(OSError, match="No such device"):
        os.open(second, os.O_WRONLY | os.O_NONBLOCK)
    pipes.release(first)
    assert slow[0].result(WAIT_S).fingerprint == "f"
    pipes.release(second)
    assert slow[1].result(WAIT_S).fingerprint == "f"


def test_a_runner_that_is_closed_ends_its_looks(open_folder: Path, looker: Looker):
    pipes = PipeLooker(open_folder, looker)
    running = submit(pipes.runner, "default", pipes.make_pipe("pipe"))
    waiting = submit(pipes.runner, "default", pipes.make_pipe("next"))
    pipes.runner.close()
    assert running.cancelled() or running.result(WAIT_S).fingerprint is None
    assert not waiting.done() or waiting.cancelled()
    assert submit(pipes.runner, "default", "/x").cancelled()


def test_a_fingerprint_is_pending_until_its_look_is_over(open_folder: Path, looker: Looker):
    pipes = PipeLooker(open_folder, looker)
    times = [0.0]
    fingerprints = Fingerprints(pipes.runner, clock=lambda: times[-1])
    pipe = pipes.make_pipe("pipe")
    with pytest.raises(LookPending):
        fingerprints("default", pipe, None)
    pipes.release(pipe, "abc")
    submit(pipes.runner, "default", "/crash").result(WAIT_S)
    assert fingerprints("default", pipe, None) == "abc"
    with pytest.raises(LookPending):
        fingerprints("default", pipe, None)
    pipes.release(pipe, "old")
    submit(pipes.runner, "default", "/crash").result(WAIT_S)
    times.append(MAX_AGE_S + 1)
    with pytest.raises(LookPending):
        fingerprints("default", pipe, None)
    pipes.release(pipe, "new")
    submit(pipes.runner, "default", "/crash").result(WAIT_S)
    assert fingerprints("default", pipe, None) == "new"
    # What was found under other places is not the answer.
    for places in (None, Places(), Places(data=("/data",))):
        with pytest.raises(LookPending):
            fingerprints("default", pipe, places)


def test_closing_does_not_wait_for_the_limit(open_folder: Path, looker: Looker):
    pipes = PipeLooker(open_folder, looker, limits=LookLimits(wall_s=3600))
    submit(pipes.runner, "default", pipes.make_pipe("pipe"))
    closing = threading.Thread(target=pipes.runner.close)
    closing.start()
    closing.join(WAIT_S)
    assert not closing.is_alive()
