"""The manifest: it is read back as written, and invalid ones are refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from jobs.store.adapters.manifest import (
    MAX_MANIFEST_BYTES,
    AdapterFile,
    BadManifest,
    Manifest,
    encode_manifest,
    get_manifest_key,
    parse_manifest,
    parse_manifest_key,
)
from tests.jobs.store.builders import DIGESTS, catch, make_draft

KEY = get_manifest_key("chat", 2)
FILES = (AdapterFile(name="adapter_model.safetensors", size=100, sha256=DIGESTS["d"]),)
MANIFEST = Manifest(**dict(make_draft()), version=2, created="2026-01-01T12:00:00Z", files=FILES)


def test_a_manifest_is_read_back_as_it_was_written():
    assert parse_manifest(encode_manifest(MANIFEST), KEY) == MANIFEST
    assert (MANIFEST.label, MANIFEST.size) == ("chat@v2", 100)


def test_counts_stay_integers_and_stages_stay_in_order():
    read = parse_manifest(encode_manifest(MANIFEST), KEY)
    assert isinstance(read.ledger["tokens"], int)
    assert isinstance(read.ledger["seconds"], float)
    assert list(read.evaluation) == ["before", "after"]


def test_a_federation_section_is_read_back_with_its_types():
    section = {
        "rounds": 30,
        "drop_out": 0.0,
        "freeze_a": False,
        "average": "fedavg",
        "column": None,
    }
    manifest = MANIFEST.model_copy(update={"federation": section})
    read = parse_manifest(encode_manifest(manifest), KEY).federation
    assert read == section
    assert [type(value) for value in (read or {}).values()] == [int, float, bool, str, type(None)]


def test_a_manifest_from_before_federations_is_read():
    document = json.loads(encode_manifest(MANIFEST))
    del document["federation"]
    assert parse_manifest(json.dumps(document).encode(), KEY) == MANIFEST


@pytest.mark.parametrize(
    "section",
    [[], "iid", {}, {"rounds": [1]}, {"x": {"y": 1}}, {"a": "b" * 5000},
     {f"key {n}": n for n in range(65)}],
)  # fmt: skip
def test_a_federation_that_is_no_flat_section_is_refused(section: Any):
    document = json.loads(encode_manifest(MANIFEST)) | {"federation": section}
    with pytest.raises(BadManifest, match="federation"):
        parse_manifest(json.dumps(document).encode(), KEY)


def change_manifest(*path: str | int, to: Any) -> Callable[[], bytes]:
    def build() -> bytes:
        document = json.loads(encode_manifest(MANIFEST))
        at = document
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = to
        return json.dumps(document).encode()

    return build


def remove_field(name: str) -> bytes:
    document = json.loads(encode_manifest(MANIFEST))
    del document[name]
    return json.dumps(document).encode()


def change_name(name: Any) -> Callable[[], bytes]:
    return change_manifest("files", 0, "name", to=name)


TWO = [FILES[0].model_dump(), FILES[0].model_dump() | {"name": "Adapter_Model.safetensors"}]
HOSTILE = {
    "empty": lambda: b"",
    "cut short": lambda: encode_manifest(MANIFEST)[:-20],
    "not UTF-8": lambda: b"\xff\xfe{}",
    "a list": lambda: b"[]",
    "null": lambda: b"null",
    "a pickle": lambda: pickle.dumps({"name": "chat"}),
    "YAML": lambda: b"name: chat\n",
    "too large": lambda: encode_manifest(MANIFEST) + b" " * MAX_MANIFEST_BYTES,
    "nested too deep": lambda: b"[" * 300_000 + b"]" * 300_000,
    "a number of 5000 digits": lambda: b'{"version":' + b"9" * 5000 + b"}",
    "NaN": lambda: encode_manifest(MANIFEST).replace(b"2.125", b"NaN"),
    "infinity by size": lambda: encode_manifest(MANIFEST).replace(b"2.125", b"1e999"),
    "a name twice": lambda: encode_manifest(MANIFEST).replace(b"{", b'{"name":"other",', 1),
    "another format": change_manifest("format", to=2),
    "an unknown key": change_manifest("code", to="import os"),
    "no files": change_manifest("files", to=[]),
    "a missing key": lambda: remove_field("spec_sha256"),
    "version zero": change_manifest("version", to=0),
    "version as text": change_manifest("version", to="2"),
    "version true": change_manifest("version", to=True),
    "another version": change_manifest("version", to=3),
    "another name": change_manifest("name", to="other"),
    "name upwards": change_manifest("name", to="../chat"),
    "name with newline": change_manifest("name", to="chat\n"),
    "unknown kind": change_manifest("kind", to="qlora"),
    "run upwards": change_manifest("run", to="../../x"),
    "no world": change_manifest("world_size", to=0),
    "time that never was": change_manifest("created", to="2026-02-30T12:00:00Z"),
    "time in other digits": change_manifest("created", to="٢026-01-01T12:00:00Z"),
    "time with tail": change_manifest("created", to="2026-01-01T12:00:00Z\n"),
    "base without digest": change_manifest("base", to={"path": "x"}),
    "metric as text": change_manifest("evaluation", "after", "eval_loss", to="2.1"),
    "endless label": change_manifest("code_version", to="x" * 5000),
    "file upwards": change_name("../adapter_config.json"),
    "file in a folder": change_name("sub/adapter_config.json"),
    "file absolute": change_name("/etc/passwd"),
    "file backslash": change_name("..\\x"),
    "file dots": change_name(".."),
    "file hidden": change_name(".claim"),
    "file is the manifest": change_name("manifest.json"),
    "file empty": change_name(""),
    "file with nul": change_name("a\0b"),
    "file with newline": change_name("a\n"),
    "file with escape": change_name("a\x1b[2J"),
    "file too long": change_name("a" * 256),
    "file is a number": change_name(7),
    "file twice but for case": change_manifest("files", to=TWO),
    "size negative": change_manifest("files", 0, "size", to=-1),
    "size a fraction": change_manifest("files", 0, "size", to=1.5),
    "size beyond 64 bits": change_manifest("files", 0, "size", to=2**63),
    "digest short": change_manifest("files", 0, "sha256", to="ab"),
    "digest upper case": change_manifest("files", 0, "sha256", to="A" * 64),
    "digest not hex": change_manifest("files", 0, "sha256", to="g" * 64),
    "digest with newline": change_manifest("files", 0, "sha256", to="a" * 64 + "\n"),
}


def test_an_invalid_manifest_is_refused_with_a_printable_line():
    for case, build in HOSTILE.items():
        error = catch(BadManifest, lambda build=build: parse_manifest(build(), KEY))
        assert error is not None, case
        message = str(error)
        assert message.startswith(KEY) and message.isprintable() and len(message) < 500, case
        assert str(pickle.loads(pickle.dumps(error))) == message, case


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
def test_other_keys_are_no_manifest_keys(key: str, expected: tuple[str, int] | None):
    assert parse_manifest_key(key) == expected
