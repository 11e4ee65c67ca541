"""Commits: a fixed order, one winner per version, and a death loses at most a version number."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import DigestMismatch, InputError, StoreError
from jobs.store.adapters.commit import LOOK_BACK
from jobs.store.adapters.manifest import encode_manifest, parse_manifest
from jobs.store.adapters.operations import commit, resolve_adapter, scan_adapters, verify_adapter
from jobs.store.blobs import get_blob_key
from jobs.store.digest import compute_file_sha256
from jobs.store.local import DirectoryStore
from tests.jobs.store.builders import (
    DyingStore,
    Killed,
    encode_float_tensor,
    encode_safetensors,
    encode_text_tensor,
    kill_process,
    make_adapter_folder,
    make_draft,
    race,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_adapter_folder(tmp_path / "exported")


def test_a_commit_is_a_folder_that_peft_reads_and_a_manifest(store: DirectoryStore, folder: Path):
    manifest = commit(store, folder, make_draft(), now=datetime(2026, 1, 1, 12, tzinfo=UTC))
    blobs = sorted(get_blob_key(file.sha256) for file in manifest.files)
    assert list(store.list("blobs/")) == blobs
    assert list(store.list("adapters/")) == [
        "adapters/chat/v1/.claim",
        "adapters/chat/v1/adapter_config.json",
        "adapters/chat/v1/adapter_model.safetensors",
        "adapters/chat/v1/manifest.json",
    ]
    written = store.get("adapters/chat/v1/manifest.json")
    assert parse_manifest(written, "adapters/chat/v1/manifest.json") == manifest
    assert manifest.created == "2026-01-01T12:00:00Z"
    for file in manifest.files:
        assert file.sha256 == compute_file_sha256(folder / file.name)
        assert store.get(manifest.prefix + file.name) == (folder / file.name).read_bytes()


def test_the_time_is_written_in_utc_wherever_the_run_was(store: DirectoryStore, folder: Path):
    zone = datetime(2026, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=9)))
    assert commit(store, folder, make_draft(), now=zone).created == "2025-12-31T16:30:00Z"


def test_versions_count_up_within_a_name(store: DirectoryStore, folder: Path):
    requests = [("chat", "r1"), ("chat", "r2"), ("other", "r3"), ("chat", "r4")]
    committed = [
        commit(store, folder, make_draft(name=name, run=run)).label for name, run in requests
    ]
    assert committed == ["chat@v1", "chat@v2", "other@v1", "chat@v3"]


def test_the_tenth_version_follows_the_ninth(store: DirectoryStore, folder: Path):
    versions = [commit(store, folder, make_draft(run=f"r{turn}")).version for turn in range(11)]
    assert versions == list(range(1, 12))
    assert resolve_adapter(store, "chat").version == 11


def test_a_repeated_commit_of_a_run_returns_the_first_manifest(store: DirectoryStore, folder: Path):
    first = commit(store, folder, make_draft(attempt=1))
    commit(store, folder, make_draft(run="another"))
    assert commit(store, folder, make_draft(attempt=2)) == first
    assert len(scan_adapters(store)[0]) == 2


def test_a_run_that_trained_further_gets_a_new_version(store: DirectoryStore, folder: Path):
    commit(store, folder, make_draft())
    (folder / "adapter_model.safetensors").write_bytes(encode_text_tensor("weights that moved on"))
    assert commit(store, folder, make_draft(attempt=2)).version == 2


def test_a_commit_writes_blob_and_file_reads_back_and_writes_the_manifest_last(
    store: DirectoryStore, folder: Path
):
    watched = DyingStore(store)
    manifest = commit(watched, folder, make_draft())
    blobs = {get_blob_key(file.sha256): f"blob of {file.name}" for file in manifest.files}
    writes = [call.split(" ") for call in watched.calls if call.startswith(("put", "open", "copy"))]
    assert [(act, blobs.get(key, key.removeprefix(manifest.prefix))) for act, key in writes] == [
        ("put", ".claim"),
        ("put", "blob of adapter_config.json"),
        ("copy", "adapter_config.json"),
        ("open", "adapter_config.json"),
        ("put", "blob of adapter_model.safetensors"),
        ("copy", "adapter_model.safetensors"),
        ("open", "adapter_model.safetensors"),
        ("put", "manifest.json"),
    ]


def record_commit_calls(tmp_path: Path) -> list[str]:
    watched = DyingStore(DirectoryStore(tmp_path / "rehearsal"))
    commit(watched, make_adapter_folder(tmp_path / "rehearsed"), make_draft())
    return watched.calls


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_a_death_at_any_call_leaves_no_partial_adapter_and_a_retry_completes(
    after: bool, folder: Path, tmp_path: Path
):
    calls = record_commit_calls(tmp_path)
    assert len(calls) >= 8
    written = 1 + next(i for i, c in enumerate(calls) if c == "put adapters/chat/v1/manifest.json")
    for at, call in enumerate(calls, start=1):
        store = DirectoryStore(tmp_path / f"store-{at}")
        with pytest.raises(Killed):
            commit(DyingStore(store, at=at, after=after), folder, make_draft(attempt=1))
        committed = at > written or (after and at == written)
        assert len(scan_adapters(store)[0]) == int(committed), call
        retried = commit(store, folder, make_draft(attempt=2))
        assert scan_adapters(store)[0] == [retried], call
        assert verify_adapter(store, retried) == [], call
        claimed = at > next(i for i, c in enumerate(calls) if c.endswith(".claim")) + (not after)
        assert retried.version == (2 if claimed and not committed else 1), call


def _commit_and_die(start: Barrier, _: int, root: Path, folder: Path, at: int) -> None:
    commit(DyingStore(DirectoryStore(root), at=at, death=kill_process), folder, make_draft())


def test_a_real_kill_just_before_the_manifest_shows_nothing(folder: Path, tmp_path: Path):
    at = 1 + record_commit_calls(tmp_path).index("put adapters/chat/v1/manifest.json")
    store = DirectoryStore(tmp_path / "store")
    assert race(_commit_and_die, store.root, folder, at, count=1) == [-signal.SIGKILL]
    assert store.head("adapters/chat/v1/adapter_model.safetensors") is not None
    assert scan_adapters(store)[0] == []
    assert commit(store, folder, make_draft(attempt=2)).label == "chat@v2"


def _commit_own(start: Barrier, mine: int, root: Path, folders: list[Path]) -> None:
    start.wait()
    commit(
        DirectoryStore(root),
        folders[mine],
        make_draft(run=f"run-{mine}", code_version=f"code {mine}"),
    )


def test_eight_runs_that_commit_the_same_name_get_eight_unmixed_versions(tmp_path: Path):
    store = DirectoryStore(tmp_path / "store")
    folders = [
        make_adapter_folder(tmp_path / f"exported-{i}", f"of run {i} " * 500) for i in range(8)
    ]
    assert race(_commit_own, store.root, folders, count=8) == [0] * 8
    adapters = scan_adapters(store)[0]
    assert [adapter.version for adapter in adapters] == list(range(1, 9))
    assert {adapter.run for adapter in adapters} == {f"run-{i}" for i in range(8)}
    for adapter in adapters:
        mine = adapter.run.removeprefix("run-")
        assert verify_adapter(store, adapter) == []
        assert adapter.code_version == f"code {mine}"
        for key in store.list(adapter.prefix):
            if not key.endswith((".claim", "manifest.json")):
                assert f"of run {mine} ".encode() in store.get(key)


def test_a_claimed_version_is_never_filled_by_another_run(store: DirectoryStore, folder: Path):
    store.put("adapters/chat/v1/.claim", b'{"run": "sleeping", "attempt": 1}')
    store.put("adapters/chat/v2/adapter_config.json", b"left by somebody")
    assert commit(store, folder, make_draft()).version == 3
    assert list(store.list("adapters/chat/v1/")) == ["adapters/chat/v1/.claim"]


@pytest.mark.parametrize("file_name", [".claim", "adapter_config.json", "manifest.json"])
def test_a_number_that_no_commit_counted_up_to_neither_moves_nor_ends_the_numbering(
    file_name: str, store: DirectoryStore, folder: Path
):
    manifest = encode_manifest(commit(store, folder, make_draft(run="r1")))
    data = manifest.replace(b'"version": 1', b'"version": 999999999')
    store.put(f"adapters/chat/v999999999/{file_name}", data)
    assert commit(store, folder, make_draft(run="r2")).version == 2
    assert commit(store, folder, make_draft(run="r3")).version == 3


def test_a_claim_far_above_does_not_hide_the_later_attempt_that_fences(
    store: DirectoryStore, folder: Path
):
    claim = json.dumps({"run": make_draft().run, "attempt": 2}).encode()
    store.put("adapters/chat/v1/.claim", claim)
    for number in range(10_000, 10_000 + LOOK_BACK):
        store.put(f"adapters/chat/v{number}/.claim", b"{}")
    with pytest.raises(StoreError, match=r"a later attempt than 1 has claimed chat@v1"):
        commit(store, folder, make_draft(attempt=1))


def test_an_old_attempt_cannot_become_the_newest_version(
    store: DirectoryStore, folder: Path, tmp_path: Path
):
    commit(store, folder, make_draft(attempt=2))
    old = make_adapter_folder(tmp_path / "old", "what attempt 1 had")
    with pytest.raises(StoreError, match=r"a later attempt than 1 has claimed chat@v1"):
        commit(store, old, make_draft(attempt=1))
    assert [adapter.label for adapter in scan_adapters(store)[0]] == ["chat@v1"]


def test_an_attempt_is_fenced_by_its_own_run_only(store: DirectoryStore, folder: Path):
    commit(store, folder, make_draft(run="another", attempt=9))
    assert commit(store, folder, make_draft(attempt=1)).version == 2


@pytest.mark.parametrize(
    "claim",
    [
        b"", b"\xff", b"[]", b"null", b'{"run": 1}', b"[" * 4000,
        b'{"run": "chat-20260101-120000-0a1b", "attempt": "9"}',
        b'{"run": "chat-20260101-120000-0a1b", "attempt": 9}' + b" " * 4096,
    ],
    ids=["empty", "not UTF-8", "a list", "null", "no attempt", "too deep", "a text", "too large"],
)  # fmt: skip
def test_an_invalid_claim_fences_no_attempt(claim: bytes, store: DirectoryStore, folder: Path):
    store.put("adapters/chat/v1/.claim", claim)
    assert commit(store, folder, make_draft()).version == 2


def test_an_invalid_manifest_of_the_name_stops_no_commit(store: DirectoryStore, folder: Path):
    store.put("adapters/chat/v1/manifest.json", b"nonsense")
    assert commit(store, folder, make_draft()).version == 2


class Corrupting(DyingStore):
    """A store that flips a byte of every write."""

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> str:
        return self.put(key, path.read_bytes()[:-1] + b"?", create_only=create_only)


def test_bytes_that_change_in_transit_are_not_committed(store: DirectoryStore, folder: Path):
    with pytest.raises(DigestMismatch):
        commit(Corrupting(store), folder, make_draft())
    assert scan_adapters(store)[0] == []


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "sub").mkdir(), "not a regular file"),
        (lambda f: (f / "link").symlink_to("/etc/passwd"), "not a regular file"),
        (lambda f: (f / ".hidden").touch(), "not a valid file name"),
        (lambda f: (f / "manifest.json").touch(), "not a valid file name"),
        (lambda f: (f / "with space").touch(), "not a valid file name"),
        (lambda f: (f / "a\x1b[2J").touch(), "not a valid file name"),
        (lambda f: (f / "more.safetensors").write_bytes(b"short"), "header"),
        (lambda f: (f / "more.safetensors").write_bytes(encode_safetensors({})), "no tensors"),
        (
            lambda f: (f / "more.safetensors").write_bytes(
                encode_safetensors({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
            ),
            "is empty",
        ),
        (
            lambda f: (f / "more.safetensors").write_bytes(encode_float_tensor(1.0, float("nan"))),
            "NaN or inf",
        ),
        (lambda f: [path.unlink() for path in f.iterdir()], "is empty"),
        (lambda f: f.rename(f.parent / "moved"), "not a folder"),
    ],
    ids=[
        "a folder inside", "a link", "a hidden file", "a manifest", "a space", "an escape",
        "cut-short tensors", "no tensors", "an empty tensor", "NaN", "no files", "no folder",
    ],
)  # fmt: skip
def test_an_invalid_adapter_folder_claims_no_version(spoil, says, store, folder):
    spoil(folder)
    with pytest.raises(InputError, match=says) as caught:
        commit(store, folder, make_draft())
    assert str(caught.value).replace("\n", "").isprintable()
    assert not store.root.exists()


def test_all_faults_of_a_folder_are_reported_together(store: DirectoryStore, folder: Path):
    (folder / "sub").mkdir()
    (folder / ".hidden").touch()
    with pytest.raises(InputError) as caught:
        commit(store, folder, make_draft())
    assert len(caught.value.faults) == 2


def test_a_manifest_that_appears_meanwhile_is_not_overwritten(store: DirectoryStore, folder: Path):
    class Rival(DyingStore):
        def put(self, key: str, data: bytes, **condition: Any) -> str:
            if key.endswith("manifest.json"):
                store.put(key, encode_manifest(first))
            return super().put(key, data, **condition)

    first = commit(store, folder, make_draft(run="first"))
    with pytest.raises(StoreError, match="already exists"):
        commit(Rival(store), folder, make_draft(run="second"))
