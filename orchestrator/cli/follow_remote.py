"""Follow a run of the service: print its log as it is written, and its status until then."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import closing
from threading import Event, Thread
from typing import TextIO

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
    """Print the log until the run ends. Return the exit code of the command: 0 if it succeeded.

    No byte is lost or repeated across restarts of the service.
    """
    write = make_writer(out or sys.stdout)
    try:
        with closing(RunStatusLine(client, run)) as status:
            for chunk in client.runs.follow_log(run, on_retry=_note_retry):
                status.close()
                if chunk.text:
                    write(chunk.text)
    except KeyboardInterrupt:
        note(f"{run} continues. Follow it: `slora logs -f {run}`. Stop it: `slora stop {run}`.")
        return INTERRUPTED
    return report_end(client.runs.get(run))


def report_end(run: RunResponse) -> int:
    """Print how a run ended. Return the exit code: 1 unless it succeeded."""
    reason = explain_status(run)
    note(f"run {run.id}: {run.status}{f', {reason}' if reason else ''}")
    if run.status == "done":
        return 0
    if run.detail:
        note(run.detail)
    note(suggest_next_step(run))
    return 1


def make_writer(out: TextIO) -> Callable[[str], None]:
    """Return a writer of log text that escapes control characters if `out` is a terminal."""
    sanitize = _escape_text if out.isatty() else str

    def write(text: str) -> None:
        out.write(sanitize(text))
        out.flush()

    return write


class RunStatusLine:
    """Shows a run's status until its log starts, in a live line or a line per change."""

    def __init__(self, client: ServiceClient, run: str) -> None:
        self._client, self._run = client, run
        self._stopped = Event()
        self._last_text = ""
        self._spinner: Status | None = None
        self._poller = Thread(target=self._poll, name="run-status", daemon=True)
        self._poller.start()

    def close(self) -> None:
        """Stop showing the status: the log has started."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._poller.join()
            if self._spinner is not None:
                self._spinner.stop()

    def _poll(self) -> None:
        # Wait first: most runs already have a log when they are followed.
        while not self._stopped.wait(POLL_S):
            try:
                self._show_status(self._client.runs.get(self._run, timeout_s=POLL_TIMEOUT_S))
            except ClientError:
                continue  # the stream of the log reports it

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
    note(f"The service does not answer ({reason.rstrip('.')}); trying again …")


def _escape_text(text: str) -> str:
    # Tabs are harmless, and a progress bar needs its CR to rewrite its line.
    return _TEXT_PATTERN.sub(lambda match: escape_control(match[0]), text)
