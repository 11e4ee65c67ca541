"""Eight concurrent writers of a name: a version each, one history, nothing mixed."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier
from pathlib import Path

from jobs.store.adapters.operations import (
    commit,
    promote,
    read_pointer,
    rollback,
    scan_adapters,
    verify_adapter,
)
from jobs.store.base import ObjectStore
from tests.jobs.store.builders import make_adapter_folder, make_draft, race
from tests.storage.faults import has_same_bytes


def _commit(start: Barrier, mine: int, store: ObjectStore, folders: list[Path]) -> None:
    start.wait()
    commit(store, folders[mine], make_draft(run=f"run-{mine}", code_version=f"code {mine}"))


def test_eight_commits_of_the_same_name_get_eight_unmixed_versions(store, tmp_path: Path):
    assert store.check_writable() is None
    folders = [
        make_adapter_folder(tmp_path / f"exported-{i}", f"of run {i} " * 500) for i in range(8)
    ]
    assert race(_commit, store, folders, count=8) == [0] * 8
    adapters = scan_adapters(store)[0]
    assert [adapter.version for adapter in adapters] == list(range(1, 9))
    assert {adapter.run for adapter in adapters} == {f"run-{i}" for i in range(8)}
    for adapter in adapters:
        mine = int(adapter.run.removeprefix("run-"))
        assert adapter.code_version == f"code {mine}"
        assert verify_adapter(store, adapter) == []
        assert has_same_bytes(store, adapter, folders[mine])


def _promote(start: Barrier, mine: int, store: ObjectStore) -> None:
    start.wait()
    promote(store, "chat", mine + 1)


def test_eight_promotions_make_a_history_without_a_loss(store, tmp_path: Path):
    folder = make_adapter_folder(tmp_path / "exported")
    for number in range(8):
        commit(store, folder, make_draft(run=f"r{number}"))
    assert race(_promote, store, count=8) == [0] * 8
    pointer = read_pointer(store, "chat")
    assert pointer is not None
    assert [move.number for move in pointer.moves] == list(range(1, 9))
    assert sorted(move.version for move in pointer.moves) == list(range(1, 9))
    assert (*pointer.previous, pointer.version) == tuple(move.version for move in pointer.moves)
    for before in reversed(pointer.previous):
        assert rollback(store, "chat").version == before
