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

from infra.two_hosts.namespaces import INTERFACE, PREFIX, Host, Link, network

ROOT = Path(__file__).parents[2]
PORT = 6379
START_S = 90.0
STORE_BYTES = 100_000_000
"""Of shared memory for Ray's objects on a host: a run puts next to nothing there."""
READY = "Ray runtime started"


class RayDidNotStart(Exception):
    """The last lines of the log of the host that did not come up."""


@dataclass(frozen=True)
class Cluster:
    """Hosts with a Ray on each; the first is the head."""

    hosts: tuple[Host, ...]
    folder: Path
    cpus: tuple[int, ...]
    """Of each host, as its Ray is told."""
    environment: Mapping[str, str]
    launched: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.hosts[0].address}:{PORT}"

    def sent(self) -> tuple[int, ...]:
        """Bytes that left each host so far."""
        return tuple(host.sent() for host in self.hosts)

    def start(self, host: Host) -> None:
        """Ray on one host: at first, or again after `host.kill()`. Raises RayDidNotStart."""
        log = self.folder / f"{host.number}.log"
        log.unlink(missing_ok=True)
        started = self._launch(host, self._ray(host), log)
        until = time.monotonic() + START_S
        while READY not in log.read_text(errors="replace"):
            if started.poll() is not None or time.monotonic() > until:
                said = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise RayDidNotStart(f"Ray on host {host.number}:\n" + "\n".join(said))
            time.sleep(0.1)

    def job(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """`python WORDS` on the head, joined to this Ray, what it says in `log`."""
        return self._launch(self.hosts[0], [sys.executable, *words], log)

    def _ray(self, host: Host) -> list[str]:
        head = ["--head", f"--port={PORT}"] if host.number == 0 else [f"--address={self.address}"]
        return [
            str(Path(sys.executable).with_name("ray")),
            *("start", *head, "--block", "--disable-usage-stats"),
            f"--node-ip-address={host.address}",
            f"--num-cpus={self.cpus[host.number]}",
            f"--object-store-memory={STORE_BYTES}",
            f"--temp-dir={self.folder / str(host.number)}",
        ]

    def _launch(self, host: Host, words: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            launched = subprocess.Popen(
                host.inside(*words),
                env=dict(self.environment),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                # Of its own, so that Ctrl-C in the terminal is ours to answer.
                start_new_session=True,
                preexec_fn=lambda: _become(host.namespace),
            )
        self.launched.append(launched)
        return launched

    def reap(self) -> None:
        """After the hosts' end: nothing of them is left in the machine's table of processes."""
        for process in self.launched:
            process.wait()


@contextmanager
def ray_hosts(
    count: int = 2, *, cpus: int = 2, head_cpus: int | None = None, link: Link | None = None
) -> Iterator[Cluster]:
    """A Ray of `count` hosts with token authentication on; nothing is left on leaving.

    `head_cpus`: 0 keeps all workers off the head, where a job's driver is. Raises NotAllowed where
    this machine makes no namespaces.
    """
    with ExitStack() as leaving:
        # Short, because Ray's sockets lie below it and a socket's path has 107 characters.
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/tmp"))
        leaving.callback(shutil.rmtree, folder, ignore_errors=True)
        with ExitStack() as before:
            hosts = before.enter_context(network(count, link))
            each = (cpus if head_cpus is None else head_cpus, *[cpus] * (count - 1))
            cluster = Cluster(hosts, folder, each, _environment(folder))
            leaving.callback(cluster.reap)
            leaving.push(before.pop_all())
        for host in hosts:
            cluster.start(host)
        yield cluster


def end_on_sigterm() -> None:
    """For a program: SIGTERM is raised like Ctrl-C, so that all it started ends on the way out."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _environment(folder: Path) -> dict[str, str]:
    """What Ray and its workers read: the token, the link for gloo, and this checkout's packages."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    scratch = folder / "tmp"
    scratch.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return {
        **kept,
        "PYTHONPATH": path,
        "TMPDIR": str(scratch),
        "RAY_ADDRESS": f"{Host(0, os.getpid()).address}:{PORT}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "HF_HUB_OFFLINE": "1",
    }


def _become(name: str) -> None:
    """In the child: a host's name of its own, and Linux ends it when its parent dies of SIGKILL."""
    libc = ctypes.CDLL(None)
    with suppress(OSError, AttributeError):
        clone_newuts, pr_set_pdeathsig = 0x04000000, 1
        if libc.unshare(clone_newuts) == 0:
            socket.sethostname(name)
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
