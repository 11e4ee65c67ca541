"""The service signs what a run has committed if it is that run's: only then is the run done."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import StoreUnreachable, Untrusted
from jobs.plan.dtype_choice import set_dtype
from jobs.retrain.detect import make_training_spec
from jobs.spec.load import dump_spec, parse_spec
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import commit, promote, resolve_adapter
from jobs.store.open import open_store
from jobs.store.runs.run_store import SPEC, RunStore
from orchestrator.control.config import parse_config
from orchestrator.control.resolve import SubmitRequest
from orchestrator.control.signing.service_trust import ServiceTrust, load_service_trust
from orchestrator.control.signing.sign_commit import find_commit_fault, sign_commit
from orchestrator.registry import adapters
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.run_request import get_request_key, read_request
from orchestrator.registry.values import Run
from tests.jobs.store.builders import DyingStore, Killed, make_adapter_folder, make_draft
from tests.jobs.trust.keys import Keys
from tests.orchestrator.control.builders import make_spec
from tests.orchestrator.control.control import PENDING, SUCCEEDED, ControlHarness

SIGNATURE = "adapters/chat/v1/manifest.sig"


@pytest.fixture
def signing(control: ControlHarness, keys: Keys) -> ControlHarness:
    """A control plane with the key, whose policy trusts it."""
    keys.trust()
    control.trust = ServiceTrust(signer=keys.ours)
    control.main = control.make_reconciler("b")
    return control


def record_spec(control: ControlHarness, run: Run, parent: str | None = None, **method: Any) -> str:
    """Write the spec of a run as its job does, which settles what is auto, and return its digest.

    `parent`: the adapter that a retraining starts from. `method` changes that section.
    """
    store = open_store(control.store)
    spec = parse_spec(read_request(store, run.id).spec_text, "spec").training
    assert spec.model.dtype == spec.train.learning_rate == "auto"
    rates = {"learning_rate": 0.003, "sparse_learning_rate": 0.02, "head_learning_rate": None}
    spec = make_training_spec(set_dtype(spec, "bfloat16"), parent)
    spec = spec.model_copy(
        update={
            "train": spec.train.model_copy(update=rates),
            "method": spec.method.model_copy(update=method),
        }
    )
    RunStore(store, run.id).write_text(SPEC, text := dump_spec(spec))
    return hashlib.sha256(text.encode()).hexdigest()


def commit_version(control: ControlHarness, run: Run, folder: Path, **changes: Any) -> Manifest:
    """Commit as the run's job does, which has no key."""
    fields = {"name": run.name, "run": run.id, "spec_sha256": record_spec(control, run)}
    changes = {name.removesuffix("_"): value for name, value in changes.items()}
    adapter = folder if folder.exists() else make_adapter_folder(folder)
    return commit(open_store(control.store), adapter, make_draft(**{**fields, **changes}))


def end_job(control: ControlHarness, **submission: Any) -> Run:
    """Submit a run whose job has succeeded, and let the service see it start."""
    run = control.submit(**submission)
    control.cluster.play(f"{run.id}-a1", PENDING, SUCCEEDED)
    control.reconcile(2)
    return run


def test_a_run_is_done_with_its_signature(signing: ControlHarness, tmp_path: Path):
    run = end_job(signing)
    manifest = commit_version(signing, run, tmp_path / "one")
    with pytest.raises(Untrusted):
        resolve_adapter(open_store(signing.store), "chat")
    signing.reconcile()
    assert signing.read_status(run) is Status.DONE
    assert resolve_adapter(open_store(signing.store), "chat") == manifest


def test_a_signature_that_a_job_left_is_replaced(
    signing: ControlHarness, keys: Keys, tmp_path: Path
):
    run = end_job(signing)
    folder = make_adapter_folder(tmp_path / "one")
    draft = make_draft(run=run.id, spec_sha256=record_spec(signing, run))
    commit(open_store(signing.store), folder, draft, sign=keys.theirs)
    signing.reconcile()
    assert signing.read_status(run) is Status.DONE
    assert resolve_adapter(open_store(signing.store), "chat").version == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"spec_sha256": "e" * 64}, "its spec has the digest eeeeeeeeeeee"),
        ({"attempt": 2}, "it is of attempt 2; run"),
        ({"attempt": 0}, "it is of attempt 0; run"),
    ],
)
def test_a_version_that_is_not_what_the_run_should_commit_fails_the_run_unsigned(
    changes: dict[str, Any], problem: str, signing: ControlHarness, tmp_path: Path
):
    run = end_job(signing)
    commit_version(signing, run, tmp_path / "one", **changes)
    signing.reconcile()
    failed = signing.read(run)
    assert (failed.status, failed.reason) == (Status.FAILED, Reason.UNPUBLISHED)
    assert problem in failed.detail and "chat@v1" in failed.detail
    assert open_store(signing.store).head(SIGNATURE) is None


def test_files_that_do_not_match_the_manifest_fail_the_run(signing: ControlHarness, tmp_path: Path):
    run = end_job(signing)
    manifest = commit_version(signing, run, tmp_path / "one")
    store = open_store(signing.store)
    store.put(manifest.prefix + "adapter_config.json", b"{}")
    signing.reconcile()
    assert signing.read(run).reason == Reason.UNPUBLISHED
    assert store.head(SIGNATURE) is None


def test_a_file_that_was_added_after_the_commit_fails_the_run(
    signing: ControlHarness, tmp_path: Path
):
    run = end_job(signing)
    manifest = commit_version(signing, run, tmp_path / "one")
    open_store(signing.store).put(manifest.prefix + "pytorch_model.bin", b"pickle")
    signing.reconcile()
    assert "does not list this file" in signing.read(run).detail


def test_a_run_whose_request_was_deleted_ends(signing: ControlHarness, tmp_path: Path):
    run = end_job(signing)
    commit_version(signing, run, tmp_path / "one")
    open_store(signing.store).delete(get_request_key(run.id))
    signing.reconcile()
    assert "is not in the store" in signing.read(run).detail


def test_files_are_read_once_however_often_the_end_is_repeated(
    signing: ControlHarness, tmp_path: Path
):
    run = end_job(signing)
    manifest = commit_version(signing, run, tmp_path / "one")
    run = signing.read(run)
    reads = list[int]()
    for _ in range(2):
        store = DyingStore(open_store(signing.store))
        assert sign_commit(store, run, manifest, signing.trust) is None
        reads.append(sum(call.startswith("open ") for call in store.calls))
    assert reads[0] >= len(manifest.files) and reads[1] == 0


def test_a_version_of_another_run_or_name_has_a_fault(signing: ControlHarness, tmp_path: Path):
    run = end_job(signing)
    manifest = commit_version(signing, run, tmp_path / "one")
    store = open_store(signing.store)
    for other, problem in (
        (replace(run, id="other"), "not other"),
        (replace(run, name="code"), "makes code"),
    ):
        fault = find_commit_fault(store, replace(other, attempt=1), manifest)
        assert fault is not None and problem in fault.problem


def test_a_retraining_from_an_adapter_trains_a_lora(signing: ControlHarness, tmp_path: Path):
    run = replace(end_job(signing), kind="retrain", attempt=1)
    store = open_store(signing.store)
    digest = record_spec(signing, run, "chat@v1")
    draft = make_draft(name=run.name, run=run.id, spec_sha256=digest, parent="chat@v1")
    manifest = commit(store, make_adapter_folder(tmp_path / "one"), draft)
    assert find_commit_fault(store, run, manifest) is None
    assert find_commit_fault(store, replace(run, kind="finetune"), manifest) is not None


def test_a_job_may_settle_what_is_auto_and_change_nothing_else(
    signing: ControlHarness, tmp_path: Path
):
    run = end_job(signing)
    folder = make_adapter_folder(tmp_path / "one")
    draft = make_draft(run=run.id, spec_sha256=record_spec(signing, run, rank=4))
    commit(open_store(signing.store), folder, draft)
    signing.reconcile()
    assert "which is not that of the spec of run" in signing.read(run).detail


def test_a_searchs_best_trial_has_a_spec_of_its_own(signing: ControlHarness, tmp_path: Path):
    run = replace(end_job(signing), kind="search", attempt=1)
    manifest = commit_version(
        signing, run, tmp_path / "one", run_="trial", search=run.id, spec_sha256="e" * 64
    )
    assert find_commit_fault(open_store(signing.store), run, manifest) is None


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_a_service_that_dies_while_it_signs_is_followed_by_one_that_finishes(
    after: bool, signing: ControlHarness, tmp_path: Path
):
    run = end_job(signing)
    manifest = commit_version(signing, run, tmp_path / "one")
    dying = DyingStore(open_store(signing.store))
    signing.open = lambda url: dying  # type: ignore[assignment,return-value]
    put = dying.put

    def die_at_signature(key: str, *rest: Any, **options: Any) -> str:
        if after:
            put(key, *rest, **options)
        raise Killed

    dying.put = die_at_signature  # type: ignore[method-assign]
    with pytest.raises(Killed):
        signing.reconcile()
    assert signing.read_status(run) is not Status.DONE
    signing.open = open_store
    signing.reconcile(2)
    assert signing.read_status(run) is Status.DONE
    assert resolve_adapter(open_store(signing.store), "chat") == manifest


def test_a_store_that_does_not_answer_delays_the_end_of_the_run(
    signing: ControlHarness, tmp_path: Path
):
    run = end_job(signing)
    commit_version(signing, run, tmp_path / "one")
    silent = DyingStore(open_store(signing.store))

    def refuse(*_: Any, **__: Any) -> str:
        raise StoreUnreachable("the store does not answer")

    silent.put = refuse  # type: ignore[method-assign]
    signing.open = lambda url: silent  # type: ignore[assignment,return-value]
    signing.reconcile()
    assert signing.read_status(run) is Status.SUBMITTED
    signing.open = open_store
    signing.reconcile()
    assert signing.read_status(run) is Status.DONE


def test_without_a_key_the_node_must_have_signed(
    control: ControlHarness, keys: Keys, tmp_path: Path
):
    keys.trust()
    near = {"near": {"address": "http://127.0.0.1:1"}}
    config = parse_config({"clusters": near, "stores": ["file:///data/store"]})
    control.trust = load_service_trust(config)
    control.main = control.make_reconciler("b")
    folder = make_adapter_folder(tmp_path / "one")
    runs = list[Run]()
    for name, signer in (("chat", keys.ours), ("code", None)):
        run = end_job(control, name=name)
        commit(open_store(control.store), folder, make_draft(name=name, run=run.id), sign=signer)
        control.reconcile()
        runs.append(run)
    assert [control.read_status(run) for run in runs] == [Status.DONE, Status.FAILED]
    assert "not signed" in control.read(runs[1]).detail
    with control.database.read() as session:
        assert [adapter.name for adapter in adapters.list_page(session)] == ["chat"]


def test_jobs_get_the_policy_and_never_the_key(
    signing: ControlHarness, keys: Keys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLORA_SIGNING_KEY", str(keys.private))
    signing.submit()
    signing.reconcile()
    (job,) = signing.cluster.started_jobs
    assert list(job.environment) == ["SLORA_TRUST"]
    assert job.environment["SLORA_TRUST"].startswith("ed25519:")
    assert str(keys.public) not in str(job) and str(keys.private) not in str(job)


def test_without_a_policy_jobs_get_no_variable(control: ControlHarness, keys: Keys):
    control.submit()
    control.reconcile()
    assert control.cluster.started_jobs[0].environment == {}


def test_a_pointer_that_was_rolled_back_by_hand_is_not_recorded(
    signing: ControlHarness, keys: Keys, tmp_path: Path
):
    store = open_store(signing.store)
    for number in (1, 2):
        run = end_job(signing)
        commit_version(signing, run, tmp_path / "one")
        signing.reconcile()
        promote(store, "chat", number, signer=keys.ours)
        if number == 1:
            old = store.get("adapters/chat/current")
    with signing.database.write() as session:
        assert adapters.set_pointer_if_known(session, run.store, "chat", 2, 2)
    third = end_job(signing)
    commit_version(signing, third, tmp_path / "one")
    store.put("adapters/chat/current", old)
    for folder in ("state", "another users"):
        keys.forget_moves(str(tmp_path / folder))
        signing.reconcile()
        with signing.database.read() as session:
            recorded = adapters.get_pointer(session, run.store, "chat")
        assert recorded is not None and (recorded.version, recorded.move) == (2, 2)
    assert signing.read_status(third) is Status.DONE


def submit_retraining(control: ControlHarness) -> Run:
    spec = make_spec(control.store, retrain={})
    return control.intake.accept(SubmitRequest(kind="retrain", spec=spec))[0]


def finish_first(control: ControlHarness, folder: Path) -> None:
    """Let a run make chat@v1."""
    first = end_job(control)
    commit_version(control, first, folder)
    control.reconcile()
    assert control.read_status(first) is Status.DONE


def test_a_version_that_nobody_signed_refuses_its_retraining_and_delays_no_other_run(
    signing: ControlHarness, tmp_path: Path
):
    finish_first(signing, tmp_path / "one")
    store = open_store(signing.store)
    commit(store, make_adapter_folder(tmp_path / "two", "by hand"), make_draft(run="by-hand"))
    retraining, other = submit_retraining(signing), signing.submit("other")
    signing.reconcile()
    refused = signing.read(retraining)
    assert (refused.status, refused.reason) == (Status.FAILED, Reason.REFUSED)
    assert "chat@v2" in refused.detail
    assert signing.list_submissions(other) == [f"{other.id}-a1"]


@pytest.mark.parametrize("is_old", [False, True], ids=["unsigned", "rolled back by hand"])
def test_a_pointer_that_is_not_trusted_stays_and_its_retraining_is_done(
    is_old: bool, signing: ControlHarness, keys: Keys, tmp_path: Path
):
    finish_first(signing, tmp_path / "one")
    store, key = open_store(signing.store), "adapters/chat/current"
    promote(store, "chat", 1, signer=keys.ours)
    old = store.get(key)
    retraining = submit_retraining(signing)
    signing.reconcile()
    manifest = commit_version(signing, retraining, tmp_path / "two")
    if is_old:
        # The registry has seen another move, and the service's user has forgotten it.
        assert sign_commit(store, signing.read(retraining), manifest, signing.trust) is None
        promote(store, "chat", 2, signer=keys.ours), promote(store, "chat", 1, signer=keys.ours)
        with signing.database.write() as session:
            adapters.set_pointer_if_known(session, retraining.store, "chat", 1, 3)
        keys.forget_moves(str(tmp_path / "another user"))
    else:
        document = json.loads(old)
        del document["signature"]
        old = json.dumps(document).encode()
    store.put(key, old)
    decision = {"event": "promotion_requested", "adapter": "chat@v2", "expected_move": 1}
    RunStore(store, retraining.id).events.append({"time": time.time(), **decision})
    other = signing.submit("other")
    signing.cluster.play(f"{retraining.id}-a1", SUCCEEDED)
    signing.reconcile(2)
    ended = signing.read(retraining)
    assert ended.status is Status.DONE and ended.detail.startswith("not promoted: ")
    assert store.get(key) == old
    assert signing.list_submissions(other) == [f"{other.id}-a1"]
