"""A Ray to run on: the one that RAY_ADDRESS or `ray start` names, or our own, ended with us."""

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
from orchestrator.console import note

START_S = 90.0
"""Seconds that a Ray of our own may take until it takes jobs; 8 where nothing else runs."""
END_S = 5.0
"""Seconds that its processes have to end, asked first and killed then."""
TICK_S = 0.2
TOKEN, LOG, TOKEN_PATH = "token", "start.log", "RAY_AUTH_TOKEN_PATH"
ENDING = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def ray_jobs(*, cpus: int) -> Iterator[JobSubmissionClient]:
    """A client of the Jobs API, with at least `cpus` CPUs where Ray is ours. Raises Unreachable."""
    address = _running()
    if address is not None:
        yield _joined(address)
        return
    with _started(cpus) as client:
        yield client


def _running() -> str | None:
    """Where a Ray is that we are told of: its dashboard's URL, or its own address; None if none."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named.startswith(("http://", "https://")):
        return named
    try:
        found: str | None = canonicalize_bootstrap_address(None)
    except (ValueError, OSError) as wrong:
        raise Unreachable(f"RAY_ADDRESS is {named!r}: {wrong}") from wrong
    return found


def _joined(address: str) -> JobSubmissionClient:
    # A Ray with authentication on leaves its token where clients find it; unless RAY_AUTH_MODE says
    # so, they don't look there.
    logging.getLogger("ray").setLevel(logging.ERROR)
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        client = JobSubmissionClient(_dashboard(address))
    except (ConnectionError, RuntimeError, AuthenticationError) as wrong:
        said = str(wrong).strip().splitlines()[0].rstrip(".")
        raise Unreachable(
            f"Ray at {address} does not answer: {said}. Is it up, and is its token in "
            "~/.ray/auth_token or RAY_AUTH_TOKEN_PATH? Unset RAY_ADDRESS (and `ray stop` one that "
            "is gone) to start one here."
        ) from wrong
    note(f"joined Ray at {address}")
    return client


def _dashboard(address: str) -> str:
    """The URL of the Jobs API; Ray's own address has to be asked for it."""
    if address.startswith("http"):
        return address
    context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    ray.shutdown()
    return f"http://{context.dashboard_url}"


@contextmanager
def _started(cpus: int) -> Iterator[JobSubmissionClient]:
    """A Ray of our own on loopback, with a token of its own; ended and removed on leaving."""
    note("starting Ray on this machine (about 10 s)")
    before = set(psutil.Process().children(recursive=True))
    folder: Path | None = None
    head: subprocess.Popen[bytes] | None = None
    try:
        # A signal that struck inside would leave a folder or a child that nobody knows of.
        with _later(ENDING):
            # Short, because Ray's sockets lie below it and a socket's path has 107 characters.
            folder = Path(tempfile.mkdtemp(prefix="slora-", dir="/tmp"))
            token, port = secrets.token_hex(32), _free_port()
            head = _launched(folder, token, cpus=cpus, port=port)
        yield _client(head, f"http://127.0.0.1:{port}", token, folder / LOG)
    finally:
        # Whoever presses Ctrl-C again wants the end that is already under way.
        with _later(ENDING):
            if head is not None and folder is not None:
                _end(head, folder / TOKEN, spared=before)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _later(signals: set[signal.Signals]) -> Iterator[None]:
    """Inside, the signals wait; they strike on leaving."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _launched(folder: Path, token: str, *, cpus: int, port: int) -> subprocess.Popen[bytes]:
    _adopt_orphans()
    # Ray makes its own folder writable for all, so it gets one inside ours, which is for us alone.
    inner, scratch = folder / "r", folder / "tmp"
    scratch.mkdir()
    with (folder / LOG).open("wb") as log:
        return subprocess.Popen(
            _command(inner, cpus=cpus, dashboard_port=port),
            env=_environment(folder / TOKEN, token, scratch=scratch),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Of its own, so that Ctrl-C in the terminal is ours to answer.
            start_new_session=True,
            preexec_fn=_prepare_child,
        )


def _environment(file: Path, token: str, *, scratch: Path) -> dict[str, str]:
    """What Ray reads: token authentication is on, with a token that lives as long as it does.

    What its processes leave in the temporary folder, as killed ones do, goes away with ours.
    """
    file.touch(mode=0o600)
    file.write_text(token)
    kept = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    return {**kept, "RAY_AUTH_MODE": "token", TOKEN_PATH: str(file), "TMPDIR": str(scratch)}


def _command(folder: Path, *, cpus: int, dashboard_port: int) -> list[str]:
    """`ray start` and not `ray.init`: only it lets a second Ray on the machine have other ports."""
    return [
        str(Path(sys.executable).with_name("ray")),
        *("start", "--head", "--block", "--disable-usage-stats"),
        f"--num-cpus={max(cpus, os.cpu_count() or 1)}",
        f"--temp-dir={folder}",
        f"--node-ip-address={_loopback()}",
        "--port=0",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}",
        "--dashboard-agent-listen-port=0",
    ]


def _loopback() -> str:
    """A loopback address of this process's own: 127.0.0.1 Ray would replace by the host's."""
    number = os.getpid() % (254 * 254)
    return f"127.77.{1 + number // 254}.{1 + number % 254}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _prepare_child() -> None:
    """In the child: signals are heard again, and Linux ends it when its parent dies of SIGKILL."""
    # Not by our handlers, which would raise here, between fork and exec.
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    with suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _client(head: subprocess.Popen[bytes], url: str, token: str, log: Path) -> JobSubmissionClient:
    """The client, once the dashboard answers. Raises Unreachable with the end of Ray's own log."""
    until = time.monotonic() + START_S
    while True:
        try:
            return JobSubmissionClient(url, headers={"Authorization": f"Bearer {token}"})
        except (ConnectionError, RuntimeError) as wrong:
            if head.poll() is not None or time.monotonic() > until:
                lines = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise Unreachable("Ray did not start:\n" + "\n".join(lines)) from wrong
        time.sleep(TICK_S)


def _adopt_orphans() -> None:
    """On Linux, a process below us whose parent dies becomes our child, and so is still found."""
    with suppress(OSError, AttributeError):
        pr_set_child_subreaper = 36
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def _end(head: subprocess.Popen[bytes], token: Path, *, spared: set[psutil.Process]) -> None:
    """Ends every process of our Ray, by number, all at once: none has anything left to save.

    Asked as a whole, `ray start` ends them one after the other, which takes half a minute. A second
    look, and a third, because the first may have met a process that was starting another.
    """
    for signalled in (psutil.Process.terminate, psutil.Process.kill, psutil.Process.kill):
        family = _family(token) - spared
        for process in family:
            with suppress(psutil.NoSuchProcess):
                signalled(process)
        psutil.wait_procs(family, timeout=END_S)
    head.wait()


def _family(token: Path) -> set[psutil.Process]:
    """Every process of our Ray: those below us, and those with the way to its token.

    The second alone is not enough: Ray's agents write their titles over their environment.
    """
    found = set(psutil.Process().children(recursive=True))
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(TOKEN_PATH) == str(token):
                found.add(process)
    return found
