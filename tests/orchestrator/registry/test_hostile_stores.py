"""What somebody else wrote into a store does no harm when the registry is rebuilt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.store.adapters.manifest import get_manifest_key
from jobs.store.local import DirectoryStore
from orchestrator.registry import runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.rebuild.rebuild import rebuild
from tests.orchestrator.registry.builders import (
    count_changes,
)
from tests.orchestrator.registry.stores import (
    DONE,
    RUNNING,
    SEARCHED,
    write_run,
)

HOSTILE: list[tuple[str, bytes]] = [
    ("runs/a b/spec.yaml", b"name: x"),
    ("runs/;rm -rf ~/spec.yaml", b"name: x"),
    (f"runs/{'x' * 200}/spec.yaml", b"name: x"),
    ("runs/r1/spec.yaml", b"\xff\xfe"),
    ("runs/r1/spec.yaml", b"- a list"),
    ("runs/r1/spec.yaml", b"name: ';--'\nwho: knows"),
    ("runs/r1/spec.yaml", b"[" * 100_000),
    ("runs/r1/spec.yaml", b"x" * 2_000_000),
    ("runs/r1/search.yaml", b"search: 7"),
    ("adapters/chat/v1/manifest.json", b"{}"),
    ("adapters/chat/v1/manifest.json", b"[" * 100_000),
    ("adapters/a b/v1/manifest.json", b"{}"),
    ("adapters/chat/current", b"nonsense"),
    ("adapters/a b/current", b"{}"),
]


@pytest.mark.parametrize(("key", "data"), HOSTILE, ids=lambda value: ascii(value)[:40])
def test_an_unreadable_object_is_reported_and_the_rest_is_restored(
    key: str, data: bytes, database: Database, store: DirectoryStore
):
    write_run(store, DONE, {"event": "published"})
    store.put(key, data)
    result = rebuild(database, store)
    assert len(result.faults) == 1
    assert str(result.faults[0]).isprintable() and len(str(result.faults[0])) < 800
    with database.read() as session:
        assert runs.get(session, DONE).status is Status.DONE


LINES: list[bytes] = [
    b'{"event":"started","time":1,"a\\u0000b":"c\\u0000d\\u001b[2J","n":NaN,"i":Infinity}',
    b'{"event":"failed","time":"noon","why":{"deep":[1,2]}}',
    b'{"event":"failed","time":-1e400,"why":"\\ud800 \'; DROP TABLE runs; --"}',
    b'{"event":["published"],"time":null,"attempt":"7"}',
    b'{"event":"started","attempt":99999999999999999999,"steps":' + b"9" * 400 + b"}",
    b'{"event":"started","attempt":true,"time":' + b"9" * 400 + b"}",
    b'{"event":"trial","record":{"number":{},"curve":[],"shared":[]}}',
    b"[" * 5000,
    b"not json",
    b"{" + b'"event":"' + b"x" * 100_000 + b'"}',
]


@pytest.mark.parametrize("run", [RUNNING, SEARCHED])
def test_hostile_lines_of_a_journal_do_no_harm(run: str, database: Database, full: DirectoryStore):
    for line in LINES:
        with full.local_path(f"runs/{run}/events.jsonl").open("ab") as journal:
            journal.write(line + b"\n")
        result = rebuild(database, full)
        assert result.runs.total == 7, line[:40]
        assert count_changes(rebuild(database, full)) == (0, 0, 0, 0), line[:40]
        with database.read() as session:
            bodies = [event.body for event in runs.list_events(session, run, origin="store")]
        texts = [str(text) for body in bodies for pair in body.items() for text in pair]
        assert texts, line[:40]
        assert all(text.isprintable() and len(text) <= 1000 for text in texts), line[:40]


def test_a_hostile_manifest_that_parses_is_stored_or_reported(
    database: Database, full: DirectoryStore, tmp_path: Path
):
    manifest = json.loads(full.get(get_manifest_key("chat", 1)))
    file = manifest["files"][0]
    many = [{**file, "name": f"f{n}", "size": 2**62} for n in range(3)]
    for version, changes in {
        3: {"parent": "a\x00b", "attempt": 2**62},
        4: {"files": many},
        5: {"evaluation": {"a\x00": {"\x1b": 1e308}}, "created": "0001-01-01T00:00:00Z"},
    }.items():
        data = json.dumps({**manifest, **changes, "version": version}).encode()
        full.put(get_manifest_key("chat", version), data)
    result = rebuild(database, full)
    assert [fault.key for fault in result.faults] == ["adapters/chat/v4/manifest.json"]
    assert result.adapters.total == 4
    with database.read() as session:
        assert runs.get(session, DONE).attempt == 2
