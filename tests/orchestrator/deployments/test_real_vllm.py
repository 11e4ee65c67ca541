"""Deployments to a real vLLM server with the plug-in: trained adapters, their losses, and a client
that asks throughout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.store.adapters.operations import promote
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from jobs.store.runs.canary_file import CANARY_FILE
from orchestrator.deployments.deployment_acts import deploy, remove, rollback
from orchestrator.deployments.deployment_record import DeploymentRecord, read_deployment
from orchestrator.deployments.endpoint_config import EndpointConfig
from orchestrator.deployments.errors import TargetRefused
from orchestrator.deployments.open_target import open_target
from orchestrator.deployments.rollout_driver import RolloutDriver
from orchestrator.deployments.server_http import ServerHttp
from orchestrator.deployments.serving_target import ServingTarget
from orchestrator.deployments.stock_vllm import StockVllmTarget
from tests.orchestrator.deployments.builders import make_wish
from tests.orchestrator.deployments.test_steady_answers import SteadyClient
from tests.ranks import run_ranks
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec

pytestmark = [pytest.mark.long, pytest.mark.ranks, pytest.mark.timeout(1800)]

KINDS = ("lora", "lora", "sparse", "sparse", "lora")
"""Kinds of chat v1 to v5; v5 is broken on purpose."""
LOSS_ERROR = 0.01
"""In float32 the loss through the server is the run's."""
MAX_ROLLBACK_S = 2.0
TOLERANCE = 10.0
"""No version is better than another: they were trained for six steps."""


class RealWorld:
    """A store with trained adapters, a server, and the deployment chat."""

    def __init__(self, store: ObjectStore, target: ServingTarget, url: str, key: str) -> None:
        self.store, self.target, self.url, self.key = store, target, url, key
        self.stock = StockVllmTarget(ServerHttp("local", url, key), Path("/nowhere"), None)
        """The same server as one without the plug-in is asked."""
        self.driver = RolloutDriver(store, target)

    @property
    def record(self) -> DeploymentRecord:
        return read_deployment(self.store, "chat")[0]

    def follow(self, version: int) -> DeploymentRecord:
        """Promote a version, and return the deployment after its rollout."""
        promote(self.store, "chat", version)
        assert self.driver.settle("chat") is None
        return self.record

    def read_answering(self) -> str | None:
        return (self.target.read_state().names or {}).get("chat")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    from tests.vllm_server import FOLDER, KEY, MAKE_IT, find_serving_python, run_vllm

    if not find_serving_python(FOLDER).exists():
        pytest.skip(f"vLLM is not installed: {MAKE_IT}")
    folder = tmp_path_factory.mktemp("served")
    # Heads of 64: vLLM has no attention for smaller ones on CPUs.
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    tiny_chat_model(folder / "model", **sizes)
    chat_rows(folder / "train.jsonl", 60)
    chat_rows(folder / "eval.jsonl", 9)
    run_ranks(train_versions, 1, str(folder))
    # Threads that wait for each other crawl on a machine with other work.
    one_thread = {"OMP_NUM_THREADS": "1"}
    with (
        run_vllm(folder / "model", folder, variables=one_thread) as server,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("REAL_KEY", KEY)
        config = EndpointConfig(
            url=server.url, api_key_env="REAL_KEY", folder=str(folder / "copies")
        )
        target = open_target("local", config)
        world = RealWorld(open_store(f"file://{folder / 'store'}"), target, server.url, KEY)
        yield world
        world.stock.close()
        target.close()


def train_versions(rank: int, folder: str) -> None:
    """Train chat v1 to v5."""
    for number, kind in enumerate(KINDS, start=1):
        _train(rank, Path(folder), kind, number)


def _train(rank: int, folder: Path, kind: str, seed: int) -> None:
    import torch

    from jobs.plan.preflight import validate_run
    from jobs.spec.load import validate_spec
    from jobs.store.runs.run_store import RunStore
    from jobs.train.comm.collectives import make_worker_context
    from jobs.train.fine_tuning import make_fine_tuning

    data = {"eval": str(folder / "eval.jsonl")}
    spec = tiny_spec(folder, name="chat", data=data, method={"kind": kind}, train={"seed": seed})
    checked = validate_run(validate_spec(spec))
    runs = RunStore(open_store(checked.spec.store), f"chat-{seed}")
    request = checked.make_request(runs.run_id)
    context = make_worker_context(rank, 1, torch.device("cpu"), machine="here")
    make_fine_tuning(request, runs, context).run()


def test_a_deployment_of_a_real_server_is_followed_declined_and_rolled_back(world: RealWorld):
    store, target = world.store, world.target
    canary: dict[str, Any] = {"loss_tolerance": TOLERANCE, "max_latency_s": 120.0}
    _claim_another_loss(store)
    promote(store, "chat", 1)
    deploy(store, target, make_wish(**canary), by="me")
    assert world.driver.settle("chat") is None
    assert (world.record.live, world.read_answering()) == (1, "chat@v1"), world.record
    with SteadyClient(world.url, key=world.key).run() as client:
        for version in (2, 3, 4):
            record = world.follow(version)
            assert (record.live, world.read_answering()) == (version, f"chat@v{version}"), record
            figures = _read_figures(record)
            assert abs(figures["loss"] - figures["run_loss"]) < LOSS_ERROR, figures
        started = time.monotonic()
        rollback(store, target, "chat", by="me")
        seconds = time.monotonic() - started
        assert world.read_answering() == "chat@v3"
        assert world.driver.settle("chat") is None
        record = world.follow(5)
        assert (record.status, world.read_answering()) == ("declined", "chat@v3"), record
        assert record.declined is not None and "through the server" in record.declined.reason
    assert client.failures == []
    assert seconds < MAX_ROLLBACK_S
    remove(store, "chat", by="me")
    assert world.driver.settle("chat") is None
    assert (world.read_answering(), dict(target.read_state().adapters)) == (None, {})


def test_the_real_server_keeps_the_contract(world: RealWorld):
    from jobs.store.adapters.listing import read_committed

    versions = [read_committed(world.store, "chat", number) for number in (1, 2)]
    for _ in range(2):
        for manifest in versions:
            world.target.load(f"same@v{manifest.version}", world.store, manifest)
    for version in ("same@v1", "same@v2", "same@v2"):
        world.target.set_name("same", version)
        assert (world.target.read_state().names or {})["same"] == version
    first, second, named = (
        world.target.score(name, (5, 6, 7, 8), (1, 3)) for name in ("same@v1", "same@v2", "same")
    )
    assert (named, first == second) == (second, False)
    assert world.stock.score("same@v2", (5, 6, 7, 8), (1, 3)) == pytest.approx(second, abs=1e-4)
    with pytest.raises(TargetRefused):
        world.target.unload("same@v2")
    with pytest.raises(TargetRefused):
        world.target.set_name("same", "same@v9")
    for _ in range(2):
        world.target.set_name("same", None)
        for manifest in versions:
            world.target.unload(f"same@v{manifest.version}")
    assert dict(world.target.read_state().adapters) == {}
    with pytest.raises(TargetRefused):
        world.target.ask("same@v1", "Hello", max_tokens=2)


def _claim_another_loss(store: ObjectStore) -> None:
    """Let v5 claim a loss that it does not have, as an adapter with other weights would."""
    key = f"runs/chat-5/{CANARY_FILE}"
    text = store.get(key).decode()
    start, _, loss = text.rpartition('"loss"')
    value = loss.strip(": \n}")
    store.put(key, f'{start}"loss": {float(value) - 2 * TOLERANCE}}}'.encode())


def _read_figures(record: DeploymentRecord) -> dict[str, float]:
    """Return what the canary measured, from the detail of the last version that went live."""
    detail = next(entry.detail for entry in reversed(record.history) if entry.event == "live")
    pairs = (part.rsplit(" ", 1) for part in detail.split(", "))
    return {name: float(value) for name, value in pairs}
