"""Deployments to a real application of Ray Serve LLM, which reads them from a real S3 server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.store.adapters.listing import read_committed
from jobs.store.adapters.operations import promote
from jobs.store.open import open_store
from orchestrator.deployments.deployment_acts import deploy, remove, rollback
from orchestrator.deployments.deployment_record import read_deployment
from orchestrator.deployments.endpoint_config import EndpointConfig
from orchestrator.deployments.errors import TargetRefused, VersionNotSeen
from orchestrator.deployments.ray_serve_target import RayServeTarget
from tests.orchestrator.deployments.builders import make_wish
from tests.orchestrator.deployments.ray_serve_server import (
    MAKE_RAY_SERVE,
    find_ray_serve_python,
    run_ray_serve,
)
from tests.orchestrator.deployments.trained_versions import (
    LIMITS,
    RealWorld,
    Version,
    check_loss,
    digest_served_base,
    train_versions,
)
from tests.storage.weed import BUCKET, Weed

pytestmark = [
    pytest.mark.long,
    pytest.mark.ranks,
    pytest.mark.storage,
    pytest.mark.timeout(1800),
]

VERSIONS = (Version(), Version(), Version("sparse"))
STORE, LOADING_PATH = f"s3://{BUCKET}/store", f"s3://{BUCKET}/lora"
MAX_ROLLBACK_S = 2.0
MAX_ABSENCE_S = 120.0
"""A replica remembers for 30 s that a name was absent."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    if not find_ray_serve_python().exists():
        pytest.skip(f"Ray Serve LLM is not installed: {MAKE_RAY_SERVE}")
    folder = tmp_path_factory.mktemp("ray-served")
    weed = Weed(folder / "weed")
    weed.start()
    try:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in weed.environment.items():
                environment.setenv(name, value)
            store = train_versions(folder, STORE, VERSIONS)
            with run_ray_serve(folder / "model", folder, LOADING_PATH) as server:
                config = EndpointConfig(
                    kind="ray-serve", url=server.url, model="base", loading_path=LOADING_PATH,
                    base_digest=digest_served_base(folder),
                )  # fmt: skip
                world = RealWorld(store, server, config)
                yield world
                world.target.close()
    finally:
        weed.kill()


def test_clients_of_ray_serve_follow_the_record_and_get_no_failure(world: RealWorld):
    store, target = world.store, world.target
    assert isinstance(target, RayServeTarget)
    promote(store, "chat", 1)
    deploy(store, target, make_wish(**LIMITS), by="me")
    assert world.driver.settle("chat") is None
    assert world.record.model == "base:chat@v1", world.record
    check_loss(world.record)
    client = world.make_client()
    client.model = "base:chat@v1"
    with client.run():
        first = client.wait_for_answer()
        record = world.follow(2)
        assert (record.live, record.model) == (2, "base:chat@v2"), record
        check_loss(record)
        client.model = "base:chat@v2"
        assert client.wait_for_answer() != first
        record = world.follow(3)
        assert (record.status, record.model) == ("declined", "base:chat@v2"), record
        assert record.declined is not None and "sparse" in record.declined.reason
        started = time.monotonic()
        record = rollback(store, target, "chat", by="me")
        assert time.monotonic() - started < MAX_ROLLBACK_S
        assert record.model == "base:chat@v1"
        client.model = "base:chat@v1"
        assert float(client.wait_for_answer()) == pytest.approx(float(first), abs=1e-3)
        remove(store, "chat", by="me")
        assert world.driver.settle("chat") is None
        # The replica keeps what it read: its clients are not cut off.
        client.wait_for_answer()
    assert client.failures == client.interruptions == []
    assert dict(target.read_state().adapters) == {}
    left = set(open_store(LOADING_PATH).list(""))
    assert left == {"chat@v1.sha256", "chat@v2.sha256"}


def test_a_version_that_was_asked_for_too_early_goes_live_when_the_replica_looks_again(
    world: RealWorld,
):
    with pytest.raises(VersionNotSeen):
        world.target.ask("base:early@v1", "Hello", max_tokens=2)
    deploy(world.store, world.target, make_wish(1, name="early", **LIMITS), by="me")
    deadline, problems = time.monotonic() + MAX_ABSENCE_S, set[str]()
    while (problem := world.driver.settle("early")) is not None:
        problems.add(problem)
        assert time.monotonic() < deadline, problems
    record = read_deployment(world.store, "early")[0]
    assert (record.status, record.model) == ("live", "base:early@v1"), record
    assert len(problems) == 1 and "looks again after 30 s" in problems.pop()


def test_a_replica_answers_a_name_with_what_it_read_first_so_that_no_other_adapter_gets_it(
    world: RealWorld, tmp_path: Path
):
    target, tokens = world.target, (5, 6, 7, 8)
    first, second = (read_committed(world.store, "chat", number) for number in (1, 2))
    for name, manifest in (("same@v1", first), ("other@v1", second)):
        target.load(name, world.store, manifest)
    scores = [target.score(f"base:{name}@v1", tokens, (1, 3)) for name in ("same", "other")]
    assert scores[0] != scores[1]
    target.unload("same@v1")
    with pytest.raises(TargetRefused, match="same@v1 stood for another adapter"):
        target.load("same@v1", world.store, second)
    path = open_store(LOADING_PATH)
    for file in second.files:
        path.put(f"same@v1/{file.name}", world.store.get(second.prefix + file.name))
    assert target.score("base:same@v1", tokens, (1, 3)) == pytest.approx(scores[0], abs=1e-3)
