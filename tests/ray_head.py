"""A Ray head of a test's own, with its token, its processes and its end."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
_TAKES_JOBS = set[str]()
"""The addresses of heads that have taken a job: to ask one takes two processes."""


@dataclass(frozen=True)
class Head:
    """A running head, and the environment of someone who may use it."""

    url: str
    address: str
    environment: dict[str, str]
    process: psutil.Process

    def submit(
        self,
        *words: str,
        environment: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """`ray job submit` of a module with its words; the job's log is its output.

        `environment` is that of the command, `variables` are those of the job's processes.
        """
        command = [RAY, "job", "submit", "--address", self.url]
        if variables:
            command += ["--runtime-env-json", json.dumps({"env_vars": dict(variables)})]
        command += ["--", sys.executable, "-m", *words]
        # Into a pipe it would hold back lines until a block is full, and a test waits for one.
        unbuffered = {"PYTHONUNBUFFERED": "1"}
        return _started(command, {**(environment or self.environment), **unbuffered})

    def run(self, *words: str) -> subprocess.Popen[str]:
        """A module as a driver of its own on this Ray."""
        joined = {**self.environment, "RAY_ADDRESS": self.address}
        return _started([sys.executable, "-m", *words], joined)

    def wait_for_agent(self) -> None:
        """Return once jobs can be submitted, some seconds after `ray start` says that Ray runs."""
        if self.url in _TAKES_JOBS:
            return
        for _ in range(20):
            output, _ = self.submit("this").communicate(timeout=60)
            if "No available agent" not in output:
                _TAKES_JOBS.add(self.url)
                return
        raise AssertionError(f"{self.url} takes no jobs")

    def family(self, title: str = "") -> list[psutil.Process]:
        """The head's own processes, those alone whose title has this in it."""
        processes = []
        for process in self._tree():
            try:
                if title in " ".join(process.cmdline()):
                    processes.append(process)
            except psutil.NoSuchProcess:
                continue
        return processes

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []  # it was killed already, as a host is

    def kill(self) -> None:
        """All at once: asked as a whole, `ray start` ends them one by one, for half a minute."""
        family = self.family()
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=20)


@contextmanager
def ray_head(folder: Path, *, cpus: int = 2, dashboard: int | None = None) -> Iterator[Head]:
    """A head with a token below `folder`; its processes are killed on the way out.

    `dashboard`: its port, where another head is to be found at the address of one before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A process more for each start of workers, which looks for drained nodes; no test has one.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # Not Ray's 15: whatever else the machine does would starve a test that waits for a step.
        "RAY_worker_niceness": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    # The agent's ports too: two heads on one machine would fight over Ray's own choice.
    port, free, agent, agent_grpc = free_ports(4)
    dashboard = dashboard or free
    link = _short(folder)
    command = [RAY, "start", "--head", "--block", f"--port={port}", f"--num-cpus={cpus}"]
    # As `slora train` starts its own: nobody reads the workers' output from the head.
    command += ["--include-log-monitor=false"]
    command += [f"--dashboard-port={dashboard}", "--node-ip-address=127.0.0.1"]
    command += [f"--dashboard-agent-listen-port={agent}"]
    command += [f"--dashboard-agent-grpc-port={agent_grpc}"]
    started = _started([*command, f"--temp-dir={link}"], environment)
    assert started.stdout is not None
    for line in started.stdout:
        if "Ray runtime started" in line:
            break
    head = Head(
        f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", environment,
        psutil.Process(started.pid),
    )  # fmt: skip
    try:
        yield head
    finally:
        head.kill()
        started.communicate()
        link.unlink()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at right now."""
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _started(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _short(folder: Path) -> Path:
    """A link with a short name: Ray's sockets lie below it, and their paths have 107 characters."""
    link = Path("/tmp") / f"ray-head-{secrets.token_hex(4)}"
    link.symlink_to(folder.resolve())
    return link
