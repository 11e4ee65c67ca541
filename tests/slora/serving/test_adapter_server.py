"""The adapters of a server whose engine plays a script: loads, swaps, failures, unloads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slora.serving.adapter_server import AdapterServer, EngineFailed, ServerLimits
from slora.serving.name_plan import ServedNames
from slora.serving.refusals import ServingRefused
from slora.serving.request_gate import RequestGate
from slora.serving.weight_patches import list_tensors
from tests.slora.serving.sparse_folders import make_base, make_lora, make_sparse, write_manifest


class ScriptedEngine:
    """Writes down what it is asked, and fails where the script says so.

    `fail_swaps`: how many of the next swaps fail; `unknown`: a tensor that the model lacks.
    """

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.fail_swaps, self.unknown = 0, ""
        self.published = ServedNames()
        self.paused = False

    async def pause(self) -> None:
        self.calls.append("pause")
        self.paused = True

    async def resume(self) -> None:
        self.calls.append("resume")
        self.paused = False

    async def rehearse(self, patches: Path) -> list[str]:
        assert self.paused
        self.calls.append("rehearse")
        return [name for name in list_tensors(patches) if name == self.unknown]

    async def swap(self, undo: list[Path], apply: Path | None) -> None:
        assert self.paused and all(file.is_file() for file in [*undo, *([apply] if apply else [])])
        self.calls.append(("swap", len(undo), apply is not None))
        if self.fail_swaps:
            self.fail_swaps -= 1
            raise EngineFailed("a worker died")

    async def reset_caches(self) -> None:
        self.calls.append("reset")

    async def add_lora(self, name: str, folder: Path) -> None:
        self.calls.append(("add", name))

    async def remove_lora(self, name: str) -> None:
        self.calls.append(("remove", name))

    def publish(self, state: ServedNames) -> None:
        self.published = state


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


Scenario = Callable[[AdapterServer, ScriptedEngine, RequestGate], Awaitable[None]]


@pytest.fixture
def play(base: Path, tmp_path: Path) -> Callable[[Scenario], None]:
    """Run a scenario against a server with two sparse adapters, `s@v1` and `s@v2`."""
    for version in (1, 2):
        make_sparse(tmp_path / f"s{version}", base, seed=version)

    async def run(scenario: Scenario) -> None:
        engine, gate = ScriptedEngine(), RequestGate()
        limits = ServerLimits(("lora", "sparse"), 8, torch.float32, ("base",))
        server = AdapterServer(engine, gate, base=base, scratch=tmp_path / "scratch", limits=limits)
        for version in (1, 2):
            await server.load(f"s@v{version}", tmp_path / f"s{version}")
        engine.calls.clear()
        await scenario(server, engine, gate)

    return lambda scenario: asyncio.run(run(scenario))


def test_a_swap_drains_applies_resets_and_resumes(play):
    async def scenario(server, engine, gate):
        await server.point("chat", "s@v1")
        assert engine.calls == ["pause", ("swap", 0, True), "reset", "resume"]
        engine.calls.clear()
        await server.point("chat", "s@v2")
        assert engine.calls == ["pause", ("swap", 1, True), "reset", "resume"]
        engine.calls.clear()
        await server.point("chat", "s@v2")
        assert engine.calls == []
        await server.point("chat", None)
        assert engine.calls == ["pause", ("swap", 1, False), "reset", "resume"]
        assert engine.published.names == {} and engine.published.active_sparse is None

    play(scenario)


def test_after_a_failed_apply_the_old_weights_come_back_and_answer(play):
    async def scenario(server, engine, gate):
        await server.point("chat", "s@v1")
        engine.calls.clear()
        engine.fail_swaps = 1
        with pytest.raises(ServingRefused, match=r"s@v2 could not be applied .* s@v1 goes on"):
            await server.point("chat", "s@v2")
        # The failed one is undone, whatever of it was written, and the old one written again.
        assert engine.calls == [
            "pause", ("swap", 1, True), ("swap", 1, True), "reset", "resume",
        ]  # fmt: skip
        assert engine.published.names == {"chat": "s@v1"} and not engine.paused

    play(scenario)


def test_nothing_is_answered_while_the_weights_are_a_mixture(play):
    async def scenario(server, engine, gate):
        await server.point("chat", "s@v1")
        engine.fail_swaps = 2
        with pytest.raises(ServingRefused, match="neither") as refusal:
            await server.point("chat", "s@v2")
        assert refusal.value.status == 503 and engine.paused
        with pytest.raises(ServingRefused, match="neither"):
            async with gate.enter():
                raise AssertionError("it answered")
        assert "neither" in (await server.describe())["problem"]
        with pytest.raises(ServingRefused, match="may be in the weights"):
            await server.unload("s@v2")
        engine.calls.clear()
        # The same name as before: a good apply takes both out, and ends it.
        await server.point("chat", "s@v1")
        assert engine.calls == ["pause", ("swap", 1, True), "reset", "resume"]
        async with gate.enter():
            assert not engine.paused

    play(scenario)


def test_a_patch_file_that_is_gone_or_cut_short_is_found_before_the_weights_change(
    play, tmp_path: Path
):
    async def scenario(server, engine, gate):
        await server.point("chat", "s@v1")
        engine.calls.clear()
        file = server._folders["s@v2"].path / "patches.safetensors"
        whole = file.read_bytes()
        for damage in (lambda: file.write_bytes(whole[: len(whole) // 2]), file.unlink):
            damage()
            with pytest.raises(ServingRefused, match="nothing was changed"):
                await server.point("chat", "s@v2")
            assert engine.calls == [] and engine.published.names == {"chat": "s@v1"}
        file.write_bytes(whole)
        await server.point("chat", "s@v2")

    play(scenario)


def test_loading_again_is_the_same_and_other_contents_are_refused(play, tmp_path: Path):
    async def scenario(server, engine, gate):
        again = await server.load("s@v1", tmp_path / "s1")
        assert engine.calls == [] and again.form == "sparse"
        with pytest.raises(ServingRefused, match="other contents") as refusal:
            await server.load("s@v1", tmp_path / "s2")
        assert refusal.value.status == 409
        # Nothing is left of what was not kept.
        assert len(list((tmp_path / "scratch").iterdir())) == 2

    play(scenario)


def test_what_does_not_fit_is_refused_before_the_engine_hears_of_it(play, base, tmp_path: Path):
    async def scenario(server, engine, gate):
        other = make_sparse(tmp_path / "other", base)
        write_manifest(other, "f" * 64)
        big = make_lora(tmp_path / "big", base, rank=9)
        nameless = make_sparse(tmp_path / "nameless", base, seed=3)
        (nameless / "manifest.json").unlink()
        cases = [
            ("o@v1", other, None, "another base: ffffffffffff"),
            ("o@v1", tmp_path / "s1", "e" * 64, "another base: eeeeeeeeeeee"),
            ("o@v1", big, None, "--max-lora-rank 9"),
            ("o@v1", nameless, None, "names no base"),
            ("../x", tmp_path / "s1", None, "is not a name"),
            ("base", tmp_path / "s1", None, "name of the base"),
        ]
        for name, folder, digest, reason in cases:
            with pytest.raises(ServingRefused, match=reason):
                await server.load(name, folder, digest)
        assert engine.calls == []

    play(scenario)


def test_a_tensor_that_the_model_lacks_is_found_when_the_adapter_is_loaded(play, base, tmp_path):
    async def scenario(server, engine, gate):
        # The two layers were rehearsed before; an adapter of other shapes is not.
        server._rehearsed.clear()
        engine.unknown = "model.layers.0.q_proj.weight"
        with pytest.raises(ServingRefused, match="no weight for model"):
            await server.load("s@v3", make_sparse(tmp_path / "s3", base, seed=3))
        assert engine.calls == ["pause", "rehearse", "resume"]
        assert "s@v3" not in engine.published.adapters

    play(scenario)


def test_an_unloaded_lora_stays_until_the_requests_in_flight_have_ended(play, base, tmp_path):
    async def scenario(server, engine, gate):
        await server.load("l@v1", make_lora(tmp_path / "l", base))
        async with gate.enter():
            await server.unload("l@v1")
            await server.unload("l@v1")
            assert "l@v1" not in engine.published.adapters
            for _ in range(20):
                await asyncio.sleep(0)
            assert ("remove", "l@v1") not in engine.calls
        while server._tasks:
            await asyncio.wait(set(server._tasks))
        assert ("remove", "l@v1") in engine.calls
        assert len(list((tmp_path / "scratch").iterdir())) == 2

    play(scenario)
