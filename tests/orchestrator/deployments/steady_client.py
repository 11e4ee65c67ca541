"""A client that asks ten times a second, as users do throughout a rollout."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx

from tests.orchestrator.deployments.fake_vllm import API_KEY

INTERVAL_S = 0.1


def read_text(response: httpx.Response) -> str:
    """Return the text of a completion."""
    text: str = response.json()["choices"][0]["text"]
    return text


def read_logprob(response: httpx.Response) -> str:
    """Return the log-probability of the first token: tiny models differ in it, less in texts."""
    return str(response.json()["choices"][0]["logprobs"]["token_logprobs"][0])


class SteadyClient:
    """Asks a model, the public name `chat` if not told otherwise, until it is stopped.

    `read` makes of a response what is kept of it.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str = API_KEY,
        read: Callable[[httpx.Response], str] = read_text,
    ) -> None:
        self._url, self._key, self._read = url, key, read
        self._stopping = threading.Event()
        self._answered = threading.Condition()
        self.model = "chat"
        self.answers: list[str] = []
        self.failures: list[str] = []
        """Texts of the responses that are not an answer."""
        self.interruptions: list[str] = []
        """Errors of connections, as while a server is away."""

    @contextmanager
    def run(self) -> Iterator[SteadyClient]:
        thread = threading.Thread(target=self._ask_steadily)
        thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            thread.join()

    def wait_for_answer(self, timeout_s: float = 60) -> str:
        """Return the answer to a request that is sent after this call."""
        with self._answered:
            # The next one may have been asked before.
            count = len(self.answers) + 2
            assert self._answered.wait_for(lambda: len(self.answers) >= count, timeout_s)
            return self.answers[-1]

    def _ask_steadily(self) -> None:
        headers = {"Authorization": f"Bearer {self._key}"}
        with httpx.Client(
            base_url=self._url, headers=headers, trust_env=False, timeout=300
        ) as http:
            while not self._stopping.is_set():
                self._ask(http)
                self._stopping.wait(INTERVAL_S)

    def _ask(self, http: httpx.Client) -> None:
        body = {"model": self.model, "prompt": "Hello", "max_tokens": 4, "temperature": 0,
                "logprobs": 1}  # fmt: skip
        try:
            response = http.post("/v1/completions", json=body)
        except httpx.TransportError as error:
            self.interruptions.append(repr(error))
            return
        with self._answered:
            if response.status_code == 200:
                self.answers.append(self._read(response))
            else:
                self.failures.append(response.text)
            self._answered.notify_all()
