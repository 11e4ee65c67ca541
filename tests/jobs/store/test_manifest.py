"""The manifest: what was written is read back, and nothing hostile gets through."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from jobs.store.manifest import (
    LARGEST_MANIFEST,
    BadManifest,
    File,
    Manifest,
    manifest_bytes,
    manifest_key,
    parse_manifest,
    read_manifest_key,
)
from tests.jobs.store.made import DIGESTS, draft

KEY = manifest_key("chat", 2)
FILES = (File(name="adapter_model.safetensors", size=100, sha256=DIGESTS["d"]),)
MANIFEST = Manifest(**dict(draft()), version=2, created="2026-01-01T12:00:00Z", files=FILES)


def test_a_manifest_is_read_back_as_it_was_written():
    assert parse_manifest(manifest_bytes(MANIFEST), KEY) == MANIFEST
    assert (MANIFEST.label, MANIFEST.size) == ("chat@v2", 100)


def test_counts_stay_whole_and_stages_stay_in_order():
    read = parse_manifest(manifest_bytes(MANIFEST), KEY)
    assert isinstance(read.ledger["tokens"], int)
    assert isinstance(read.ledger["seconds"], float)
    assert list(read.evaluation) == ["before", "after"]


def test_what_a_federation_asked_for_is_read_back_with_its_types():
    asked = {"rounds": 30, "drop_out": 0.0, "freeze_a": False, "average": "fedavg", "column": None}
    made = MANIFEST.model_copy(update={"federation": asked})
    read = parse_manifest(manifest_bytes(made), KEY).federation
    assert read == asked
    assert [type(value) for value in (read or {}).values()] == [int, float, bool, str, type(None)]


def test_a_manifest_from_before_federations_is_read():
    whole = json.loads(manifest_bytes(MANIFEST))
    del whole["federation"]
    assert parse_manifest(json.dumps(whole).encode(), KEY) == MANIFEST


@pytest.mark.parametrize(
    "wrong",
    [[], "iid", {}, {"rounds": [1]}, {"x": {"y": 1}}, {"a": "b" * 5000},
     {f"key {n}": n for n in range(65)}],
)  # fmt: skip
def test_a_federation_that_is_no_flat_section_is_refused(wrong: Any):
    whole = json.loads(manifest_bytes(MANIFEST)) | {"federation": wrong}
    with pytest.raises(BadManifest, match="federation"):
        parse_manifest(json.dumps(whole).encode(), KEY)


def changed(*path: str | int, to: Any) -> Callable[[], bytes]:
    def build() -> bytes:
        whole = json.loads(manifest_bytes(MANIFEST))
        at = whole
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = to
        return json.dumps(whole).encode()

    return build


def without(name: str) -> bytes:
    whole = json.loads(manifest_bytes(MANIFEST))
    del whole[name]
    return json.dumps(whole).encode()


def named(name: Any) -> Callable[[], bytes]:
    return changed("files", 0, "name", to=name)


TWO = [FILES[0].model_dump(), FILES[0].model_dump() | {"name": "Adapter_Model.safetensors"}]
HOSTILE = {
    "empty": lambda: b"",
    "cut short": lambda: manifest_bytes(MANIFEST)[:-20],
    "not UTF-8": lambda: b"\xff\xfe{}",
    "a list": lambda: b"[]",
    "null": lambda: b"null",
    "a pickle": lambda: pickle.dumps({"name": "chat"}),
    "YAML": lambda: b"name: chat\n",
    "too large": lambda: manifest_bytes(MANIFEST) + b" " * LARGEST_MANIFEST,
    "nested too deep": lambda: b"[" * 300_000 + b"]" * 300_000,
    "a number of 5000 digits": lambda: b'{"version":' + b"9" * 5000 + b"}",
    "NaN": lambda: manifest_bytes(MANIFEST).replace(b"2.125", b"NaN"),
    "infinity by size": lambda: manifest_bytes(MANIFEST).replace(b"2.125", b"1e999"),
    "a name twice": lambda: manifest_bytes(MANIFEST).replace(b"{", b'{"name":"other",', 1),
    "another format": changed("format", to=2),
    "an unknown key": changed("code", to="import os"),
    "no files": changed("files", to=[]),
    "a missing key": lambda: without("spec_sha256"),
    "version zero": changed("version", to=0),
    "version as text": changed("version", to="2"),
    "version true": changed("version", to=True),
    "another version": changed("version", to=3),
    "another name": changed("name", to="other"),
    "name upwards": changed("name", to="../chat"),
    "name with newline": changed("name", to="chat\n"),
    "unknown kind": changed("kind", to="qlora"),
    "run upwards": changed("run", to="../../x"),
    "no world": changed("world_size", to=0),
    "time that never was": changed("created", to="2026-02-30T12:00:00Z"),
    "time in other digits": changed("created", to="٢026-01-01T12:00:00Z"),
    "time with tail": changed("created", to="2026-01-01T12:00:00Z\n"),
    "base without digest": changed("base", to={"path": "x"}),
    "metric as text": changed("evaluation", "after", "eval_loss", to="2.1"),
    "endless label": changed("code_version", to="x" * 5000),
    "file upwards": named("../adapter_config.json"),
    "file in a folder": named("sub/adapter_config.json"),
    "file absolute": named("/etc/passwd"),
    "file backslash": named("..\\x"),
    "file dots": named(".."),
    "file hidden": named(".claim"),
    "file is the manifest": named("manifest.json"),
    "file empty": named(""),
    "file with nul": named("a\0b"),
    "file with newline": named("a\n"),
    "file with escape": named("a\x1b[2J"),
    "file too long": named("a" * 256),
    "file is a number": named(7),
    "file twice but for case": changed("files", to=TWO),
    "size negative": changed("files", 0, "size", to=-1),
    "size a fraction": changed("files", 0, "size", to=1.5),
    "size beyond 64 bits": changed("files", 0, "size", to=2**63),
    "digest short": changed("files", 0, "sha256", to="ab"),
    "digest upper case": changed("files", 0, "sha256", to="A" * 64),
    "digest not hex": changed("files", 0, "sha256", to="g" * 64),
    "digest with newline": changed("files", 0, "sha256", to="a" * 64 + "\n"),
}


@pytest.mark.parametrize("build", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_manifest_is_refused_in_one_printable_line(build: Callable[[], bytes]):
    with pytest.raises(BadManifest) as caught:
        parse_manifest(build(), KEY)
    assert str(caught.value).startswith(KEY)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("adapters/chat/v2/manifest.json", ("chat", 2)),
        ("adapters/chat/v02/manifest.json", None),
        ("adapters/chat/v0/manifest.json", None),
        ("adapters/chat/2/manifest.json", None),
        ("adapters/chat/current", None),
        ("adapters/-chat/v2/manifest.json", None),
        ("adapters/" + "a" * 64 + "/v2/manifest.json", None),
        ("adapters/chat/v2/sub/manifest.json", None),
        ("adapters/chat/v2/manifest.json\n", None),
        ("adapters/chat/v٢/manifest.json", None),
    ],
)
def test_only_a_manifests_key_is_read_as_one(key: str, expected: tuple[str, int] | None):
    assert read_manifest_key(key) == expected
