"""Processes that outlive us: started detached, identified by pid and start time, and stopped."""

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
    """Start a process in its own session, so that Ctrl-C and closing the terminal don't end it."""
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
    """Return the identity of a process, or None if there is none."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessIdentity(pid, _read_start(process))
    except psutil.Error:
        return None


def is_alive(identity: ProcessIdentity | None) -> bool:
    """Return whether exactly this process runs, not a later one with the same pid."""
    return identity is not None and read_identity(identity.pid) == identity


def find_processes(mark: str, leaders: Iterable[ProcessIdentity]) -> set[psutil.Process]:
    """Return every process with the mark, and the descendants of living leaders.

    Both are needed: Ray's agents overwrite their environment with their titles, and the orphans of
    a killed leader have no parent of ours.
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
    """Terminate all processes at once, and kill those that are still running after `timeout_s`."""
    for send_signal, wait_s in (
        (psutil.Process.terminate, timeout_s),
        (psutil.Process.kill, KILL_S),
    ):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                send_signal(process)
        _, processes = psutil.wait_procs(processes, timeout=wait_s)


def find_free_port(preferred: int) -> int:
    """Return the preferred port if it is free, otherwise any free port."""
    for port in (preferred, 0):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                listener.bind(("127.0.0.1", port))
                number: int = listener.getsockname()[1]
                return number
    raise OSError("no port is free")


def _read_start(process: psutil.Process) -> str:
    """Return the start time, on Linux in ticks since boot, which ignore changes of the clock."""
    with suppress(OSError, IndexError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The process name is in parentheses and may contain any, so split at the last one.
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return f"{boot} {fields[19]}"
    return f"{process.create_time():.3f}"
