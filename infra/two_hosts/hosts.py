"""A Ray cluster of several hosts on this machine, and jobs on its head."""

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
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from infra.two_hosts.namespaces import INTERFACE, PREFIX, Host, Link, create_network

ROOT = Path(__file__).parents[2]
PORT = 6379
START_S = 90.0
STORE_BYTES = 100_000_000
"""Shared memory for Ray's objects on a host, of which a run needs almost none."""
READY = "Ray runtime started"


class RayDidNotStart(Exception):
    """Ray did not start on a host; the message contains the end of its log."""


@dataclass(frozen=True)
class HostCluster:
    """Hosts that run Ray; the first is the head."""

    hosts: tuple[Host, ...]
    folder: Path
    cpus: tuple[int, ...]
    """Number of CPUs of Ray on each host."""
    environment: Mapping[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.hosts[0].address}:{PORT}"

    def read_sent_bytes(self) -> tuple[int, ...]:
        """Return the bytes that each host has sent so far."""
        return tuple(host.read_sent_bytes() for host in self.hosts)

    def start(self, host: Host) -> None:
        """Start Ray on a host, also after `host.kill()`. Raise RayDidNotStart."""
        log = self.folder / f"{host.number}.log"
        log.unlink(missing_ok=True)
        process = self._launch(host, self._build_ray_command(host), log)
        deadline = time.monotonic() + START_S
        while READY not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                last_lines = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise RayDidNotStart(f"Ray on host {host.number}:\n" + "\n".join(last_lines))
            time.sleep(0.1)

    def start_job(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """Start `python ARGUMENTS` on the head, connected to this Ray, with its output in `log`."""
        return self._launch(self.hosts[0], [sys.executable, *arguments], log)

    def _build_ray_command(self, host: Host) -> list[str]:
        head = ["--head", f"--port={PORT}"] if host.number == 0 else [f"--address={self.address}"]
        return [
            str(Path(sys.executable).with_name("ray")),
            *("start", *head, "--block", "--disable-usage-stats"),
            f"--node-ip-address={host.address}",
            f"--num-cpus={self.cpus[host.number]}",
            f"--object-store-memory={STORE_BYTES}",
            f"--temp-dir={self.folder / str(host.number)}",
        ]

    def _launch(self, host: Host, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            process = subprocess.Popen(
                host.build_command(*arguments),
                env=dict(self.environment),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                # A session of its own, so that Ctrl-C reaches only us.
                start_new_session=True,
                preexec_fn=lambda: _set_up_child(host.namespace),
            )
        self.processes.append(process)
        return process

    def wait_for_processes(self) -> None:
        """Wait for all processes, so that no zombies stay."""
        for process in self.processes:
            process.wait()


@contextmanager
def start_ray_hosts(
    count: int = 2, *, cpus: int = 2, head_cpus: int | None = None, link: Link | None = None
) -> Iterator[HostCluster]:
    """Run Ray with token authentication on `count` hosts, and remove everything afterwards.

    With 0 `head_cpus` no worker runs on the head, which runs the driver of a job. Raise
    NamespacesUnavailable if this machine can't create namespaces.
    """
    with ExitStack() as outer_stack:
        # Short, because a path of a socket of Ray has at most 107 characters.
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/tmp"))
        outer_stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with ExitStack() as inner_stack:
            hosts = inner_stack.enter_context(create_network(count, link))
            host_cpus = (cpus if head_cpus is None else head_cpus, *[cpus] * (count - 1))
            cluster = HostCluster(hosts, folder, host_cpus, _build_environment(folder))
            outer_stack.callback(cluster.wait_for_processes)
            outer_stack.push(inner_stack.pop_all())
        for host in hosts:
            cluster.start(host)
        yield cluster


def end_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit, so that everything started is cleaned up."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _build_environment(folder: Path) -> dict[str, str]:
    """Return the variables of Ray and its workers: token, link of gloo, packages."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    scratch = folder / "tmp"
    scratch.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join(filter(None, (str(ROOT), inherited.get("PYTHONPATH"))))
    return {
        **inherited,
        "PYTHONPATH": path,
        "TMPDIR": str(scratch),
        "RAY_ADDRESS": f"{Host(0, os.getpid()).address}:{PORT}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "HF_HUB_OFFLINE": "1",
    }


def _set_up_child(name: str) -> None:
    """Set the host name of a child process, and let Linux kill it if its parent is killed."""
    libc = ctypes.CDLL(None)
    with suppress(OSError, AttributeError):
        clone_newuts, pr_set_pdeathsig = 0x04000000, 1
        if libc.unshare(clone_newuts) == 0:
            socket.sethostname(name)
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
