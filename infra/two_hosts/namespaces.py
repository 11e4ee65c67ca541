"""Hosts as network namespaces on a bridge, with links that may be slow."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

INTERFACE = "eth0"
"""Name of the only link of each host."""
JUMBO = 9000
"""MTU of networks between training hosts; it is 1500 elsewhere."""
PREFIX = "two"
"""Prefix of all names; the number after it is the pid of the process that created them."""
END_S = 10.0
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_OURS = re.compile(rf"{PREFIX}(\d+)(?:b|h\d+|-\w+)")


def parse_rate(text: str) -> str:
    """Validate a rate in the format of `tc`, as in 100mbit."""
    if not re.fullmatch(r"[1-9]\d*[kmg]bit", text):
        raise ValueError(f"{text!r} is not a rate: use kbit, mbit or gbit, as in 100mbit")
    return text


class NamespacesUnavailable(Exception):
    """This machine can't create namespaces; the message is one line with the reason."""


@dataclass(frozen=True)
class Link:
    """Link of a host to the network."""

    rate: str | None = None
    """Rate in the format of `tc`, as in 100mbit; None means unlimited."""
    mtu: int = JUMBO


@dataclass(frozen=True)
class Host:
    """A namespace with one link."""

    number: int
    owner: int
    """Pid of the process that created it."""

    @property
    def namespace(self) -> str:
        return f"{PREFIX}{self.owner}-{self.number}"

    @property
    def port(self) -> str:
        """Return the name of the bridge's end of the link, which the machine itself sees."""
        return f"{PREFIX}{self.owner}h{self.number}"

    @property
    def address(self) -> str:
        # The bridge has no address and the machine no route to it, so networks never collide.
        return f"10.77.0.{self.number + 1}"

    def build_command(self, *arguments: str) -> list[str]:
        """Return the command that runs `arguments` on this host."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def read_sent_bytes(self) -> int:
        """Return the bytes that this host has sent, headers included, as the bridge counts them."""
        return int(Path(f"/sys/class/net/{self.port}/statistics/rx_bytes").read_text())

    def kill(self) -> None:
        """Kill every process on this host at once, as a lost machine does."""
        deadline = time.monotonic() + END_S
        while (processes := self._list_processes()) and time.monotonic() < deadline:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)

    def _list_processes(self) -> list[int]:
        output = _run("ip", "netns", "pids", self.namespace, check=False)
        return [int(number) for number in output.split()]


def explain_unavailable() -> str | None:
    """Return one line that says why this machine can't create hosts, or None if it can."""
    try:
        with create_network(1):
            return None
    except NamespacesUnavailable as error:
        return str(error)


@contextmanager
def create_network(count: int, link: Link | None = None) -> Iterator[tuple[Host, ...]]:
    """Provide `count` hosts that reach only each other. Raise NamespacesUnavailable.

    A process can have one network at a time, because the names contain its pid.
    """
    if os.geteuid():
        raise NamespacesUnavailable("network namespaces require root")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise NamespacesUnavailable(f"`{tool}` is not installed (Debian: apt install iproute2)")
    _sweep()
    hosts = tuple(Host(number, os.getpid()) for number in range(count))
    try:
        _build(hosts, link or Link())
        yield hosts
    finally:
        # A second Ctrl-C must not interrupt the cleanup that the first one has started.
        with _hold_signals(STOP_SIGNALS):
            for host in hosts:
                host.kill()
            _remove(os.getpid())


@contextmanager
def _hold_signals(signals: set[signal.Signals]) -> Iterator[None]:
    """Block the signals while the block runs, and deliver them afterwards."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _build(hosts: tuple[Host, ...], link: Link) -> None:
    bridge = _name_bridge(os.getpid())
    try:
        _run("ip", "link", "add", bridge, "mtu", str(link.mtu), "type", "bridge")
        _run("ip", "link", "set", bridge, "up")
        for host in hosts:
            _run("ip", "netns", "add", host.namespace)
            _connect(host, bridge, link)
    except subprocess.CalledProcessError as error:
        raise NamespacesUnavailable(
            f"can't create namespaces: {str(error.stderr).strip()}"
        ) from error


def _connect(host: Host, bridge: str, link: Link) -> None:
    in_namespace = ("ip", "-n", host.namespace)
    _run("ip", "link", "add", host.port, "mtu", str(link.mtu), "type", "veth",
         "peer", "name", INTERFACE, "mtu", str(link.mtu), "netns", host.namespace)  # fmt: skip
    _run("ip", "link", "set", host.port, "master", bridge, "up")
    _run(*in_namespace, "address", "add", f"{host.address}/24", "dev", INTERFACE)
    # Otherwise the kernel passes 64 KB at once, and the counters see a single header for them.
    _run(*in_namespace, "link", "set", "dev", INTERFACE, "gso_max_segs", "1")
    for device in ("lo", INTERFACE):
        _run(*in_namespace, "link", "set", device, "up")
    if link.rate is not None:
        shape = ("root", "tbf", "rate", link.rate, "burst", "64kb", "latency", "50ms")
        _run("tc", "-n", host.namespace, "qdisc", "add", "dev", INTERFACE, *shape)
        _run("tc", "qdisc", "add", "dev", host.port, *shape)


def _name_bridge(owner: int) -> str:
    return f"{PREFIX}{owner}b"


def _remove(owner: int) -> None:
    """Remove everything whose name contains the pid."""
    # Links are removed first, because a namespace removes its own only some moments later.
    for port in os.listdir("/sys/class/net"):
        if port.startswith(f"{PREFIX}{owner}h"):
            _run("ip", "link", "delete", port, check=False)
    for namespace in _list_namespaces():
        if namespace.startswith(f"{PREFIX}{owner}-"):
            _run("ip", "netns", "delete", namespace, check=False)
    _run("ip", "link", "delete", _name_bridge(owner), check=False)


def _sweep() -> None:
    """Remove the remains of processes that were killed."""
    names = [*_list_namespaces(), *os.listdir("/sys/class/net"), *os.listdir("/tmp")]
    owners = {int(match[1]) for name in names if (match := _OURS.fullmatch(name))}
    for owner in owners:
        if Path(f"/proc/{owner}").exists():
            continue
        for namespace in _list_namespaces():
            if namespace.startswith(f"{PREFIX}{owner}-"):
                Host(int(namespace.rpartition("-")[2]), owner).kill()
        _remove(owner)
        for folder in Path("/tmp").glob(f"{PREFIX}{owner}-*"):
            shutil.rmtree(folder, ignore_errors=True)


def _list_namespaces() -> list[str]:
    folder = Path("/var/run/netns")
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _run(*arguments: str, check: bool = True) -> str:
    return subprocess.run(arguments, check=check, capture_output=True, text=True).stdout
