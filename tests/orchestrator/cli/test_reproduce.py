"""Reproducing a run: only from unchanged records, and compared file by file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.federation.artifacts import FEDERATION_FILE
from jobs.federation.check import ValidatedFederation, check_federation
from jobs.inspect.base_digest import digest_base
from jobs.inspect.recorded_spec import load_recorded_spec
from jobs.plan.preflight import ValidatedRun, validate_run
from jobs.spec.load import dump_spec, validate_spec
from jobs.spec.schema import FederatedSpec, RunSpec, make_site_spec
from jobs.store.adapters.manifest import BaseRecord, DataRecord, Manifest
from jobs.store.adapters.operations import commit
from jobs.store.open import open_store
from jobs.store.runs.pinned_spec import pin_spec
from jobs.store.runs.run_store import SPEC, RunStore
from orchestrator.cli.reproduce import GPU_TOLERANCE_SHARE, Reproduction, Validated, repeat_run
from tests.jobs.federation.specs import a_federation
from tests.jobs.store.builders import encode_float_tensor, make_adapter_folder, make_draft
from tests.tiny import chat_rows, hollow_model, tiny_spec

RUN = "tiny-20260101-120000-0a1b"


class Workspace:
    """A committed adapter with the records of its run, and a training that commits a folder."""

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
        manifest_draft = make_draft(
            name="tiny",
            run=RUN,
            base=BaseRecord(path="base", **vars(digest_base(self.checked.model.folder))),
            data=DataRecord(train_sha256=str(rows.sha256), row_order="seed 0", rows=rows.rows),
            spec_sha256=hashlib.sha256(dump_spec(self.spec).encode()).hexdigest(),
        )
        return commit(open_store(url), folder, manifest_draft)

    def train(self, spec: RunSpec, validated: Validated, files: Mapping[str, bytes]) -> bool:
        self.given = dict(files)
        assert isinstance(validated, ValidatedRun)
        assert validated.spec == spec == self.spec.model_copy(update={"store": spec.store})
        assert spec.store != self.spec.store
        self.commit(spec.store, self.exported)
        return True

    def repeat(self) -> Reproduction:
        reproduction = repeat_run(self.store, "tiny@v1", self.train)
        assert reproduction is not None
        return reproduction


def test_a_stopped_repetition_compares_nothing(tmp_path: Path):
    workspace = Workspace(tmp_path)
    assert repeat_run(workspace.store, "tiny@v1", lambda *_: False) is None


def test_the_repetition_computes_with_the_kernels_of_the_first_run(tmp_path: Path):
    workspace = Workspace(tmp_path)
    workspace.runs.write_text("kernels/0a1b-1.json", "{}")
    assert workspace.repeat().is_same
    assert workspace.given == {"kernels/0a1b-1.json": b"{}"}


def test_equal_bytes_are_a_reproduction(tmp_path: Path):
    workspace = Workspace(tmp_path)
    reproduction = workspace.repeat()
    assert reproduction.is_same and reproduction.differences == {}
    assert workspace.given == {}
    assert reproduction.equal_files == ("adapter_config.json", "adapter_model.safetensors")
    assert reproduction.code_versions == ("0.1.0", "0.1.0")


@pytest.mark.parametrize(
    ("gpus", "value", "is_same"),
    [(0, 2.0000002, False), (1, 2.0000002, True), (1, 2.0 + 3 * GPU_TOLERANCE_SHARE, False)],
    ids=["a bit on a CPU", "a bit on a GPU", "more on a GPU"],
)
def test_a_cpu_must_agree_bit_for_bit_and_a_gpu_within_its_tolerance(
    gpus, value, is_same, tmp_path
):
    workspace = Workspace(tmp_path, gpus_per_worker=gpus)
    (workspace.exported / "adapter_model.safetensors").write_bytes(encode_float_tensor(1.0, value))
    reproduction = workspace.repeat()
    assert reproduction.is_same is is_same
    assert list(reproduction.differences) == ["adapter_model.safetensors"]


def test_a_head_that_was_trained_at_the_rate_of_its_stage_is_so_again(tmp_path: Path):
    """As in all releases before `train.head_learning_rate`, whose records lack the key."""
    workspace = Workspace(tmp_path)
    old = dump_spec(workspace.spec).replace("  head_learning_rate: 0.01\n", "")
    workspace.runs.write_text(SPEC, old)
    sha256 = hashlib.sha256(old.encode()).hexdigest()
    recorded = load_recorded_spec(
        workspace.store, workspace.first.model_copy(update={"spec_sha256": sha256})
    )
    train = workspace.spec.train.model_copy(update={"head_learning_rate": None})
    assert recorded == workspace.spec.model_copy(update={"train": train})


def test_another_shape_or_file_exceeds_any_tolerance(tmp_path: Path):
    workspace = Workspace(tmp_path, gpus_per_worker=1)
    (workspace.exported / "adapter_model.safetensors").write_bytes(
        encode_float_tensor(1.0, 2.0, 3.0)
    )
    (workspace.exported / "more.json").write_text("{}")
    reproduction = workspace.repeat()
    assert not reproduction.is_same
    assert set(reproduction.differences.values()) == {float("inf")}


def change_spec(workspace: Workspace) -> None:
    workspace.runs.write_text(SPEC, dump_spec(workspace.spec) + "\n# edited\n")


def delete_spec(workspace: Workspace) -> None:
    workspace.store.delete(workspace.runs.key(SPEC))


def change_rows(workspace: Workspace) -> None:
    chat_rows(workspace.folder / "train.jsonl", 21)


def change_base(workspace: Workspace) -> None:
    path = workspace.folder / "model" / "config.json"
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_spec, "has changed since"),
        (delete_spec, "are not in the store"),
        (change_rows, "the rows do not have the recorded digest"),
        (change_base, "the model is not the recorded base: config.json differs"),
    ],
)
def test_an_irreproducible_run_is_not_started(change, message: str, tmp_path: Path):
    workspace = Workspace(tmp_path)
    change(workspace)

    def never(*_: object) -> bool:
        raise AssertionError("it was started")

    with pytest.raises(InputError, match=message):
        repeat_run(workspace.store, "tiny@v1", never)


class FederatedWorkspace(Workspace):
    """The same for an adapter that was trained by clients."""

    def __init__(self, folder: Path) -> None:
        chat_rows(folder / "eval.jsonl", 4)
        self.federation = a_federation(folder, cluster={"workers": 2})
        super().__init__(folder)

    def commit(self, url: str, folder: Path) -> Manifest:
        self.spec = self.federation.training
        self.runs.write_text(SPEC, dump_spec(self.spec))
        pin_spec(self.federation, self.runs)
        rows = self.checked.train_scan
        manifest_draft = make_draft(
            name="tiny",
            run=RUN,
            base=BaseRecord(path="base", **vars(digest_base(self.checked.model.folder))),
            data=DataRecord(train_sha256=str(rows.sha256), row_order="seed 0", rows=rows.rows),
            spec_sha256=hashlib.sha256(dump_spec(self.spec).encode()).hexdigest(),
            federation=self.federation.section.model_dump(mode="json"),
        )
        return commit(open_store(url), folder, manifest_draft)

    def train(self, spec: RunSpec, validated: Validated, files: Mapping[str, bytes]) -> bool:
        self.given = dict(files)
        assert isinstance(validated, ValidatedFederation)
        assert validated.site_run.spec == make_site_spec(spec)
        assert isinstance(spec, FederatedSpec)
        assert spec.section == self.federation.section
        assert digest_partition(spec) == digest_partition(self.federation)
        self.commit(spec.store, self.exported)
        return True


def digest_partition(spec: FederatedSpec) -> str:
    partition = check_federation(spec, store=False).partition
    assert partition is not None
    return partition.digest


def test_the_adapter_of_a_federation_is_reproduced_by_its_clients(tmp_path: Path):
    assert FederatedWorkspace(tmp_path).repeat().is_same


def test_a_federation_with_a_changed_spec_is_not_reproduced(tmp_path: Path):
    workspace = FederatedWorkspace(tmp_path)
    other = a_federation(tmp_path, {"average": "nesterov"}, cluster={"workers": 2})
    workspace.runs.write_text(FEDERATION_FILE, dump_spec(other))
    with pytest.raises(InputError, match=r"the federation of run .* has changed since"):
        workspace.repeat()
