"""A run of the service followed from here: its log as it comes, and where it stands meanwhile."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Self, TextIO

from rich.status import Status
from rich.text import Text

from jobs.narrate import plain
from orchestrator.client.client import Client
from orchestrator.client.errors import ClientError
from orchestrator.client.values import Run
from orchestrator.console import note, notes
from orchestrator.run_table import next_step, why

LOOK_S = 1.0
LOOK_WITHIN_S = 3.0
INTERRUPTED = 130

_WORDS = re.compile(r"[^\t\r]+")


def follow(client: Client, run: str, *, out: TextIO | None = None) -> int:
    """Writes the log until the run is over. Returns the command's exit code: 0 where it is done.

    Over restarts of the service no byte is lost or comes twice.
    """
    write = writer(out or sys.stdout)
    try:
        with Meanwhile(client, run) as meanwhile:
            for piece in client.runs.log(run, waiting=_gone):
                meanwhile.end()
                if piece.text:
                    write(piece.text)
    except KeyboardInterrupt:
        note(f"{run} goes on: `slora logs -f {run}` follows it again, `slora stop {run}` ends it.")
        return INTERRUPTED
    return ended(client.runs.get(run))


def ended(run: Run) -> int:
    """Says how a run ended. Returns the exit code: 1 unless it is done."""
    told = why(run)
    note(f"run {run.id}: {run.status}{f', {told}' if told else ''}")
    if run.status == "done":
        return 0
    if run.detail:
        note(run.detail)
    note(next_step(run))
    return 1


def writer(out: TextIO) -> Callable[[str], None]:
    """Writes pieces of a log: byte for byte, or such that no terminal obeys what a job printed."""
    shown = _harmless if out.isatty() else str

    def write(text: str) -> None:
        out.write(shown(text))
        out.flush()

    return write


class Meanwhile:
    """Tells where a run stands until its log begins: a line that changes, or one a change."""

    def __init__(self, client: Client, run: str) -> None:
        self._client, self._run = client, run
        self._over = Event()
        self._told = ""
        self._shown: Status | None = None
        self._looking = Thread(target=self._look, name="meanwhile", daemon=True)

    def __enter__(self) -> Self:
        self._looking.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """The log speaks now."""
        if not self._over.is_set():
            self._over.set()
            self._looking.join()
            if self._shown is not None:
                self._shown.stop()

    def _look(self) -> None:
        # Not at once: most that is followed has a log already.
        while not self._over.wait(LOOK_S):
            try:
                self._tell(self._client.runs.get(self._run, within=LOOK_WITHIN_S))
            except ClientError:
                continue  # the log's own stream tells of it

    def _tell(self, run: Run) -> None:
        told = run.status + (f": {why(run)}" if why(run) else "")
        if told == self._told or self._over.is_set():
            return
        self._told = told
        if not notes.is_terminal:
            note(told)
        elif self._shown is None:
            self._shown = notes.status(Text(plain(told)))
            self._shown.start()
        else:
            self._shown.update(Text(plain(told)))


def _gone(why_not: str) -> None:
    note(f"the service does not answer ({why_not.rstrip('.')}); trying again …")


def _harmless(text: str) -> str:
    # A tab is no harm, and the CR of a progress bar begins its line anew, as it was meant to.
    return _WORDS.sub(lambda found: plain(found[0]), text)
