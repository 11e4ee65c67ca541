"""Runs that wait at a named step until a test lets them go, however fast or slow the machine is.

`python -m tests.ray.gates FIFO STEP jobs.finetune --spec SPEC ...` runs a job whose workers (or a
federation's server) stop after that step until somebody holds the FIFO open for writing.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from jobs.train.hooks import RunHooks


class StepGate(RunHooks):
    """Waits at the end of one step or round."""

    def __init__(self, fifo: str, step: int) -> None:
        self._fifo, self._step = fifo, step

    def on_step_end(self, step: int) -> None:
        """Block in opening the FIFO until it has a writer."""
        if step == self._step:
            os.close(os.open(self._fifo, os.O_RDONLY))


class Gate:
    """A test's side of a gate. Once open it stays open, for restarted workers too."""

    def __init__(self, folder: Path, step: int) -> None:
        self._fifo, self._step = folder / f"gate-{os.urandom(4).hex()}", step
        os.mkfifo(self._fifo)
        self._writer: int | None = None

    @property
    def words(self) -> tuple[str, str, str]:
        """The module and its arguments; a job's module and arguments follow."""
        return "tests.ray.gates", str(self._fifo), str(self._step)

    def open(self) -> None:
        """Let the run go on."""
        self._writer = os.open(self._fifo, os.O_RDWR)

    def close(self) -> None:
        """Release the FIFO, with whatever still waits at it."""
        if self._writer is None:
            self.open()
        assert self._writer is not None
        os.close(self._writer)


@contextmanager
def gate_at(folder: Path, step: int) -> Iterator[Gate]:
    """A gate at this step or round, opened on the way out at the latest."""
    gate = Gate(folder, step)
    try:
        yield gate
    finally:
        gate.close()


def main() -> int:
    """Run the job behind the gate."""
    # Not this module's own class: as `__main__` it could not be imported by a worker.
    from tests.ray.gates import StepGate as GateHooks

    fifo, step, module, *arguments = sys.argv[1:]
    run_job = importlib.import_module(module).main
    return int(run_job(arguments, make_hooks=partial(GateHooks, fifo, int(step))))


if __name__ == "__main__":
    sys.exit(main())
