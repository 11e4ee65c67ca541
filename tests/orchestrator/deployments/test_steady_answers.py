"""A client that asks ten times a second throughout: no request fails, none gets a mixture."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.local import DirectoryStore
from orchestrator.deployments.deployment_acts import deploy, rollback
from orchestrator.deployments.endpoint_config import EndpointConfig
from orchestrator.deployments.open_target import open_target
from orchestrator.deployments.rollout_driver import RolloutDriver
from tests.orchestrator.deployments.builders import commit_promoted, make_wish
from tests.orchestrator.deployments.fake_vllm import API_KEY, FakeVllm
from tests.orchestrator.deployments.steady_client import SteadyClient


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
