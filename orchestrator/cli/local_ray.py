"""Connect to a running Ray, as of RAY_ADDRESS or `ray start`, or start one and end it again."""

from __future__ import annotations

import ctypes
import logging
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
import ray
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from jobs.errors import Unreachable
from orchestrator.cli.console import note

START_TIMEOUT_S = 90.0
"""Seconds until a Ray started here must accept jobs; it takes 8 on an idle machine."""
END_TIMEOUT_S = 5.0
"""Seconds for its processes to end after each signal: SIGTERM first, then SIGKILL."""
POLL_S = 0.2
TOKEN_FILE, LOG_FILE, TOKEN_PATH_VARIABLE = "token", "start.log", "RAY_AUTH_TOKEN_PATH"
END_SIGNALS = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def connect_ray(*, cpus: int) -> Iterator[JobSubmissionClient]:
    """Yield a client of the Jobs API. A Ray started here has `cpus` CPUs or more."""
    address = _find_running_ray()
    if address is not None:
        yield _join_ray(address)
        return
    with _start_ray(cpus) as client:
        yield client


def _find_running_ray() -> str | None:
    """Return the configured Ray's dashboard URL or its own address, None if there is none."""
    configured = os.environ.get("RAY_ADDRESS", "")
    if configured.startswith(("http://", "https://")):
        return configured
    try:
        address: str | None = canonicalize_bootstrap_address(None)
    except (ValueError, OSError) as error:
        raise Unreachable(
            f"RAY_ADDRESS is {configured!r}, which cannot be used: {error}"
        ) from error
    return address


def _join_ray(address: str) -> JobSubmissionClient:
    # A Ray with authentication leaves its token where clients can find it, but they only look for
    # it if RAY_AUTH_MODE says so.
    logging.getLogger("ray").setLevel(logging.ERROR)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        client = JobSubmissionClient(_resolve_dashboard_url(address))
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise Unreachable(
            f"Ray at {address} does not answer: {reason}. Check that it runs, and that its token "
            "is in ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH. To start a Ray here instead, unset "
            "RAY_ADDRESS and run `ray stop`."
        ) from error
    note(f"Connected to Ray at {address}.")
    return client


def _resolve_dashboard_url(address: str) -> str:
    """Return the URL of the Jobs API; Ray itself has to be asked for it."""
    if address.startswith("http"):
        return address
    context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    ray.shutdown()
    return f"http://{context.dashboard_url}"


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
            # The path is short because Ray's sockets are inside, and a socket's path has 107
            # characters.
            folder = Path(tempfile.mkdtemp(prefix="slora-", dir="/tmp"))
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
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    return {
        **inherited,
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
            return JobSubmissionClient(url, headers={"Authorization": f"Bearer {token}"})
        except (ConnectionError, RuntimeError) as error:
            if head.poll() is not None or time.monotonic() > deadline:
                lines = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise Unreachable("Ray did not start:\n" + "\n".join(lines)) from error
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
    head.wait()


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
