"""A lost registry comes back from a real bucket as it does from a folder."""

from __future__ import annotations

from pathlib import Path

from jobs.store.objects import ObjectStore
from orchestrator.registry import adapters, runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.migrate import upgrade
from orchestrator.registry.rebuild import rebuild
from tests.orchestrator.registry.stores import DONE, RUNNING, fill


def test_a_registry_comes_back_from_either_store(store: ObjectStore, tmp_path: Path):
    fill(store, tmp_path / "exported")
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    upgrade(url)
    database = Database(url)
    done = rebuild(database, store)
    assert (done.runs.found, done.adapters.found, done.searches.found) == (7, 2, 1)
    assert (done.faults, done.events) == ([], 11)
    with database.read() as session:
        assert runs.get(session, DONE).status is Status.DONE
        assert runs.get(session, RUNNING).status is Status.RUNNING
        assert [one.label for one in adapters.page(session)] == ["chat@v1", "chat@v2"]
        (pointer,) = adapters.promoted(session, store.url(""))
    assert pointer.version == 1
    again = rebuild(database, store)
    assert (again.runs.changed, again.adapters.changed, again.events) == (0, 0, 0)
    database.close()
