"""A Ray cluster of several hosts on this machine, and jobs on its head. Knows no spec."""

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
"""Of shared memory for Ray's objects on a host: a run puts next to nothing there."""
READY = "Ray runtime started"


class RayDidNotStart(Exception):
    """The last lines of the log of the host that did not come up."""


@dataclass(frozen=True)
class HostCluster:
    """Hosts with a Ray on each; the first is the head."""

    hosts: tuple[Host, ...]
    folder: Path
    cpus: tuple[int, ...]
    """Of each host, as its Ray is told."""
    environment: Mapping[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.hosts[0].address}:{PORT}"

    def read_sent_bytes(self) -> tuple[int, ...]:
        """Bytes that left each host so far."""
        return tuple(host.read_sent_bytes() for host in self.hosts)

    def start(self, host: Host) -> None:
        """Ray on one host: at first, or again after `host.kill()`. Raises RayDidNotStart."""
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
        """`python WORDS` on the head, joined to this Ray, what it says in `log`."""
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
                # Of its own, so that Ctrl-C in the terminal is ours to answer.
                start_new_session=True,
                preexec_fn=lambda: _set_up_child(host.namespace),
            )
        self.processes.append(process)
        return process

    def wait_for_processes(self) -> None:
        """After the hosts' end: nothing of them is left in the machine's table of processes."""
        for process in self.processes:
            process.wait()


@contextmanager
def start_ray_hosts(
    count: int = 2, *, cpus: int = 2, head_cpus: int | None = None, link: Link | None = None
) -> Iterator[HostCluster]:
    """A Ray of `count` hosts with token authentication on; nothing is left on leaving.

    `head_cpus`: 0 keeps all workers off the head, where a job's driver is. Raises NotAllowed where
    this machine makes no namespaces.
    """
    with ExitStack() as outer_stack:
        # Short, because Ray's sockets lie below it and a socket's path has 107 characters.
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
    """For a program: SIGTERM is raised like Ctrl-C, so that all it started ends on the way out."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _build_environment(folder: Path) -> dict[str, str]:
    """What Ray and its workers read: the token, the link for gloo, and this checkout's packages."""
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
    """In the child: a host's name of its own, and Linux ends it when its parent dies of SIGKILL."""
    libc = ctypes.CDLL(None)
    with suppress(OSError, AttributeError):
        clone_newuts, pr_set_pdeathsig = 0x04000000, 1
        if libc.unshare(clone_newuts) == 0:
            socket.sethostname(name)
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
