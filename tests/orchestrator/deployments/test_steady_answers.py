"""A client that asks ten times a second throughout: no request fails, none gets a mixture."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from jobs.store.local import DirectoryStore
from orchestrator.deployments.deployment_acts import deploy, rollback
from orchestrator.deployments.endpoint_config import EndpointConfig
from orchestrator.deployments.open_target import open_target
from orchestrator.deployments.rollout_driver import RolloutDriver
from tests.orchestrator.deployments.builders import commit_promoted, make_wish
from tests.orchestrator.deployments.fake_vllm import API_KEY, FakeVllm

INTERVAL_S = 0.1


class SteadyClient:
    """Asks the public name until it is told to stop."""

    def __init__(self, url: str, *, key: str = API_KEY) -> None:
        self._url, self._key = url, key
        self._stopping = threading.Event()
        self._answered = threading.Condition()
        self.answers: list[str] = []
        self.failures: list[str] = []

    @contextmanager
    def run(self) -> Iterator[SteadyClient]:
        thread = threading.Thread(target=self._ask_steadily)
        thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            thread.join()

    def wait_for_answer(self) -> str:
        """Return the answer to a request that is sent after this call."""
        with self._answered:
            # The next one may have been asked before.
            for _ in range(2):
                assert self._answered.wait(60)
            return self.answers[-1]

    def _ask_steadily(self) -> None:
        headers = {"Authorization": f"Bearer {self._key}"}
        body = {"model": "chat", "prompt": "Hello", "max_tokens": 4}
        with httpx.Client(
            base_url=self._url, headers=headers, trust_env=False, timeout=300
        ) as http:
            while not self._stopping.is_set():
                response = http.post("/v1/completions", json=body)
                with self._answered:
                    if response.status_code == 200:
                        self.answers.append(response.json()["choices"][0]["text"])
                    else:
                        self.failures.append(response.text)
                    self._answered.notify()
                self._stopping.wait(INTERVAL_S)


def test_no_request_fails_during_a_promotion_a_broken_one_and_a_rollback(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_KEY", API_KEY)
    fake = FakeVllm()
    fake.broken = {"chat@v3"}
    with fake.serve() as url:
        copies = str(tmp_path / "copies")
        config = EndpointConfig(url=url, api_key_env="FAKE_KEY", folder=copies)
        target = open_target("local", config)
        driver = RolloutDriver(store, target)
        commit_promoted(store, tmp_path / "folders")
        deploy(store, target, make_wish(), by="me")
        assert driver.settle("chat") is None
        with SteadyClient(url).run() as client:
            for expected in ("chat@v2", "chat@v2", "chat@v4"):
                commit_promoted(store, tmp_path / "folders")
                assert driver.settle("chat") is None
                assert fake.names == {"chat": expected}
                assert client.wait_for_answer() == f"I am {expected}"
            rollback(store, target, "chat", by="me")
            assert fake.names == {"chat": "chat@v2"}
            assert client.wait_for_answer() == "I am chat@v2"
        target.close()
    assert client.failures == []
    assert set(client.answers) <= {"I am chat@v1", "I am chat@v2", "I am chat@v4"}
