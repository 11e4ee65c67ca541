"""Connect to a running Ray, or start one and end it again."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from jobs.errors import Fault, InputError
from jobs.network import exempt_loopback
from jobs.train.cluster.ray_address import (
    START_TIMEOUT_S,
    STARTING_VARIABLE,
    VARIABLE,
    is_listening,
)
from orchestrator.cli.console import note
from orchestrator.cli.job_clients.find_ray import find_running_ray
from orchestrator.cli.job_clients.local_driver import LocalDriver, make_start_check

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

END_TIMEOUT_S = 5.0
"""Seconds for its processes to end after SIGKILL."""
END_ROUNDS = 10
FOLDERS, MAX_PARENT = ("/tmp", "/var/tmp"), 24
NOT_INHERITED = ("RAY_AUTH_TOKEN", "RAY_ADDRESS")
"""Variables for another Ray than the one that starts."""
TOKEN_FILE, LOG_FILE, TOKEN_PATH_VARIABLE = "token", "start.log", "RAY_AUTH_TOKEN_PATH"
END_SIGNALS = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def connect_ray(*, cpus: int) -> Iterator[JobSubmissionClient | LocalDriver]:
    """Yield a client of the Jobs API, or the driver of a Ray started here, with `cpus` or more."""
    address = find_running_ray()
    if address is not None:
        # Imported here: Ray's client loads for half a second, and a Ray of our own needs none.
        from orchestrator.cli.job_clients.join_ray import join_ray

        yield join_ray(address)
        return
    with _start_ray(cpus) as client:
        yield client


@contextmanager
def _start_ray(cpus: int) -> Iterator[LocalDriver]:
    """Start a Ray on loopback with its own token; end it and remove its files on exit.

    The driver is yielded at once: it waits for Ray itself.
    """
    note("Starting Ray on this machine (about 5 s) ...")
    existing = set(psutil.Process().children(recursive=True))
    folder: Path | None = None
    head: subprocess.Popen[bytes] | None = None
    try:
        # A signal in between could leave a folder or a child that nobody knows of.
        with _hold_signals(END_SIGNALS):
            folder = _make_folder()
            ports = RayPorts(*_find_free_ports(3))
            environment = _build_environment(
                folder / TOKEN_FILE, secrets.token_hex(32), scratch=folder / "tmp"
            )
            head = _launch_head(folder, environment, cpus=cpus, ports=ports)
        yield _make_driver(head, folder, environment, ports)
    finally:
        # A second Ctrl-C must not interrupt the shutdown.
        with _hold_signals(END_SIGNALS):
            if head is not None and folder is not None:
                _end_ray(head, folder / TOKEN_FILE, excluded=existing)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _make_folder() -> Path:
    """Make a private folder with a short path: Ray's sockets are inside, with 107 characters."""
    parents = [parent for parent in (*FOLDERS, tempfile.gettempdir()) if len(parent) <= MAX_PARENT]
    for parent in dict.fromkeys(parents):
        with suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="slora-", dir=parent))
    problem = f"none of {', '.join(dict.fromkeys(parents))} can be written, and Ray needs a folder"
    remedy = f"Set it to a folder that you may write to, with at most {MAX_PARENT} characters."
    raise InputError([Fault("TMPDIR", problem, remedy)])


@contextmanager
def _hold_signals(signals: set[signal.Signals]) -> Iterator[None]:
    """Hold the signals back inside the block; they are delivered on exit."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@dataclass(frozen=True)
class RayPorts:
    """Ports of a Ray that starts: those that its driver must know before."""

    gcs: int
    raylet: int
    dashboard: int


def _make_driver(
    head: subprocess.Popen[bytes], folder: Path, environment: dict[str, str], ports: RayPorts
) -> LocalDriver:
    """Return the driver of the Ray that starts."""
    host = _choose_loopback()
    raylet = f"{host}:{ports.raylet}"
    variables = {
        VARIABLE: f"{host}:{ports.gcs}",
        STARTING_VARIABLE: raylet,
        # Nobody drains the machine of a Ray that lives as long as its run.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    return LocalDriver(
        folder,
        {**environment, **variables},
        check_ray=make_start_check(
            head,
            folder / LOG_FILE,
            is_ready=lambda: is_listening(raylet),
            timeout_s=START_TIMEOUT_S,
        ),
        prepare_child=_prepare_child,
    )


def _launch_head(
    folder: Path, environment: dict[str, str], *, cpus: int, ports: RayPorts
) -> subprocess.Popen[bytes]:
    _claim_orphans()
    # Ray makes its own folder writable for all, so it gets one inside ours, which is private.
    ray_folder = folder / "r"
    (folder / "tmp").mkdir()
    with (folder / LOG_FILE).open("wb") as log:
        return subprocess.Popen(
            _build_command(ray_folder, cpus=cpus, ports=ports),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Its own session, so that Ctrl-C in the terminal reaches only this process.
            start_new_session=True,
            preexec_fn=_prepare_child,
        )


def _build_environment(token_file: Path, token: str, *, scratch: Path) -> dict[str, str]:
    """Return Ray's environment: token authentication is on, with a token for its lifetime.

    Files that its processes leave in the temporary folder, for example killed ones, are removed
    with it.
    """
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    exempt_loopback(environment, hosts=(_choose_loopback(),))
    return {
        **environment,
        "RAY_AUTH_MODE": "token",
        TOKEN_PATH_VARIABLE: str(token_file),
        "TMPDIR": str(scratch),
    }


def _build_command(folder: Path, *, cpus: int, ports: RayPorts) -> list[str]:
    """Return a `ray start` command: with `ray.init`, a second Ray can't use other ports."""
    return [
        str(Path(sys.executable).with_name("ray")),
        *("start", "--head", "--block", "--disable-usage-stats"),
        f"--num-cpus={max(cpus, os.cpu_count() or 1)}",
        f"--temp-dir={folder}",
        f"--node-ip-address={_choose_loopback()}",
        f"--port={ports.gcs}",
        f"--node-manager-port={ports.raylet}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports.dashboard}",
        # Nobody reads the workers' output here: the driver connects without it.
        "--include-log-monitor=false",
        "--dashboard-agent-listen-port=0",
    ]


def _choose_loopback() -> str:
    """Return a loopback address for this process: Ray would replace 127.0.0.1 by the host's."""
    number = os.getpid() % (254 * 254)
    return f"127.77.{1 + number // 254}.{1 + number % 254}"


def _find_free_ports(count: int) -> list[int]:
    """Return ports that are free on every address, all different."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("", 0))
        return [listener.getsockname()[1] for listener in listeners]


def _prepare_child() -> None:
    """Restore signals in the child, and let Linux end it if its parent dies of SIGKILL."""
    # Our handlers would raise here, between fork and exec.
    for signal_number in END_SIGNALS:
        signal.signal(signal_number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
    with suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _claim_orphans() -> None:
    """Adopt processes below this one whose parent dies (on Linux), so that they can be found."""
    with suppress(OSError, AttributeError):
        pr_set_child_subreaper = 36
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def _end_ray(head: subprocess.Popen[bytes], token: Path, *, excluded: set[psutil.Process]) -> None:
    """Kill every process of this Ray at once, by process id: none has anything to save.

    `ray start` would end them one after the other, which takes half a minute, and after SIGTERM the
    raylet waits some seconds. Processes are listed again, because a round may have missed one that
    was just starting.
    """
    for _ in range(END_ROUNDS):
        processes = _find_processes(token) - excluded
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _, alive = psutil.wait_procs(processes, timeout=END_TIMEOUT_S)
        if alive or not processes:
            break
    try:
        head.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        # A process that hangs in the kernel, on a dead disk for instance, can't be ended.
        note(f"Ray's process {head.pid} did not end within {END_TIMEOUT_S:g} s.")


def _find_processes(token: Path) -> set[psutil.Process]:
    """Return every process of this Ray: descendants, and those with its token's path.

    The second criterion alone would not suffice: Ray's agents overwrite their environment with
    titles.
    """
    processes = set(psutil.Process().children(recursive=True))
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(TOKEN_PATH_VARIABLE) == str(token):
                processes.add(process)
    return processes
