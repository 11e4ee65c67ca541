"""A vLLM server on this machine as a child process: started, awaited, given its adapters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from jobs.errors import JobsError, NotInstalled
from slora.serving.launch import ServerOptions, build_command, build_environment, link_package

CHECKOUT = Path(__file__).parents[4]
POLL_S, REQUEST_S = 0.5, 600.0
STOP_GRACE_S = 20.0


class ServerFailed(JobsError):
    """The server ended before it was ready, or refused an adapter."""

    exit_code = 1


def find_vllm_python() -> Path:
    """Return the Python that has vLLM: this one, or the checkout's environment for serving.

    Raise NotInstalled.
    """
    if find_spec("vllm") is not None:
        return Path(sys.executable)
    python = CHECKOUT / ".cache/serving/venv/bin/python"
    if python.exists():
        return python
    raise NotInstalled("vllm", "serve")


def make_server_environment(
    scratch: Path, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the variables of a server, which reads the code of this checkout if this is one.

    `scratch` is a folder that lives as long as the server.
    """
    variables = build_environment(environment)
    # An installed package is in the server's own environment, and the rest of ours must not be.
    variables.pop("PYTHONPATH", None)
    if (CHECKOUT / "pyproject.toml").is_file():
        variables["PYTHONPATH"] = str(link_package(scratch / "code"))
    return variables


class ModelServer:
    """A server in the foreground, which ends with this process."""

    def __init__(self, options: ServerOptions, python: Path, scratch: Path) -> None:
        self.url = f"http://{options.host}:{options.port}"
        key = os.environ.get("VLLM_API_KEY")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._process = subprocess.Popen(
            build_command(str(python), options),
            env=make_server_environment(scratch),
            stdin=subprocess.DEVNULL,
            # Ctrl-C is ours alone to pass on: vLLM ends its engine by itself.
            start_new_session=True,
        )

    def wait_until_ready(self) -> None:
        """Return when it answers. Raise ServerFailed if it ends before."""
        while not self._is_ready():
            if self._process.poll() is not None:
                raise ServerFailed(
                    f"vLLM ended with code {self._process.returncode} before it was ready. Its "
                    "messages are above."
                )
            time.sleep(POLL_S)

    def add_adapter(self, name: str, version: str, folder: Path) -> None:
        """Load a folder as a version, and let the name answer with it. Raise ServerFailed."""
        self._post("load", {"name": version, "path": str(folder)})
        self._post("names", {"name": name, "to": version})

    def wait(self) -> int:
        """Return the exit code when the server has ended."""
        return self._process.wait()

    def stop(self) -> None:
        """End the server and its engine."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _is_ready(self) -> bool:
        # Not /health: another program on the port may answer that while vLLM still loads.
        try:
            return httpx.get(
                f"{self.url}/slora/state", headers=self._headers, timeout=30, trust_env=False
            ).is_success
        except httpx.HTTPError:
            return False

    def _post(self, route: str, body: dict[str, Any]) -> None:
        try:
            answer = httpx.post(
                f"{self.url}/slora/{route}",
                json=body,
                headers=self._headers,
                timeout=REQUEST_S,
                trust_env=False,
            )
        except httpx.HTTPError as error:
            raise ServerFailed(f"The server did not answer: {error}.") from error
        if not answer.is_success:
            raise ServerFailed(f"The server refused {body['name']}: {_read_message(answer)}.")


def _read_message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM during the block, so that its children are stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
