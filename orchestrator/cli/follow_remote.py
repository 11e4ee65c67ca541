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

from jobs.train.monitor.event_text import escape_control
from orchestrator.cli.console import err_console, note
from orchestrator.cli.render.run_table import explain_status, suggest_next_step
from orchestrator.client.client import ServiceClient
from orchestrator.client.errors import ClientError
from orchestrator.schemas.runs import RunResponse

POLL_S = 1.0
POLL_TIMEOUT_S = 3.0
INTERRUPTED = 130

_TEXT_PATTERN = re.compile(r"[^\t\r]+")


def follow_run(client: ServiceClient, run: str, *, out: TextIO | None = None) -> int:
    """Writes the log until the run is over. Returns the command's exit code: 0 where it is done.

    Over restarts of the service no byte is lost or comes twice.
    """
    write = make_writer(out or sys.stdout)
    try:
        with RunStatusLine(client, run) as status:
            for chunk in client.runs.follow_log(run, on_retry=_note_retry):
                status.stop()
                if chunk.text:
                    write(chunk.text)
    except KeyboardInterrupt:
        note(f"{run} goes on: `slora logs -f {run}` follows it again, `slora stop {run}` ends it.")
        return INTERRUPTED
    return report_end(client.runs.get(run))


def report_end(run: RunResponse) -> int:
    """Says how a run ended. Returns the exit code: 1 unless it is done."""
    reason = explain_status(run)
    note(f"run {run.id}: {run.status}{f', {reason}' if reason else ''}")
    if run.status == "done":
        return 0
    if run.detail:
        note(run.detail)
    note(suggest_next_step(run))
    return 1


def make_writer(out: TextIO) -> Callable[[str], None]:
    """Writes pieces of a log: byte for byte, or such that no terminal obeys what a job printed."""
    sanitize = _escape_text if out.isatty() else str

    def write(text: str) -> None:
        out.write(sanitize(text))
        out.flush()

    return write


class RunStatusLine:
    """Tells where a run stands until its log begins: a line that changes, or one a change."""

    def __init__(self, client: ServiceClient, run: str) -> None:
        self._client, self._run = client, run
        self._stopped = Event()
        self._last_text = ""
        self._spinner: Status | None = None
        self._poller = Thread(target=self._poll, name="meanwhile", daemon=True)

    def __enter__(self) -> Self:
        self._poller.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """The log speaks now."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._poller.join()
            if self._spinner is not None:
                self._spinner.stop()

    def _poll(self) -> None:
        # Not at once: most that is followed has a log already.
        while not self._stopped.wait(POLL_S):
            try:
                self._show_status(self._client.runs.get(self._run, timeout_s=POLL_TIMEOUT_S))
            except ClientError:
                continue  # the log's own stream tells of it

    def _show_status(self, run: RunResponse) -> None:
        text = run.status + (f": {explain_status(run)}" if explain_status(run) else "")
        if text == self._last_text or self._stopped.is_set():
            return
        self._last_text = text
        if not err_console.is_terminal:
            note(text)
        elif self._spinner is None:
            self._spinner = err_console.status(Text(escape_control(text)))
            self._spinner.start()
        else:
            self._spinner.update(Text(escape_control(text)))


def _note_retry(reason: str) -> None:
    note(f"the service does not answer ({reason.rstrip('.')}); trying again …")


def _escape_text(text: str) -> str:
    # A tab is no harm, and the CR of a progress bar begins its line anew, as it was meant to.
    return _TEXT_PATTERN.sub(lambda match: escape_control(match[0]), text)
