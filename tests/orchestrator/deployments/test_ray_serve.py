"""What the target does about Ray Serve LLM's own ways: replicas that look for a name once in 30 s,
that never read one twice, and that answer an error with a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException

from jobs.errors import DigestMismatch
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import promote
from jobs.store.blobs import get_blob_key
from jobs.store.local import DirectoryStore
from orchestrator.deployments.deployment_acts import deploy
from orchestrator.deployments.deployment_record import read_deployment
from orchestrator.deployments.endpoint_config import EndpointConfig
from orchestrator.deployments.errors import TargetRefused, VersionNotSeen
from orchestrator.deployments.ray_serve_target import RayServeTarget
from orchestrator.deployments.rollout_driver import RolloutDriver
from orchestrator.deployments.server_http import ServerHttp
from tests.jobs.store.builders import encode_float_tensor
from tests.orchestrator.deployments.builders import BASE, commit_version, make_wish
from tests.orchestrator.deployments.fake_vllm import API_KEY, FakeVllm, read_folder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CAUSE = "ValueError: Failed to load lora model: LoRA rank 64 is greater than max_lora_rank 32."
TRACEBACK = f"""Message: Internal Server Error, original exception: ray::ServeReplica:default
  File "replica.py", line 1820, in handle_request_with_rejection
    self._raise_user_exception(e, request_metadata)
{CAUSE}"""


class FakeReplica(FakeVllm):
    """One replica of Ray Serve LLM, which reads the folders below a path."""

    def __init__(self, path: Path) -> None:
        super().__init__(has_plugin=False)
        self._path = path
        self.missing = set[str]()
        """Names that it remembers as absent."""
        self.error: str | None = None

    def complete(self, body: dict[str, Any]) -> Any:
        if self.error is not None:
            raise HTTPException(500, self.error)
        name = str(body["model"]).removeprefix("base:")
        if name in self.missing or not (self._path / name / CONFIG).exists():
            self.missing.add(name)
            problem = f'Unable to find LoRA adapter config file "{CONFIG}" in folder s3://b/{name}.'
            raise HTTPException(404, problem)
        self.adapters.setdefault(body["model"], read_folder(self._path / name))
        return super().complete(body)


class RecordingStore(DirectoryStore):
    """A store that writes down what it is given as bytes, and what as files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sizes: dict[str, int] = {}
        self.files: list[str] = []

    def put(self, key: str, data: bytes, **options: Any) -> str:
        self.sizes[key] = len(data)
        return super().put(key, data, **options)

    def put_file(self, key: str, path: Path, **options: Any) -> str:
        self.files.append(key)
        return super().put_file(key, path, **options)


@pytest.fixture
def replica(tmp_path: Path) -> FakeReplica:
    return FakeReplica(tmp_path / "loading")


@pytest.fixture
def ray(replica: FakeReplica, tmp_path: Path) -> Iterator[RayServeTarget]:
    with replica.serve() as url:
        http = ServerHttp("local", url, API_KEY)
        target = RayServeTarget(http, DirectoryStore(tmp_path / "loading"), "base", BASE)
        yield target
        target.close()


@pytest.fixture
def version(store: DirectoryStore, tmp_path: Path) -> Manifest:
    return commit_version(store, tmp_path / "folders")


def test_a_version_that_was_asked_for_too_early_waits_and_is_not_declined(
    replica: FakeReplica, ray: RayServeTarget, store: DirectoryStore, version: Manifest
):
    with pytest.raises(VersionNotSeen):
        ray.ask("base:chat@v1", "Hello", max_tokens=4)
    promote(store, "chat", 1)
    deploy(store, ray, make_wish(), by="me")
    driver = RolloutDriver(store, ray)
    assert "does not find base:chat@v1 yet" in str(driver.settle("chat"))
    record = read_deployment(store, "chat")[0]
    assert (record.declined, record.live) == (None, None)
    replica.missing.clear()
    assert driver.settle("chat") is None
    record = read_deployment(store, "chat")[0]
    assert (record.live, record.model, record.problem) == (1, "base:chat@v1", None)


def test_a_name_is_never_used_for_other_weights(
    ray: RayServeTarget, store: DirectoryStore, version: Manifest, tmp_path: Path
):
    other = commit_version(store, tmp_path / "folders", loss=1.0)
    for _ in range(2):
        ray.load("chat@v1", store, version)
        ray.unload("chat@v1")
    with pytest.raises(TargetRefused, match="chat@v1 stood for another adapter"):
        ray.load("chat@v1", store, other)
    assert dict(ray.read_state().adapters) == {}
    ray.load("chat@v1", store, version)
    assert ray.ask("base:chat@v1", "Hello", max_tokens=4).text


def test_corrupt_files_never_reach_the_path(
    ray: RayServeTarget, store: DirectoryStore, version: Manifest, tmp_path: Path
):
    [weights] = [file for file in version.files if file.name == WEIGHTS]
    for key in (version.prefix + WEIGHTS, get_blob_key(weights.sha256)):
        store.put(key, encode_float_tensor(99.0))
    with pytest.raises(DigestMismatch):
        ray.load("chat@v1", store, version)
    assert not (tmp_path / "loading/chat@v1").exists()


def test_files_are_not_read_whole_and_the_one_that_replicas_look_for_is_written_last(
    replica: FakeReplica, store: DirectoryStore, version: Manifest, tmp_path: Path
):
    path = RecordingStore(tmp_path / "loading")
    with replica.serve() as url:
        target = RayServeTarget(ServerHttp("local", url, API_KEY), path, "base", BASE)
        target.load("chat@v1", store, version)
        target.close()
    assert path.sizes == {"chat@v1.sha256": 64}
    assert path.files == [f"chat@v1/{WEIGHTS}", f"chat@v1/{CONFIG}"]


def test_the_cause_of_an_error_is_named_without_its_traceback(
    replica: FakeReplica, ray: RayServeTarget, store: DirectoryStore, version: Manifest
):
    replica.error = TRACEBACK
    promote(store, "chat", 1)
    deploy(store, ray, make_wish(), by="me")
    assert RolloutDriver(store, ray).settle("chat") is None
    declined = read_deployment(store, "chat")[0].declined
    assert declined is not None and declined.reason == f"a canary request failed: {CAUSE}"


def test_a_loading_path_that_ray_cannot_read_is_refused():
    options = {"url": "http://127.0.0.1:1", "kind": "ray-serve", "model": "base"}
    assert EndpointConfig.model_validate({**options, "loading_path": "s3://bucket/lora"})
    with pytest.raises(ValueError, match="reads no folders"):
        EndpointConfig.model_validate({**options, "loading_path": "file:///lora"})
