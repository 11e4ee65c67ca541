"""A real vLLM server for tests and benchmarks: started, asked over HTTP, and stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from infra.local.processes import find_free_port
from infra.local.serving_environment import FOLDER, find_serving_python
from slora.serving.launch import ServerOptions, build_command, build_environment, link_package

MAKE_IT = "python -m infra.local.serving_environment"
START_S, KEY = 900.0, "key-of-the-test"
PROMPT = (5, 6, 7, 8, 9, 40, 50, 60, 11, 12, 13, 99, 100, 42, 43)
"""Token ids that both test models have."""


def choose_port() -> int:
    """Return a free port that no other program is given before the server listens, in a minute."""
    return find_free_port(random.randrange(12_000, 19_000))


class VllmClient:
    """Asks a server. Methods raise AssertionError for a status that is not 200."""

    def __init__(self, url: str, log: Path) -> None:
        self.url, self._log = url, log

    def ask(self, path: str, body: Any = None, *, key: str = KEY) -> tuple[int, Any]:
        """Return the status and the JSON of a GET, or of a POST with a body."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text.startswith(b"{") else text
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def post(self, route: str, /, **body: Any) -> Any:
        status, answer = self.ask(route, body)
        assert status == 200, (route, status, answer, self.read_log_end())
        return answer

    def score(self, model: str, prompt: Sequence[int] = PROMPT) -> list[float]:
        """Return the log-probability of each token of the prompt but the first."""
        answer = self.post(
            "/v1/completions", model=model, prompt=list(prompt), max_tokens=1, temperature=0,
            prompt_logprobs=0,
        )  # fmt: skip
        rows = answer["choices"][0]["prompt_logprobs"]
        pairs = zip(prompt[1:], rows[1:], strict=True)
        return [row[str(token)]["logprob"] for token, row in pairs]

    def digest_weights(self) -> dict[str, str]:
        """Return vLLM's own digest of each parameter."""
        digests: dict[str, str] = self.post("/weight_checker", action="checksum")["checksums"]
        return digests

    def read_log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])

    def is_ready(self) -> bool:
        try:
            return self.ask("/health")[0] == 200
        except OSError:
            return False


class VllmServer(VllmClient):
    """A server of ours: killed with all its processes, and started again at the same URL."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], port: int, folder: Path
    ) -> None:
        super().__init__(f"http://127.0.0.1:{port}", folder / "vllm.log")
        self._command, self._environment, self.folder = command, environment, folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server was not started"
        return self._process

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env=self._environment, cwd=self.folder, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while not self.is_ready():
            assert self.process.poll() is None and time.monotonic() < deadline, self.read_log_end()
            time.sleep(0.5)

    def kill(self) -> None:
        """End the server at once, with its engine."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End the server as a service manager does."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def measure_memory(self) -> int:
        """Return the resident bytes of the server and all its processes."""
        leader = psutil.Process(self.process.pid)
        return sum(
            process.memory_info().rss for process in [leader, *leader.children(recursive=True)]
        )


@contextmanager
def run_vllm(
    model: Path,
    folder: Path,
    *,
    extra: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    is_stock: bool = False,
) -> Iterator[VllmServer]:
    """Run a server of a model during the block; its log is in `folder`.

    `is_stock`: without the plug-in.
    """
    port = choose_port()
    options = ServerOptions(str(model), port, dtype="float32", eager=True, max_rank=32, extra=extra)
    command = build_command(str(find_serving_python(FOLDER)), options)
    environment = {
        **build_environment(os.environ), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(link_package(folder / "code")),
        "VLLM_API_KEY": KEY, "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Threads that wait for each other spin, which on shared cores is all that they do.
        "OMP_NUM_THREADS": "1",
        **(variables or {}),
    }  # fmt: skip
    if is_stock:
        del environment["VLLM_PLUGINS"]
        command = tuple(word for word in command if "worker-extension" not in word)
    server = VllmServer(command, environment, port, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
