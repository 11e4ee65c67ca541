"""A lost registry is rebuilt from a real bucket as from a folder."""

from __future__ import annotations

from pathlib import Path

from jobs.store.base import ObjectStore
from orchestrator.registry import adapters, runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.migrate import upgrade
from orchestrator.registry.rebuild.rebuild import rebuild
from tests.orchestrator.registry.stores import DONE, RUNNING, fill_store


def test_a_registry_is_rebuilt_from_either_store(store: ObjectStore, tmp_path: Path):
    fill_store(store, tmp_path / "exported")
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    upgrade(url)
    database = Database(url)
    done = rebuild(database, store)
    assert (done.runs.total, done.adapters.total, done.searches.total) == (7, 2, 1)
    assert (done.faults, done.events) == ([], 11)
    with database.read() as session:
        assert runs.get(session, DONE).status is Status.DONE
        assert runs.get(session, RUNNING).status is Status.RUNNING
        assert [adapter.label for adapter in adapters.list_page(session)] == ["chat@v1", "chat@v2"]
        (pointer,) = adapters.list_pointers(session, store.url(""))
    assert pointer.version == 1
    again = rebuild(database, store)
    assert (again.runs.changed, again.adapters.changed, again.events) == (0, 0, 0)
    database.close()
