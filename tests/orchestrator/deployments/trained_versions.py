"""Versions of the adapter chat that were trained for a few steps, and a real server for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.local.serving_environment import find_serving_python
from jobs.store.adapters.operations import promote
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.deployments.deployment_record import DeploymentRecord, read_deployment
from orchestrator.deployments.endpoint_config import EndpointConfig
from orchestrator.deployments.open_target import open_target
from orchestrator.deployments.rollout_driver import RolloutDriver
from orchestrator.deployments.serving_target import ServingTarget
from tests.orchestrator.deployments.steady_client import SteadyClient, read_logprob
from tests.ranks import run_ranks
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec
from tests.vllm_server import KEY, MAKE_IT, VllmServer, run_vllm

KEY_VARIABLE = "REAL_KEY"
LOSS_ERROR = 0.01
"""In float32 the loss through the server is the run's."""
LIMITS: dict[str, Any] = {"loss_tolerance": 0.25, "max_latency_s": 120.0}
"""No version is better than another: they were trained for six steps."""
# Heads of 64: vLLM has no attention for smaller ones on CPUs.
SIZES = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}


@dataclass(frozen=True)
class Version:
    """How a version of chat is trained."""

    kind: str = "lora"
    learning_rate: float = 1e-2
    model: str = "model"
    """The folder of its base: `model`, which is served, or `other`."""


def train_versions(folder: Path, store: str, versions: Sequence[Version]) -> ObjectStore:
    """Make the bases and train chat v1, v2 and so on. Return the store.

    Skip the test where no server could answer with them.
    """
    if not find_serving_python().exists():
        pytest.skip(f"vLLM is not installed: {MAKE_IT}")
    tiny_chat_model(folder / "model", **SIZES)
    tiny_chat_model(folder / "other", **SIZES, intermediate_size=128)
    chat_rows(folder / "train.jsonl", 60)
    chat_rows(folder / "eval.jsonl", 9)
    run_ranks(_train_all, 1, str(folder), store, list(versions))
    return open_store(store)


def _train_all(rank: int, folder: str, store: str, versions: Sequence[Version]) -> None:
    for number, version in enumerate(versions, start=1):
        _train(rank, Path(folder), store, version, number)


def _train(rank: int, folder: Path, store: str, version: Version, number: int) -> None:
    import torch

    from jobs.plan.preflight import validate_run
    from jobs.spec.load import validate_spec
    from jobs.store.runs.run_store import RunStore
    from jobs.train.comm.collectives import make_worker_context
    from jobs.train.fine_tuning import make_fine_tuning

    spec = tiny_spec(
        folder, name="chat", store=store, model={"path": str(folder / version.model)},
        data={"eval": str(folder / "eval.jsonl")}, method={"kind": version.kind},
        train={"seed": number, "learning_rate": version.learning_rate},
    )  # fmt: skip
    checked = validate_run(validate_spec(spec))
    runs = RunStore(open_store(checked.spec.store), f"chat-{number}")
    request = checked.make_request(runs.run_id)
    context = make_worker_context(rank, 1, torch.device("cpu"), machine="here")
    make_fine_tuning(request, runs, context).run()


class RealWorld:
    """A store with trained versions, a real server, and the deployment chat."""

    def __init__(self, store: ObjectStore, server: VllmServer, config: EndpointConfig) -> None:
        self.store, self.server, self.config = store, server, config
        self.target: ServingTarget = open_target("local", config)
        self.driver = RolloutDriver(store, self.target)

    @property
    def record(self) -> DeploymentRecord:
        return read_deployment(self.store, "chat")[0]

    def make_client(self) -> SteadyClient:
        return SteadyClient(self.server.url, key=KEY, read=read_logprob)

    def follow(self, version: int) -> DeploymentRecord:
        """Promote a version, and return the deployment after its rollout."""
        promote(self.store, "chat", version)
        assert self.driver.settle("chat") is None
        return self.record

    def read_answering(self) -> str | None:
        """Return the version that the public name answers with."""
        return (self.target.read_state().names or {}).get("chat")


@contextmanager
def serve_versions(
    folder: Path, store: ObjectStore, *, is_stock: bool = False
) -> Iterator[RealWorld]:
    """Serve `folder`/model, and yield its world."""
    variables = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} if is_stock else {}
    with (
        run_vllm(folder / "model", folder, variables=variables, is_stock=is_stock) as server,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv(KEY_VARIABLE, KEY)
        config = EndpointConfig(
            url=server.url, api_key_env=KEY_VARIABLE, folder=str(folder / "copies"),
            base_digest=digest_served_base(folder) if is_stock else None,
        )  # fmt: skip
        world = RealWorld(store, server, config)
        yield world
        world.target.close()


def digest_served_base(folder: Path) -> str:
    """Return the digest of the base that is served."""
    from jobs.inspect.base_digest import digest_base

    return digest_base(folder / "model").digest


def read_figures(record: DeploymentRecord) -> dict[str, float]:
    """Return what the canary measured, from the detail of the last version that went live."""
    detail = next(entry.detail for entry in reversed(record.history) if entry.event == "live")
    pairs = (part.rsplit(" ", 1) for part in detail.split(", "))
    return {name: float(value) for name, value in pairs}


def check_loss(record: DeploymentRecord) -> None:
    """Check that the loss through the server was the run's."""
    figures = read_figures(record)
    assert abs(figures["loss"] - figures["run_loss"]) < LOSS_ERROR, figures
