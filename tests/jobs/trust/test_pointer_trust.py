"""Under a policy a pointer is signed, and never older than one that was seen."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from jobs.errors import InputError, Untrusted
from jobs.store.adapters.operations import (
    commit,
    promote,
    promote_after,
    promote_if_unset,
    read_pointer,
    resolve_adapter,
    rollback,
)
from jobs.store.adapters.pointer import Pointer
from jobs.store.local import DirectoryStore
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.jobs.trust.keys import Keys

CURRENT = "adapters/chat/current"


@pytest.fixture
def full(store: DirectoryStore, keys: Keys, tmp_path: Path) -> DirectoryStore:
    """chat v1, v2 and v3, signed, and the policy that trusts the signer."""
    folder = make_adapter_folder(tmp_path / "exported")
    for run in ("r1", "r2", "r3"):
        commit(store, folder, make_draft(run=run), sign=keys.ours)
    keys.trust()
    return store


def get_move(pointer: Pointer | None) -> tuple[int, int]:
    assert pointer is not None
    return pointer.moves[-1].number, pointer.version


def test_promotions_and_rollbacks_are_signed_and_count_up(full, keys: Keys):
    assert get_move(promote(full, "chat", 1, signer=keys.ours)) == (1, 1)
    assert get_move(promote_after(full, "chat", 2, expected_move=1, signer=keys.ours)) == (2, 2)
    assert get_move(rollback(full, "chat", signer=keys.ours)) == (3, 1)
    assert get_move(read_pointer(full, "chat")) == (3, 1)
    assert resolve_adapter(full, "chat").version == 1


def test_a_first_promotion_if_unset_is_signed(full, keys: Keys):
    promote_if_unset(full, "chat", 2, signer=keys.ours)
    assert resolve_adapter(full, "chat").version == 2


def test_the_configured_key_signs_without_being_passed(
    full, keys: Keys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLORA_SIGNING_KEY", str(keys.private))
    promote(full, "chat", 2)
    assert resolve_adapter(full, "chat").version == 2


def test_without_a_policy_and_a_key_a_pointer_is_as_before(full, keys: Keys):
    keys.distrust()
    promote(full, "chat", 2)
    assert "signature" not in json.loads(full.get(CURRENT))


def test_a_move_without_a_key_is_refused_where_there_is_a_policy(full, keys: Keys):
    for act in (
        partial(promote, full, "chat", 1),
        partial(promote_after, full, "chat", 1, expected_move=None),
        partial(promote_if_unset, full, "chat", 1),
    ):
        with pytest.raises(Untrusted, match=r"no key to sign this one\. Set SLORA_SIGNING_KEY"):
            act()
    with pytest.raises(Untrusted, match="none of the trusted keys"):
        promote(full, "chat", 1, signer=keys.theirs)
    assert full.head(CURRENT) is None


def test_an_old_pointer_that_was_restored_by_hand_is_found_out(full, keys: Keys):
    promote(full, "chat", 1, signer=keys.ours)
    old = full.get(CURRENT)
    promote(full, "chat", 3, signer=keys.ours)
    full.put(CURRENT, old)
    with pytest.raises(Untrusted) as caught:
        resolve_adapter(full, "chat")
    assert "at move 1 (v1), but move 2 was seen" in str(caught.value)
    assert "slora adapters promote chat@v2" in str(caught.value)
    for act in (
        partial(rollback, full, "chat", signer=keys.ours),
        partial(promote_after, full, "chat", 2, expected_move=1, signer=keys.ours),
        partial(promote_if_unset, full, "chat", 2, signer=keys.ours),
    ):
        with pytest.raises(Untrusted):
            act()
    assert resolve_adapter(full, "chat@v3").version == 3
    assert get_move(promote(full, "chat", 3, signer=keys.ours)) == (3, 3)
    assert resolve_adapter(full, "chat").version == 3


def test_a_pointer_that_was_deleted_by_hand_is_found_out(full, keys: Keys):
    promote(full, "chat", 1, signer=keys.ours)
    full.delete(CURRENT)
    with pytest.raises(Untrusted, match="the pointer was deleted: there is none, but move 1"):
        resolve_adapter(full, "chat")
    assert get_move(promote(full, "chat", 1, signer=keys.ours)) == (2, 1)


def test_the_registrys_counter_counts_where_this_user_has_seen_nothing(
    full, keys: Keys, tmp_path: Path
):
    promote(full, "chat", 1, signer=keys.ours)
    keys.forget_moves(str(tmp_path / "new"))
    with pytest.raises(Untrusted, match=r"at move 1 .*, but move 5 was seen"):
        read_pointer(full, "chat", min_move=5)
    with pytest.raises(Untrusted):
        rollback(full, "chat", signer=keys.ours, min_move=5)
    assert get_move(promote(full, "chat", 2, signer=keys.ours, min_move=5)) == (6, 2)


def test_another_pointer_at_the_same_move_is_found_out(full, keys: Keys, tmp_path: Path):
    promote(full, "chat", 1, signer=keys.ours)
    full.delete(CURRENT)
    keys.forget_moves(str(tmp_path / "elsewhere"))
    promote(full, "chat", 2, signer=keys.ours)
    keys.forget_moves(str(tmp_path / "state"))
    with pytest.raises(Untrusted, match="move 1 names v2, but it named v1"):
        resolve_adapter(full, "chat")


def test_an_unsigned_pointer_is_replaced_by_a_signed_one_that_counts_on(full, keys: Keys):
    keys.distrust()
    for version in (1, 2, 3):
        promote(full, "chat", version)
    keys.trust()
    with pytest.raises(Untrusted, match="the pointer is not signed"):
        resolve_adapter(full, "chat")
    pointer = promote(full, "chat", 3, signer=keys.ours)
    assert get_move(pointer) == (4, 3) and pointer.previous == ()


def test_a_forged_counter_does_not_end_the_count(full, keys: Keys):
    keys.distrust()
    promote(full, "chat", 1)
    forged = json.loads(full.get(CURRENT))
    forged["moves"][0]["number"] = 2**53 - 1
    full.put(CURRENT, json.dumps(forged).encode())
    keys.trust()
    assert get_move(promote(full, "chat", 2, signer=keys.ours)) == (1, 2)


def test_the_pointer_of_another_name_project_or_key_is_refused(keys: Keys, tmp_path: Path):
    folder = make_adapter_folder(tmp_path / "exported")
    lab, other = (DirectoryStore(tmp_path / f"store/projects/{name}") for name in ("lab", "other"))
    for store in (lab, other):
        for name in ("chat", "code"):
            for run in ("r1", "r2"):
                commit(store, folder, make_draft(name=name, run=run), sign=keys.ours)
    keys.trust()
    promote(lab, "chat", 1, signer=keys.ours)
    for store, name in ((lab, "code"), (other, "chat")):
        store.put(f"adapters/{name}/current", lab.get(CURRENT))
        with pytest.raises(Untrusted, match="no trusted key signed this pointer"):
            resolve_adapter(store, name)
    keys.distrust()
    promote(lab, "chat", 2, signer=keys.theirs)
    keys.trust()
    with pytest.raises(Untrusted, match="no trusted key signed this pointer"):
        resolve_adapter(lab, "chat")


@pytest.mark.parametrize("field", ["version", "previous", "moves"])
def test_every_field_of_a_pointer_is_signed(field: str, full, keys: Keys):
    for version in (1, 2):
        promote(full, "chat", version, signer=keys.ours)
    pointer = json.loads(full.get(CURRENT))
    values = {"version": 3, "previous": [3], "moves": pointer["moves"][1:]}
    full.put(CURRENT, json.dumps({**pointer, field: values[field]}).encode())
    with pytest.raises(Untrusted, match="no trusted key signed this pointer"):
        resolve_adapter(full, "chat")


def test_a_folder_that_cannot_be_written_is_a_warning(full, keys: Keys, tmp_path: Path, caplog):
    (tmp_path / "file").touch()
    keys.forget_moves(str(tmp_path / "file"))
    promote(full, "chat", 1, signer=keys.ours)
    assert resolve_adapter(full, "chat").version == 1
    assert "a rollback would go unnoticed" in caplog.text


def test_a_corrupt_record_of_moves_is_an_error_with_its_file(full, keys: Keys, tmp_path: Path):
    promote(full, "chat", 1, signer=keys.ours)
    [record] = (tmp_path / "state/slora/moves").glob("*.json")
    for content in (b"", b"{}", b'{"move": 1}', b" " * 100_000):
        record.write_bytes(content)
        with pytest.raises(InputError, match=r"the record of the highest move is corrupt"):
            resolve_adapter(full, "chat")
