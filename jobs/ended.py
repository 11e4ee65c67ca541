"""How every job ends: a refusal is one message on stderr and an exit code, never a traceback."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.errors import InputError, JobsError, NotInstalled
from jobs.narrate import plain
from slora.errors import SloraError

if TYPE_CHECKING:
    from jobs.store.runs import RunStore

OURS = ("slora", "jobs", "orchestrator")


def not_installed(missing: ModuleNotFoundError, extra: str = "train") -> NotInstalled:
    """What to say of a package that is not there; a module of our own is a mistake of ours."""
    package = (missing.name or "").partition(".")[0]
    if not package or package in OURS:
        raise missing
    return NotInstalled(package, extra)


def ended(work: Callable[[], None]) -> int:
    """Runs a job's work. 0 done, 1 it failed, 2 the input is wrong, 3 Ray is not reachable."""
    # Nothing is fetched from a hub, and transformers' own progress bars are noise here.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    try:
        work()
    except InputError as wrong:
        for fault in wrong.faults:
            print(plain(str(fault)), file=sys.stderr)
        return wrong.exit_code
    except ModuleNotFoundError as missing:
        refused = not_installed(missing)
        print(refused, file=sys.stderr)
        return refused.exit_code
    except JobsError as wrong:
        print(plain(str(wrong)), file=sys.stderr)
        return wrong.exit_code
    except SloraError as wrong:
        print(plain(str(wrong)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def failure_kept(runs: RunStore) -> Iterator[None]:
    """What fails inside is the run's last event, for whoever was not there to read stderr."""
    try:
        yield
    except JobsError as failed:
        runs.events.append({"event": "failed", "time": time.time(), "why": str(failed)})
        raise
