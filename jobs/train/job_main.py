"""How every job ends: a refusal is one message on stderr and an exit code, never a traceback."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.errors import InputError, JobsError, NotInstalled
from jobs.train.monitor.event_text import escape_control
from slora.errors import SloraError

if TYPE_CHECKING:
    from jobs.store.runs.run_store import RunStore

OWN_PACKAGES = ("slora", "jobs", "orchestrator")


def translate_import_error(error: ModuleNotFoundError, extra: str = "train") -> NotInstalled:
    """What to say of a package that is not there; a module of our own is a mistake of ours."""
    package = (error.name or "").partition(".")[0]
    if not package or package in OWN_PACKAGES:
        raise error
    return NotInstalled(package, extra)


def run_job(work: Callable[[], None]) -> int:
    """Runs a job's work. 0 done, 1 it failed, 2 the input is wrong, 3 Ray is not reachable."""
    # Nothing is fetched from a hub, and transformers' own progress bars are noise here.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    try:
        work()
    except InputError as error:
        for fault in error.faults:
            print(escape_control(str(fault)), file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as import_error:
        translated = translate_import_error(import_error)
        print(translated, file=sys.stderr)
        return translated.exit_code
    except JobsError as error:
        print(escape_control(str(error)), file=sys.stderr)
        return error.exit_code
    except SloraError as error:
        print(escape_control(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def record_failure(runs: RunStore) -> Iterator[None]:
    """What fails inside is the run's last event, for whoever was not there to read stderr."""
    try:
        yield
    except JobsError as error:
        runs.events.append({"event": "failed", "time": time.time(), "why": str(error)})
        raise
