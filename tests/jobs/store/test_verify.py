"""Verification: each kind of corruption is reported with its own message."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.inspect.base_digest import digest_base, digest_model, digest_weights
from jobs.store.adapters.manifest import AdapterFile, BaseRecord, Manifest
from jobs.store.adapters.operations import commit, verify_adapter
from jobs.store.local import DirectoryStore
from tests.jobs.store.builders import DIGESTS, encode_safetensors, make_adapter_folder, make_draft

MODEL = "adapters/chat/v1/adapter_model.safetensors"


@pytest.fixture
def manifest(store: DirectoryStore, tmp_path: Path) -> Manifest:
    return commit(store, make_adapter_folder(tmp_path / "exported"), make_draft())


def test_an_intact_adapter_has_no_faults_and_every_byte_is_read(store, manifest):
    lengths = list[int]()
    assert verify_adapter(store, manifest, on_bytes=lengths.append) == []
    assert sum(lengths) == manifest.size


def flip_last_byte(store: DirectoryStore) -> None:
    store.put(MODEL, store.get(MODEL)[:-1] + b"?")


def link_out(store: DirectoryStore) -> None:
    store.delete(MODEL)
    store.local_path(MODEL).symlink_to("/etc/passwd")


def replace_by_folder(store: DirectoryStore) -> None:
    store.delete(MODEL)
    store.local_path(MODEL).mkdir()


ROT: dict[str, tuple[Callable[[DirectoryStore], None], str, str]] = {
    "absent": (lambda store: store.delete(MODEL), MODEL, "missing"),
    "shorter": (lambda store: store.put(MODEL, store.get(MODEL)[:-1]), MODEL, "bytes, but the man"),
    "longer": (
        lambda store: store.put(MODEL, store.get(MODEL) + b"x"),
        MODEL,
        "bytes, but the man",
    ),
    "changed": (flip_last_byte, MODEL, "digest is"),
    "a link out": (link_out, "key", "link"),
    "a folder": (replace_by_folder, MODEL, "missing"),
    "a file more": (
        lambda store: store.put("adapters/chat/v1/run.py", b"import os"),
        "adapters/chat/v1/run.py",
        "does not list this file",
    ),
    "a file deeper": (
        lambda store: store.put("adapters/chat/v1/sub/manifest.json", b"{}"),
        "adapters/chat/v1/sub/manifest.json",
        "does not list this file",
    ),
}


@pytest.mark.parametrize(("spoil", "key", "says"), ROT.values(), ids=ROT.keys())
def test_corruption_is_a_fault_that_says_what_happened(spoil, key, says, store, manifest):
    spoil(store)
    [fault] = verify_adapter(store, manifest)
    assert fault.key == key
    assert says in fault.problem
    assert fault.remedy


def test_every_fault_is_reported(store: DirectoryStore, manifest: Manifest):
    store.delete(MODEL)
    store.put("adapters/chat/v1/adapter_config.json", b"")
    store.put("adapters/chat/v1/extra", b"")
    assert len(verify_adapter(store, manifest)) == 3


EMPTY = {"lora_A": {"dtype": "F32", "shape": [8, 0], "data_offsets": [0, 0]}}
LYING = {"lora_A": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (encode_safetensors(EMPTY), r"'lora_A' is empty, of shape \[8, 0\]"),
        (encode_safetensors(LYING), "the header describes 8 bytes, but the file has 0"),
        (encode_safetensors({}), "no tensors"),
    ],
    ids=["an empty tensor", "a header that lies", "no tensors"],
)
def test_tensors_committed_by_other_programs_are_checked_too(data, says, store, manifest):
    # The digest is right: the writer of the manifest committed invalid tensors.
    store.put(MODEL, data)
    file = AdapterFile(
        name="adapter_model.safetensors", size=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    [fault] = verify_adapter(
        store, manifest.model_copy(update={"files": (manifest.files[0], file)})
    )
    assert re.search(says, fault.problem)


def make_base_folder(folder: Path, config: str = "{}") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(encode_safetensors({}))
    return folder


def test_the_local_base_must_be_that_of_the_training(store, tmp_path: Path):
    base = make_base_folder(tmp_path / "base")
    folder = BaseRecord(path=str(base), **vars(digest_base(base)))
    manifest = commit(store, make_adapter_folder(tmp_path / "exported"), make_draft(base=folder))
    assert verify_adapter(store, manifest) == []
    make_base_folder(base, config='{"hidden_size": 1}')
    [fault] = verify_adapter(store, manifest)
    assert fault.key == "base"
    assert fault.problem.endswith("config.json differs")


def test_a_manifest_of_an_earlier_release_names_config_and_weights_alone(store, tmp_path: Path):
    base = make_base_folder(tmp_path / "base")
    folder = BaseRecord(path=str(base), digest=digest_weights(base))
    manifest = commit(store, make_adapter_folder(tmp_path / "exported"), make_draft(base=folder))
    (base / "tokenizer.json").write_text("{}")
    assert verify_adapter(store, manifest) == []
    make_base_folder(base, config='{"hidden_size": 1}')
    [fault] = verify_adapter(store, manifest)
    assert folder.digest[:12] in fault.problem


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "org/model", "", "a\0b", "x" * 3000, "\x1b[2J"]
)
def test_an_absent_base_is_never_an_exception(path: str, store, manifest):
    base = BaseRecord(path=path, digest=DIGESTS["a"])
    faults = verify_adapter(store, manifest.model_copy(update={"base": base}))
    assert all(fault.key == "base" and str(fault).isprintable() for fault in faults)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda f: f.rename(f.parent / "moved"), True),
        (lambda f: (f / "README.md").touch(), True),
        (lambda f: (f / "model.safetensors").rename(f / "other.safetensors"), False),
        (lambda f: (f / "config.json").write_text("[]"), False),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), False),
        # A copy in another layout, which is not loaded.
        (lambda f: (f / "more.safetensors").touch(), True),
        (lambda f: (f / "more.safetensors.index.json").touch(), True),
        (lambda f: (f / "trainer_state.json").touch(), True),
        (lambda f: (f / "LICENSE.txt").touch(), True),
        (lambda f: (f / "tokenizer.json").write_text("[]"), False),
        (lambda f: (f / "chat_template.jinja").write_text("evil"), False),
        (lambda f: (f / "additional_chat_templates" / "rag.jinja").write_text("evil"), False),
        *(
            (lambda f, name=name: (f / name).write_text("{}"), False)
            for name in (
                "generation_config.json",
                "special_tokens_map.json",
                "added_tokens.json",
                "preprocessor_config.json",
                "vocab.txt",
                "merges.txt",
                "tokenizer.model",
                "source.spm",
            )
        ),
    ],
)
def test_a_base_is_known_by_every_file_that_is_loaded(change, same, tmp_path: Path):
    base = make_base_folder(tmp_path / "base")
    for name in ("tokenizer.json", "chat_template.jinja", "additional_chat_templates/rag.jinja"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("{}")
    before = digest_model(base)
    change(base)
    folder = base if base.exists() else tmp_path / "moved"
    assert (digest_model(folder) == before) is same
