"""What every server has to do: the fake one of the rollout's tests, and real clients of servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.store.adapters.manifest import Manifest
from jobs.store.local import DirectoryStore
from orchestrator.deployments.endpoint_config import EndpointConfig
from orchestrator.deployments.errors import TargetRefused, TargetUnreachable
from orchestrator.deployments.open_target import find_endpoint, open_target
from orchestrator.deployments.ray_serve_target import RayServeTarget
from orchestrator.deployments.server_http import ServerHttp
from orchestrator.deployments.serving_target import ServingTarget
from orchestrator.deployments.stock_vllm import StockVllmTarget
from orchestrator.deployments.vllm_target import VllmTarget
from tests.orchestrator.deployments.builders import BASE, LOSS, commit_version
from tests.orchestrator.deployments.fake_target import FakeTarget
from tests.orchestrator.deployments.fake_vllm import API_KEY, FakeVllm

KINDS = ("fake", "plugin", "stock", "ray-serve")


@contextmanager
def open_kind(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServingTarget]:
    if kind == "fake":
        yield FakeTarget()
        return
    monkeypatch.setenv("FAKE_KEY", API_KEY)
    fake = FakeVllm(has_plugin=kind == "plugin")
    with fake.serve() as url:
        target: ServingTarget
        if kind == "ray-serve":
            http = ServerHttp("local", url, API_KEY)
            target = RayServeTarget(http, DirectoryStore(folder / "loading"), "base", BASE)
        else:
            copies = str(folder / "copies")
            config = EndpointConfig(
                url=url, api_key_env="FAKE_KEY", base_digest=BASE, folder=copies
            )
            target = open_target("local", config)
        yield target
        target.close()


@pytest.fixture(params=KINDS)
def served(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServingTarget]:
    with open_kind(request.param, tmp_path, monkeypatch) as target:
        yield target


@pytest.fixture
def versions(store: DirectoryStore, tmp_path: Path) -> list[Manifest]:
    return [commit_version(store, tmp_path / "folders", loss=LOSS + index) for index in range(2)]


def test_a_version_is_loaded_and_unloaded_as_often_as_one_likes(
    served: ServingTarget, store: DirectoryStore, versions: list[Manifest]
):
    for _ in range(2):
        for manifest in versions:
            served.load(manifest.label, store, manifest)
    state = served.read_state()
    assert dict(state.adapters) == {"chat@v1": "lora", "chat@v2": "lora"}
    assert (state.base_digest, "lora" in state.forms) == (BASE, True)
    for _ in range(2):
        served.unload("chat@v1")
    assert dict(served.read_state().adapters) == {"chat@v2": "lora"}


def test_a_public_name_switches_or_is_refused(
    served: ServingTarget, store: DirectoryStore, versions: list[Manifest]
):
    for manifest in versions:
        served.load(manifest.label, store, manifest)
    if served.read_state().names is None:
        with pytest.raises(TargetRefused):
            served.set_name("chat", "chat@v1")
        return
    for version in ("chat@v1", "chat@v2", "chat@v2"):
        served.set_name("chat", version)
        assert served.read_state().names == {"chat": version}
        assert version in served.ask("chat", "Hello", max_tokens=4).text
    with pytest.raises(TargetRefused):
        served.unload("chat@v2")
    with pytest.raises(TargetRefused):
        served.set_name("chat", "chat@v9")
    served.set_name("chat", None)
    served.set_name("chat", None)
    assert served.read_state().names == {}


# Ray Serve reads the folder itself: only a real one answers with it.
@pytest.mark.parametrize("served", KINDS[:3], indirect=True)
def test_a_version_answers_under_its_own_name_with_its_own_loss(
    served: ServingTarget, store: DirectoryStore, versions: list[Manifest]
):
    for manifest in versions:
        served.load(manifest.label, store, manifest)
    for loss, name in ((LOSS, "chat@v1"), (LOSS + 1, "chat@v2")):
        assert name in served.ask(name, (1, 2), max_tokens=4).text
        assert served.score(name, (5, 6, 7), (1, 2)) == [-loss, -loss]
    with pytest.raises(TargetRefused):
        served.ask("chat@v9", "Hello", max_tokens=4)


def test_the_copies_that_a_server_reads_are_verified_and_removed(
    store: DirectoryStore, versions: list[Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with open_kind("plugin", tmp_path, monkeypatch) as target:
        target.load("chat@v1", store, versions[0])
        copy = tmp_path / "copies/chat@v1"
        assert (copy / "adapter_model.safetensors").is_file()
        (copy / "manifest.json").write_text("torn")
        target.load("chat@v1", store, versions[0])
        assert (copy / "manifest.json").read_text() != "torn"
        target.unload("chat@v1")
        assert not copy.exists()


def test_the_plugin_is_found_by_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with open_kind("plugin", tmp_path, monkeypatch) as target:
        assert isinstance(target, VllmTarget)
    with open_kind("stock", tmp_path, monkeypatch) as target:
        assert isinstance(target, StockVllmTarget)


def test_a_wrong_key_and_a_server_that_is_away_are_unreachable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_KEY", "wrong-key")
    with FakeVllm().serve() as url:
        config = EndpointConfig(url=url, api_key_env="FAKE_KEY")
        with pytest.raises(TargetUnreachable, match="refuses the API key") as refused:
            open_target("local", config)
    assert "wrong-key" not in str(refused.value)
    with pytest.raises(TargetUnreachable, match="no connection"):
        open_target("local", config)
    monkeypatch.delenv("FAKE_KEY")
    with pytest.raises(TargetUnreachable, match="FAKE_KEY holds no API key"):
        open_target("local", config)


def test_an_endpoint_is_of_its_projects_only():
    endpoints = {"local": EndpointConfig(url="http://127.0.0.1:1", projects=("lab",))}
    assert find_endpoint(endpoints, "local", allow_url=False, project="lab")
    for name, project in (("local", "default"), ("other", "lab"), ("http://127.0.0.1:1", "lab")):
        with pytest.raises(InputError, match="is no endpoint of this project"):
            find_endpoint(endpoints, name, allow_url=False, project=project)
    assert find_endpoint({}, "http://127.0.0.1:1", allow_url=True, project="default")
