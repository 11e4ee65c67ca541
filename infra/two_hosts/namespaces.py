"""Hosts as network namespaces on a bridge, with links that may be slow. Knows nothing of Ray."""

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
"""What every host calls its only link."""
JUMBO = 9000
"""Bytes of a frame, as networks between training hosts have them; 1500 elsewhere."""
PREFIX = "two"
"""Of every name here; the number behind it is the process that made it."""
END_S = 10.0
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_OURS = re.compile(rf"{PREFIX}(\d+)(?:b|h\d+|-\w+)")


def parse_rate(text: str) -> str:
    """A rate as `tc` takes it, e.g. 100mbit."""
    if not re.fullmatch(r"[1-9]\d*[kmg]bit", text):
        raise ValueError(f"{text!r} is no rate: write kbit, mbit or gbit, as in 100mbit")
    return text


class NamespacesUnavailable(Exception):
    """This machine makes no namespaces for us; the message is one line that says why."""


@dataclass(frozen=True)
class Link:
    """How a host hangs on the network."""

    rate: str | None = None
    """As `tc` writes it, e.g. 100mbit; None is as fast as the machine."""
    mtu: int = JUMBO


@dataclass(frozen=True)
class Host:
    """One namespace with one link."""

    number: int
    owner: int
    """The process that made it."""

    @property
    def namespace(self) -> str:
        return f"{PREFIX}{self.owner}-{self.number}"

    @property
    def port(self) -> str:
        """The bridge's end of the link, which the machine itself sees."""
        return f"{PREFIX}{self.owner}h{self.number}"

    @property
    def address(self) -> str:
        # The bridge has no address and the machine no route to it, so two networks never meet.
        return f"10.77.0.{self.number + 1}"

    def build_command(self, *arguments: str) -> list[str]:
        """The command that runs `words` on this host."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def read_sent_bytes(self) -> int:
        """Bytes that left this host, headers included: what its end of the bridge received."""
        return int(Path(f"/sys/class/net/{self.port}/statistics/rx_bytes").read_text())

    def kill(self) -> None:
        """Ends every process on this host at once, as a lost machine does."""
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
    """Why this machine makes no hosts, in one line; None where it does."""
    try:
        with create_network(1):
            return None
    except NamespacesUnavailable as error:
        return str(error)


@contextmanager
def create_network(count: int, link: Link | None = None) -> Iterator[tuple[Host, ...]]:
    """`count` hosts that see each other and nothing else; gone on leaving. Raises NotAllowed.

    One at a time in a process: names carry its number, so that several processes may have theirs.
    """
    if os.geteuid():
        raise NamespacesUnavailable("network namespaces need root, and this is another user")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise NamespacesUnavailable(
                f"there is no `{tool}` on this machine (Debian: apt install iproute2)"
            )
    _sweep()
    hosts = tuple(Host(number, os.getpid()) for number in range(count))
    try:
        _build(hosts, link or Link())
        yield hosts
    finally:
        # Whoever presses Ctrl-C again wants the end that is already under way.
        with _hold_signals(STOP_SIGNALS):
            for host in hosts:
                host.kill()
            _remove(os.getpid())


@contextmanager
def _hold_signals(signals: set[signal.Signals]) -> Iterator[None]:
    """Inside, the signals wait; they strike on leaving."""
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
        raise NamespacesUnavailable(f"no namespaces here: {str(error.stderr).strip()}") from error


def _connect(host: Host, bridge: str, link: Link) -> None:
    in_namespace = ("ip", "-n", host.namespace)
    _run("ip", "link", "add", host.port, "mtu", str(link.mtu), "type", "veth",
         "peer", "name", INTERFACE, "mtu", str(link.mtu), "netns", host.namespace)  # fmt: skip
    _run("ip", "link", "set", host.port, "master", bridge, "up")
    _run(*in_namespace, "address", "add", f"{host.address}/24", "dev", INTERFACE)
    # Else the kernel hands over 64 KB at once, and the counters see one header for all of it.
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
    """Everything that carries this process's number."""
    # The links first and by name: a namespace takes its own along, but some moments later.
    for port in os.listdir("/sys/class/net"):
        if port.startswith(f"{PREFIX}{owner}h"):
            _run("ip", "link", "delete", port, check=False)
    for namespace in _list_namespaces():
        if namespace.startswith(f"{PREFIX}{owner}-"):
            _run("ip", "netns", "delete", namespace, check=False)
    _run("ip", "link", "delete", _name_bridge(owner), check=False)


def _sweep() -> None:
    """Removes what processes left that were killed before they could."""
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
