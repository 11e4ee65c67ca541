"""Processes that outlive us: started on their own, known again by number and start, and ended."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from infra.local.state import ProcessIdentity

MARK = "SLORA_UP_MARK"
KILL_S = 5.0


def start_process(
    command: Sequence[str], *, environment: Mapping[str, str], mark: str, log: Path, cwd: Path
) -> subprocess.Popen[bytes]:
    """In a session of its own, so that Ctrl-C here and the end of this terminal don't reach it."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env={**environment, MARK: mark},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def read_identity(pid: int) -> ProcessIdentity | None:
    """The process as it is known again; None where there is none."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessIdentity(pid, _read_start(process))
    except psutil.Error:
        return None


def is_alive(identity: ProcessIdentity | None) -> bool:
    """Whether this very process still runs, and not a later one of its number."""
    return identity is not None and read_identity(identity.pid) == identity


def find_processes(mark: str, leaders: Iterable[ProcessIdentity]) -> set[psutil.Process]:
    """Every process that was started under the mark, and those below a leader that lives.

    Both, because Ray's agents write their titles over their environment, and because what a killed
    leader leaves behind has no parent of ours.
    """
    processes = set[psutil.Process]()
    for leader in leaders:
        if is_alive(leader):
            with suppress(psutil.Error):
                process = psutil.Process(leader.pid)
                processes |= {process, *process.children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                processes |= {process, *process.children(recursive=True)}
    return {process for process in processes if process.pid != os.getpid()}


def stop_processes(processes: set[psutil.Process], *, timeout_s: float) -> None:
    """Asks them all at once to end, and kills those that have not after a while."""
    for send_signal, wait_s in (
        (psutil.Process.terminate, timeout_s),
        (psutil.Process.kill, KILL_S),
    ):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                send_signal(process)
        _, processes = psutil.wait_procs(processes, timeout=wait_s)


def find_free_port(preferred: int) -> int:
    """This port if nobody has it, or else one that nobody has."""
    for port in (preferred, 0):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                listener.bind(("127.0.0.1", port))
                number: int = listener.getsockname()[1]
                return number
    raise OSError("no port is free")


def _read_start(process: psutil.Process) -> str:
    """When it was started. On Linux in ticks of this boot, which no change of the clock moves."""
    with suppress(OSError, IndexError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name is in brackets and may hold anything, so what follows the last one is read.
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return f"{boot} {fields[19]}"
    return f"{process.create_time():.3f}"
