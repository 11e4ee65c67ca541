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
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from ray.job_submission import JobSubmissionClient

from jobs.errors import Fault, InputError, Unreachable
from jobs.network import exempt_loopback
from orchestrator.cli.console import note
from orchestrator.cli.join_ray import CONNECTION_ERRORS, BoundedClient, find_running_ray, join_ray

START_TIMEOUT_S = 90.0
"""Seconds until a Ray started here must accept jobs; it takes 8 on an idle machine."""
END_TIMEOUT_S = 5.0
"""Seconds for its processes to end after each signal: SIGTERM first, then SIGKILL."""
POLL_S = 0.2
FOLDERS, MAX_PARENT = ("/tmp", "/var/tmp"), 24
NOT_INHERITED = ("RAY_AUTH_TOKEN", "RAY_ADDRESS")
"""Variables for another Ray than the one that starts."""
TOKEN_FILE, LOG_FILE, TOKEN_PATH_VARIABLE = "token", "start.log", "RAY_AUTH_TOKEN_PATH"
END_SIGNALS = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def connect_ray(*, cpus: int) -> Iterator[JobSubmissionClient]:
    """Yield a client of the Jobs API. A Ray started here has `cpus` CPUs or more."""
    address = find_running_ray()
    if address is not None:
        yield join_ray(address)
        return
    with _start_ray(cpus) as client:
        yield client


@contextmanager
def _start_ray(cpus: int) -> Iterator[JobSubmissionClient]:
    """Start a Ray on loopback with its own token; end it and remove its files on exit."""
    note("Starting Ray on this machine (about 10 s) ...")
    existing = set(psutil.Process().children(recursive=True))
    folder: Path | None = None
    head: subprocess.Popen[bytes] | None = None
    try:
        # A signal in between could leave a folder or a child that nobody knows of.
        with _hold_signals(END_SIGNALS):
            folder = _make_folder()
            token, port = secrets.token_hex(32), _find_free_port()
            head = _launch_head(folder, token, cpus=cpus, port=port)
        yield _wait_for_client(head, f"http://127.0.0.1:{port}", token, folder / LOG_FILE)
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


def _launch_head(folder: Path, token: str, *, cpus: int, port: int) -> subprocess.Popen[bytes]:
    _claim_orphans()
    # Ray makes its own folder writable for all, so it gets one inside ours, which is private.
    ray_folder, scratch = folder / "r", folder / "tmp"
    scratch.mkdir()
    with (folder / LOG_FILE).open("wb") as log:
        return subprocess.Popen(
            _build_command(ray_folder, cpus=cpus, dashboard_port=port),
            env=_build_environment(folder / TOKEN_FILE, token, scratch=scratch),
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


def _build_command(folder: Path, *, cpus: int, dashboard_port: int) -> list[str]:
    """Return a `ray start` command: with `ray.init`, a second Ray can't use other ports."""
    return [
        str(Path(sys.executable).with_name("ray")),
        *("start", "--head", "--block", "--disable-usage-stats"),
        f"--num-cpus={max(cpus, os.cpu_count() or 1)}",
        f"--temp-dir={folder}",
        f"--node-ip-address={_choose_loopback()}",
        "--port=0",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}",
        "--dashboard-agent-listen-port=0",
    ]


def _choose_loopback() -> str:
    """Return a loopback address for this process: Ray would replace 127.0.0.1 by the host's."""
    number = os.getpid() % (254 * 254)
    return f"127.77.{1 + number // 254}.{1 + number % 254}"


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _prepare_child() -> None:
    """Restore signals in the child, and let Linux end it if its parent dies of SIGKILL."""
    # Our handlers would raise here, between fork and exec.
    for signal_number in END_SIGNALS:
        signal.signal(signal_number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
    with suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _wait_for_client(
    head: subprocess.Popen[bytes], url: str, token: str, log: Path
) -> JobSubmissionClient:
    """Return the client once the dashboard answers. Raise Unreachable with the end of Ray's log."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return BoundedClient(url, headers={"Authorization": f"Bearer {token}"})
        except CONNECTION_ERRORS as error:
            is_late = time.monotonic() > deadline
            if head.poll() is not None or is_late:
                problem = f" within {START_TIMEOUT_S:.0f} s ({error})" if is_late else ""
                lines = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise Unreachable("\n".join([f"Ray did not start{problem}:", *lines])) from error
        time.sleep(POLL_S)


def _claim_orphans() -> None:
    """Adopt processes below this one whose parent dies (on Linux), so that they can be found."""
    with suppress(OSError, AttributeError):
        pr_set_child_subreaper = 36
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def _end_ray(head: subprocess.Popen[bytes], token: Path, *, excluded: set[psutil.Process]) -> None:
    """End every process of this Ray at once, by process id: none has anything to save.

    `ray start` would end them one after the other, which takes half a minute. Processes are listed
    again for each signal, because the first round may have missed one that was just starting.
    """
    for send_signal in (psutil.Process.terminate, psutil.Process.kill, psutil.Process.kill):
        processes = _find_processes(token) - excluded
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                send_signal(process)
        psutil.wait_procs(processes, timeout=END_TIMEOUT_S)
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
