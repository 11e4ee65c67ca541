"""Under a policy a version is read only with the signature of a trusted key for exactly itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.errors import InputError, NotInStore, Untrusted
from jobs.store.adapters.listing import find_newest, read_committed
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import (
    collect_garbage,
    commit,
    delete_version,
    list_ancestors,
    promote,
    pull,
    resolve_adapter,
    scan_adapters,
    verify_adapter,
)
from jobs.store.local import DirectoryStore
from jobs.store.trust.signatures import Signer, format_public_key
from jobs.store.trust.statements import find_project
from jobs.store.trust.trust_policy import make_trust_environment, read_trust_policy
from jobs.store.trust.version_trust import sign_version
from tests.jobs.store.builders import DyingStore, Killed, catch, make_adapter_folder, make_draft
from tests.jobs.trust.keys import Keys

SIGNATURE = "adapters/chat/v1/manifest.sig"
MANIFEST = "adapters/chat/v1/manifest.json"


def commit_signed(
    store: DirectoryStore, folder: Path, signer: Signer | None, **changes: object
) -> Manifest:
    adapter = folder if folder.exists() else make_adapter_folder(folder)
    return commit(store, adapter, make_draft(**changes), sign=signer)


def make_bare_signature(signer: Signer, data: bytes) -> bytes:
    """The format of earlier releases: a signature of the manifest alone."""
    key = base64.b64encode(signer.public_key).decode()
    document = {"format": 1, "algorithm": "ed25519", "public_key": key}
    return json.dumps({**document, "signature": signer.sign(data)}).encode()


def test_without_a_policy_nothing_is_demanded(store, keys: Keys, tmp_path: Path):
    manifest = commit_signed(store, tmp_path / "one", None)
    assert resolve_adapter(store, "chat") == manifest
    assert (pull(store, manifest, tmp_path / "pulled") / "manifest.json").is_file()
    assert not (tmp_path / "state").exists()


def test_a_signed_version_is_read_and_pulled_with_the_bytes_that_were_signed(
    store, keys: Keys, tmp_path: Path
):
    commit_signed(store, tmp_path / "one", keys.ours)
    keys.trust()
    folder = pull(store, resolve_adapter(store, "chat"), tmp_path / "pulled")
    for name, key in (("manifest.json", MANIFEST), ("manifest.sig", SIGNATURE)):
        assert (folder / name).read_bytes() == store.get(key)


def test_an_unsigned_version_is_refused_by_every_reader(store, keys: Keys, tmp_path: Path):
    manifest = commit_signed(store, tmp_path / "one", None)
    keys.trust()
    for act in (
        lambda: resolve_adapter(store, "chat"),
        lambda: resolve_adapter(store, "chat@v1"),
        lambda: read_committed(store, "chat", 1),
        lambda: pull(store, manifest, tmp_path / "pulled"),
        lambda: promote(store, "chat", 1, signer=keys.ours),
    ):
        error = catch(Untrusted, act)
        assert error is not None and "it is not signed. Sign it with" in str(error)
    assert not (tmp_path / "pulled").exists()
    assert find_newest(store, "chat", [1], lambda manifest: True) is None
    adapters, faults = scan_adapters(store)
    assert adapters == [] and [fault.problem for fault in faults] == ["it is not signed"]


def test_another_key_is_refused_and_named(store, keys: Keys, tmp_path: Path):
    commit_signed(store, tmp_path / "one", keys.theirs)
    keys.trust()
    with pytest.raises(Untrusted) as caught:
        resolve_adapter(store, "chat")
    assert "did not sign" in caught.value.problem
    assert format_public_key(keys.theirs.public_key) in caught.value.problem


def swap_versions(store: DirectoryStore) -> None:
    store.put(SIGNATURE, store.get("adapters/chat/v2/manifest.sig"))


def swap_names(store: DirectoryStore) -> None:
    store.put(SIGNATURE, store.get("adapters/other/v1/manifest.sig"))


def change_manifest(store: DirectoryStore) -> None:
    store.put(MANIFEST, store.get(MANIFEST).replace(b'"world_size": 2', b'"world_size": 3'))


def change_run(store: DirectoryStore) -> None:
    store.put(MANIFEST, store.get(MANIFEST).replace(b'"run": "r1"', b'"run": "r9"'))


def rename_version(store: DirectoryStore) -> None:
    """Give v1 the signed manifest of v2: the newer files under the older number."""
    data = store.get("adapters/chat/v2/manifest.json")
    store.put(MANIFEST, data.replace(b'"version": 2', b'"version": 1'))
    swap_versions(store)


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (swap_versions, "run"),
        (swap_names, "name"),
        (change_manifest, "manifest_sha256"),
        (change_run, "run"),
        (rename_version, "version 2, not 1"),
        (lambda store: store.put(SIGNATURE, b""), "cannot be read"),
        (lambda store: store.put(SIGNATURE, b"null"), "cannot be read"),
        (lambda store: store.put(SIGNATURE, b"[" * 4000), "cannot be read"),
        (lambda store: store.put(SIGNATURE, b" " * (2 << 20)), "cannot be read"),
        (lambda store: store.put(SIGNATURE, b"\xff"), "cannot be read"),
        (lambda store: store.delete(SIGNATURE), "not signed"),
    ],
)
def test_a_hostile_signature_is_refused_with_what_is_wrong(
    tamper: Callable[[DirectoryStore], None], problem: str, store, keys: Keys, tmp_path: Path
):
    for number in (1, 2):
        commit_signed(store, tmp_path / "one", keys.ours, run=f"r{number}")
    commit_signed(store, tmp_path / "one", keys.ours, name="other", run="r1")
    tamper(store)
    keys.trust()
    with pytest.raises(Untrusted) as caught:
        resolve_adapter(store, "chat@v1")
    assert problem in caught.value.problem and str(caught.value).isprintable()
    assert resolve_adapter(store, "chat@v2").version == 2


@pytest.mark.parametrize("statement", [None, {}, {"project": "x" * 900}, {"a": 1}])
def test_the_statement_in_the_file_is_never_what_is_verified(
    statement, store, keys: Keys, tmp_path: Path
):
    commit_signed(store, tmp_path / "one", keys.ours)
    document = json.loads(store.get(SIGNATURE))
    store.put(SIGNATURE, json.dumps({**document, "statement": statement}).encode())
    keys.trust()
    assert resolve_adapter(store, "chat").version == 1


def test_a_version_of_another_project_is_refused(keys: Keys, tmp_path: Path):
    root = DirectoryStore(tmp_path / "store")
    lab, other = (DirectoryStore(tmp_path / f"store/projects/{name}") for name in ("lab", "other"))
    manifest = commit_signed(lab, tmp_path / "one", keys.ours)
    keys.trust()
    assert resolve_adapter(lab, "chat") == manifest
    for store in (root, other):
        for key in lab.list("adapters/"):
            store.put(key, lab.get(key))
        with pytest.raises(Untrusted, match='project "lab", not "'):
            resolve_adapter(store, "chat")


@pytest.mark.parametrize(
    ("url", "project"),
    [
        ("file:///data/store/", "default"),
        ("file:///data/store/projects/lab/", "lab"),
        ("s3://bucket/slora/projects/lab", "lab"),
        ("s3://bucket/projects/lab/more", "default"),
        ("s3://bucket/projects", "default"),
        ("s3://bucket/projects/..", "default"),
    ],
)
def test_the_project_of_a_store_is_in_its_url(url: str, project: str):
    assert find_project(url) == project


def test_a_signature_of_format_1_is_accepted_in_the_operators_project_only(
    keys: Keys, tmp_path: Path
):
    root = DirectoryStore(tmp_path / "store")
    lab = DirectoryStore(tmp_path / "store/projects/lab")
    for store in (root, lab):
        commit_signed(store, tmp_path / "one", None)
        store.put(SIGNATURE, make_bare_signature(keys.ours, store.get(MANIFEST)))
    keys.trust()
    assert resolve_adapter(root, "chat").version == 1
    with pytest.raises(Untrusted, match="format 1, which does not name the project"):
        resolve_adapter(lab, "chat")
    root.put(SIGNATURE, make_bare_signature(keys.theirs, root.get(MANIFEST)))
    with pytest.raises(Untrusted, match="did not sign"):
        resolve_adapter(root, "chat")


def test_a_bare_signature_of_a_statement_is_no_signature(store, keys: Keys, tmp_path: Path):
    """The signature of format 2 says nothing about the bytes of the manifest alone."""
    commit_signed(store, tmp_path / "one", keys.ours)
    document = json.loads(store.get(SIGNATURE))
    store.put(SIGNATURE, json.dumps({**document, "format": 1}).encode())
    keys.trust()
    with pytest.raises(Untrusted, match="did not sign"):
        resolve_adapter(store, "chat")


def test_a_manifest_that_is_replaced_before_the_pull_is_refused(store, keys: Keys, tmp_path: Path):
    manifest = commit_signed(store, tmp_path / "one", keys.ours)
    keys.trust()
    with pytest.raises(Untrusted, match="replaced after it was read"):
        pull(store, manifest.model_copy(update={"world_size": 9}), tmp_path / "pulled")


def test_a_run_reads_what_it_has_committed_itself_and_nothing_else_unsigned(
    store, keys: Keys, tmp_path: Path
):
    manifest = commit_signed(store, tmp_path / "one", None, run="r1")
    keys.trust()
    assert resolve_adapter(store, "chat@v1", own_run="r1") == manifest
    pull(store, manifest, tmp_path / "pulled", own_run="r1")
    with pytest.raises(Untrusted):
        resolve_adapter(store, "chat@v1", own_run="r2")
    with pytest.raises(Untrusted):
        pull(store, manifest, tmp_path / "again", own_run="r2")


def test_a_run_that_is_repeated_finds_its_unsigned_commit(store, keys: Keys, tmp_path: Path):
    first = commit_signed(store, tmp_path / "one", None, run="r1")
    keys.trust()
    assert commit_signed(store, tmp_path / "one", None, run="r1") == first


def test_an_unsigned_parent_is_named_in_the_lineage(store, keys: Keys, tmp_path: Path):
    commit_signed(store, tmp_path / "one", None, run="r1")
    child = commit_signed(store, tmp_path / "one", keys.ours, run="r2", parent="chat@v1")
    keys.trust()
    [parent] = list_ancestors(store, child)
    assert parent.problem == "not signed by a trusted key"


def test_an_unsigned_version_keeps_its_blobs_and_can_be_deleted(store, keys: Keys, tmp_path: Path):
    commit_signed(store, tmp_path / "one", None)
    keys.trust()
    assert collect_garbage(store, grace=7200, now=4e9).keys == ()
    delete_version(store, "chat", 1)
    with pytest.raises(NotInStore):
        resolve_adapter(store, "chat")


def test_a_signature_is_written_once_and_replaces_what_others_left(
    store, keys: Keys, tmp_path: Path
):
    manifest = commit_signed(store, tmp_path / "one", keys.theirs)
    sign_version(store, manifest, "default", keys.ours)
    written = store.get(SIGNATURE)
    sign_version(store, manifest, "default", keys.ours)
    assert store.get(SIGNATURE) == written
    keys.trust()
    assert resolve_adapter(store, "chat") == manifest
    assert verify_adapter(store, manifest) == []
    store.put(SIGNATURE, make_bare_signature(keys.ours, store.get(MANIFEST)))
    sign_version(store, manifest, "default", keys.ours)
    assert json.loads(store.get(SIGNATURE))["statement"]["project"] == "default"


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_a_death_while_signing_leaves_a_version_that_can_be_signed(
    after: bool, keys: Keys, tmp_path: Path
):
    watched = DirectoryStore(tmp_path / "watched")
    calls = DyingStore(watched)
    sign_version(calls, commit_signed(watched, tmp_path / "one", None), "default", keys.ours)
    keys.trust()
    for at in range(1, len(calls.calls) + 1):
        store = DirectoryStore(tmp_path / f"store-{at}")
        manifest = commit_signed(store, tmp_path / "one", None)
        catch(
            Killed,
            lambda at=at, store=store, manifest=manifest: sign_version(
                DyingStore(store, at=at, after=after), manifest, "default", keys.ours
            ),
        )
        sign_version(store, manifest, "default", keys.ours)
        assert resolve_adapter(store, "chat") == manifest


def test_a_policy_is_a_pem_file_of_several_keys_or_a_list(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    both = tmp_path / "both.pem"
    both.write_bytes(keys.public.read_bytes() + keys.foreign_public.read_bytes())
    ours, theirs = keys.ours.public_key, keys.theirs.public_key
    for text in (
        str(both),
        f"{keys.public}, {keys.foreign_public}",
        f"{format_public_key(ours)},{format_public_key(theirs)}",
    ):
        policy = read_trust_policy({"SLORA_TRUST": text})
        assert policy is not None and policy.keys == (ours, theirs)
    monkeypatch.setenv("SLORA_TRUST", str(both))
    assert read_trust_policy(make_trust_environment()) == read_trust_policy()
    both.write_bytes(keys.public.read_bytes())
    changed = read_trust_policy()
    assert changed is not None and changed.keys == (ours,)


@pytest.mark.parametrize(
    "text", ["/no/such/file", ",", "ed25519:AAAA", "ed25519:%", "{private}", "{empty}"]
)
def test_a_policy_that_cannot_be_read_refuses_everything(
    text: str, store, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commit_signed(store, tmp_path / "one", keys.ours)
    (tmp_path / "empty").write_bytes(b"")
    text = text.format(private=keys.private, empty=tmp_path / "empty")
    monkeypatch.setenv("SLORA_TRUST", text)
    with pytest.raises(InputError) as caught:
        resolve_adapter(store, "chat")
    assert "SLORA_TRUST" in str(caught.value) and "BEGIN" not in str(caught.value)
