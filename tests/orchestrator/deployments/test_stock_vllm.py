"""Deployments to a real vLLM server without the plug-in: LoRA only, under versioned names."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from jobs.errors import InputError
from jobs.store.adapters.operations import promote
from orchestrator.deployments.deployment_acts import deploy, remove, rollback
from orchestrator.deployments.stock_vllm import StockVllmTarget
from tests.orchestrator.deployments.builders import make_wish
from tests.orchestrator.deployments.trained_versions import (
    LIMITS,
    RealWorld,
    Version,
    check_loss,
    serve_versions,
    train_versions,
)

pytestmark = [pytest.mark.long, pytest.mark.ranks, pytest.mark.timeout(1800)]

VERSIONS = (Version(), Version(), Version("sparse"), Version(model="other"))
REASONS = {3: "sparse", 4: "serves the base"}
MAX_ROLLBACK_S = 2.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    folder = tmp_path_factory.mktemp("stock")
    store = train_versions(folder, f"file://{folder / 'store'}", VERSIONS)
    with serve_versions(folder, store, is_stock=True) as world:
        yield world


def test_clients_of_a_stock_server_follow_the_record_and_get_no_failure(world: RealWorld):
    store, target = world.store, world.target
    assert isinstance(target, StockVllmTarget)
    promote(store, "chat", 1)
    deploy(store, target, make_wish(**LIMITS), by="me")
    assert world.driver.settle("chat") is None
    client = world.make_client()
    assert world.record.model == "chat@v1"
    client.model = "chat@v1"
    with client.run():
        first = client.wait_for_answer()
        record = world.follow(2)
        assert (record.live, record.model) == (2, "chat@v2"), record
        check_loss(record)
        client.model = "chat@v2"
        assert client.wait_for_answer() != first
        for version, reason in REASONS.items():
            record = world.follow(version)
            assert (record.status, record.model) == ("declined", "chat@v2"), record
            assert record.declined is not None and reason in record.declined.reason
        started = time.monotonic()
        record = rollback(store, target, "chat", by="me")
        assert time.monotonic() - started < MAX_ROLLBACK_S
        assert record.model == "chat@v1"
        client.model = "chat@v1"
        assert float(client.wait_for_answer()) == pytest.approx(float(first), abs=1e-3)
    assert client.failures == client.interruptions == []
    remove(store, "chat", by="me")
    assert world.driver.settle("chat") is None
    assert dict(target.read_state().adapters) == {}


def test_a_sparse_version_is_refused_before_anything_moves(world: RealWorld):
    promote(world.store, "chat", 3)
    with pytest.raises(InputError, match="sparse"):
        deploy(world.store, world.target, make_wish(**LIMITS), by="me")
    assert list(world.store.list("deployments/")) == []
