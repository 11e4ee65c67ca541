"""Reproducing: only from unchanged papers, and judged file by file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.federation.artifacts import FEDERATION_FILE, pin_spec
from jobs.federation.check import ValidatedFederation, check_federation
from jobs.inspect.model_files import digest_model
from jobs.plan.preflight import ValidatedRun, validate_run
from jobs.spec.load import dump_spec, validate_spec
from jobs.store.adapters.manifest import BaseRecord, DataRecord, Manifest
from jobs.store.adapters.operations import commit
from jobs.store.open import open_store
from jobs.store.runs.run_store import SPEC, RunStore
from orchestrator.cli.reproduce import GPU_TOLERANCE_SHARE, Reproduction, repeat_run
from tests.jobs.federation.specs import a_federation
from tests.jobs.store.builders import encode_float_tensor, make_adapter_folder, make_draft
from tests.tiny import chat_rows, hollow_model, tiny_spec

RUN = "tiny-20260101-120000-0a1b"


def unasked(_: Any) -> bool:
    raise AssertionError("it is not made like that")


class World:
    """A committed adapter with its papers, and a training that plays back a folder."""

    def __init__(self, folder: Path, **cluster: Any) -> None:
        self.folder = folder
        hollow_model(folder / "model")
        chat_rows(folder / "train.jsonl", 20)
        self.spec = validate_spec(tiny_spec(folder, cluster={"workers": 2, **cluster}))
        self.store = open_store(self.spec.store)
        self.checked = validate_run(self.spec)
        self.runs = RunStore(self.store, RUN)
        self.runs.write_text(SPEC, dump_spec(self.spec))
        self.exported = make_adapter_folder(folder / "exported")
        (self.exported / "adapter_model.safetensors").write_bytes(encode_float_tensor(1.0, 2.0))
        self.first = self.commit(self.spec.store, self.exported)

    def commit(self, url: str, folder: Path) -> Manifest:
        rows = self.checked.train_scan
        told = make_draft(
            name="tiny",
            run=RUN,
            base=BaseRecord(path="base", digest=digest_model(self.checked.model.folder)),
            data=DataRecord(train_sha256=str(rows.sha256), row_order="seed 0", rows=rows.rows),
            spec_sha256=hashlib.sha256(dump_spec(self.spec).encode()).hexdigest(),
        )
        return commit(open_store(url), folder, told)

    def train(self, checked: ValidatedRun) -> bool:
        assert checked.spec.store != self.spec.store
        self.commit(checked.spec.store, self.exported)
        return True

    def reproduced(self) -> Reproduction:
        found = repeat_run(self.store, "tiny@v1", self.train, unasked)
        assert found is not None
        return found


def test_what_is_stopped_half_way_is_compared_with_nothing(tmp_path: Path):
    world = World(tmp_path)
    assert repeat_run(world.store, "tiny@v1", lambda _: False, unasked) is None


def test_the_same_bytes_are_a_reproduction(tmp_path: Path):
    world = World(tmp_path)
    found = world.reproduced()
    assert found.is_same and found.differences == {}
    assert found.equal_files == ("adapter_config.json", "adapter_model.safetensors")
    assert found.code_versions == ("0.1.0", "0.1.0")


@pytest.mark.parametrize(
    ("gpus", "value", "same"),
    [(0, 2.0000002, False), (1, 2.0000002, True), (1, 2.0 + 3 * GPU_TOLERANCE_SHARE, False)],
    ids=["a bit on a CPU", "a bit on a GPU", "more on a GPU"],
)
def test_a_cpu_has_to_agree_to_the_bit_and_a_gpu_within_its_tolerance(gpus, value, same, tmp_path):
    world = World(tmp_path, gpus_per_worker=gpus)
    (world.exported / "adapter_model.safetensors").write_bytes(encode_float_tensor(1.0, value))
    found = world.reproduced()
    assert found.is_same is same
    assert list(found.differences) == ["adapter_model.safetensors"]


def test_another_shape_or_another_file_is_never_within_a_tolerance(tmp_path: Path):
    world = World(tmp_path, gpus_per_worker=1)
    (world.exported / "adapter_model.safetensors").write_bytes(encode_float_tensor(1.0, 2.0, 3.0))
    (world.exported / "more.json").write_text("{}")
    found = world.reproduced()
    assert not found.is_same
    assert set(found.differences.values()) == {float("inf")}


def change_spec(world: World) -> None:
    world.runs.write_text(SPEC, dump_spec(world.spec) + "\n# edited\n")


def lose_papers(world: World) -> None:
    world.store.delete(world.runs.key(SPEC))


def change_rows(world: World) -> None:
    chat_rows(world.folder / "train.jsonl", 21)


def change_base(world: World) -> None:
    path = world.folder / "model" / "config.json"
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (change_spec, "has changed since"),
        (lose_papers, "are not in the store"),
        (change_rows, "other rows"),
        (change_base, "another model"),
    ],
)
def test_what_can_not_come_out_the_same_is_not_even_started(spoil, says: str, tmp_path: Path):
    world = World(tmp_path)
    spoil(world)

    def never(_: ValidatedRun) -> bool:
        raise AssertionError("it was started")

    with pytest.raises(InputError, match=says):
        repeat_run(world.store, "tiny@v1", never, unasked)


class Federation(World):
    """The same of an adapter that clients made."""

    def __init__(self, folder: Path) -> None:
        chat_rows(folder / "eval.jsonl", 4)
        self.asked = a_federation(folder, cluster={"workers": 2})
        super().__init__(folder)

    def commit(self, url: str, folder: Path) -> Manifest:
        self.spec = self.asked.training
        self.runs.write_text(SPEC, dump_spec(self.spec))
        pin_spec(self.asked, self.runs)
        rows = self.checked.train_scan
        told = make_draft(
            name="tiny",
            run=RUN,
            base=BaseRecord(path="base", digest=digest_model(self.checked.model.folder)),
            data=DataRecord(train_sha256=str(rows.sha256), row_order="seed 0", rows=rows.rows),
            spec_sha256=hashlib.sha256(dump_spec(self.spec).encode()).hexdigest(),
            federation=self.asked.section.model_dump(mode="json"),
        )
        return commit(open_store(url), folder, told)

    def federate(self, found: ValidatedFederation) -> bool:
        assert found.federated_spec.section == self.asked.section
        assert found.partition is not None
        assert found.partition.digest == self.partition()
        self.commit(found.federated_spec.store, self.exported)
        return True

    def partition(self) -> str:
        found = check_federation(self.asked, store=False).partition
        assert found is not None
        return found.digest

    def again(self) -> Reproduction | None:
        return repeat_run(self.store, "tiny@v1", unasked, self.federate)


def test_an_adapter_of_a_federation_is_made_by_its_clients_again(tmp_path: Path):
    found = Federation(tmp_path).again()
    assert found is not None and found.is_same


def test_a_federation_whose_papers_were_changed_is_not_reproduced(tmp_path: Path):
    world = Federation(tmp_path)
    other = a_federation(tmp_path, {"average": "nesterov"}, cluster={"workers": 2})
    world.runs.write_text(FEDERATION_FILE, dump_spec(other))
    with pytest.raises(InputError, match=r"the federation of run .* has changed since"):
        world.again()
