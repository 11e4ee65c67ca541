"""A deployment follows its adapter: what it does after a promotion, a failure and a rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError, NotInStore, StillReferenced
from jobs.store.adapters.operations import delete_version, promote
from jobs.store.adapters.operations import rollback as roll_pointer_back
from jobs.store.local import DirectoryStore
from orchestrator.deployments.deployment_acts import deploy, remove, rollback
from orchestrator.deployments.deployment_record import DeploymentRecord, read_deployment
from orchestrator.deployments.errors import NoEarlierVersion, TargetUnreachable
from orchestrator.deployments.rollout_driver import RolloutDriver
from tests.orchestrator.deployments.builders import commit_promoted, commit_version, make_wish
from tests.orchestrator.deployments.fake_target import FakeTarget


class World:
    """A deployment of chat with what it consists of."""

    def __init__(self, store: DirectoryStore, target: FakeTarget, folder: Path) -> None:
        self.store, self.target, self.folder = store, target, folder
        self.driver = RolloutDriver(store, target)

    def release(self, **options: Any) -> int:
        """Commit and promote a version, follow it, and return its number."""
        manifest = commit_promoted(self.store, self.folder, **options)
        self.driver.settle("chat")
        return manifest.version

    @property
    def record(self) -> DeploymentRecord:
        return read_deployment(self.store, "chat")[0]

    @property
    def events(self) -> list[str]:
        return [entry.event for entry in self.record.history]


@pytest.fixture
def world(store: DirectoryStore, target: FakeTarget, tmp_path: Path) -> World:
    """A deployment of chat v1, which answers."""
    world = World(store, target, tmp_path / "folders")
    commit_promoted(store, world.folder)
    deploy(store, target, make_wish(), by="me")
    assert world.driver.settle("chat") is None
    assert target.names == {"chat": "chat@v1"}
    return world


@pytest.mark.parametrize("form", ["lora", "sparse"])
def test_a_promotion_is_followed_and_the_version_before_stays_loaded(world: World, form: str):
    world.release(form=form)
    assert world.target.names == {"chat": "chat@v2"}
    assert (world.record.live, world.record.previous, world.record.model) == (2, 1, "chat")
    assert sorted(world.target.adapters) == ["chat@v1", "chat@v2"]
    world.release(form=form)
    assert sorted(world.target.adapters) == ["chat@v2", "chat@v3"]
    assert world.events[-2:] == ["rollout_started", "live"]
    assert "loss 2" in world.record.history[-1].detail


def test_a_version_that_is_not_promoted_is_not_followed(world: World):
    commit_version(world.store, world.folder)
    world.driver.settle("chat")
    assert world.target.names == {"chat": "chat@v1"}


def test_a_pinned_version_stays(world: World):
    deploy(world.store, world.target, make_wish(1), by="me")
    world.release()
    assert world.target.names == {"chat": "chat@v1"}
    assert world.record.pin == 1


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({"texts": {"chat@v2": " "}}, "the answer to prompt 1 is empty"),
    "slow": ({"seconds": {"chat@v2": 31.0}}, "took 31.0 s"),
    "loss": ({"served_loss": {"chat@v2": 2.2}}, "2.2000 through the server, but 2.0000"),
    "nan": ({"served_loss": {"chat@v2": float("nan")}}, "not finite"),
    "refused": (
        {"refuses": lambda method, name: "no room" if name == "chat@v2" else None},
        "no room",
    ),
}


@pytest.mark.parametrize("form", ["lora", "sparse"])
@pytest.mark.parametrize("case", FAULTS)
def test_a_version_that_fails_leaves_the_old_one_answering_and_is_not_tried_again(
    world: World, case: str, form: str
):
    attributes, reason = FAULTS[case]
    for name, value in attributes.items():
        setattr(world.target, name, value)
    world.release(form=form)
    assert world.target.names == {"chat": "chat@v1"}
    assert (world.record.live, world.record.status) == (1, "declined")
    assert world.record.declined is not None and reason in world.record.declined.reason
    assert reason in world.record.history[-1].detail
    for name in attributes:
        setattr(world.target, name, getattr(FakeTarget(), name))
    world.target.calls.clear()
    world.driver.settle("chat")
    assert not [call for call in world.target.calls if call.startswith(("load", "set_name"))]
    assert list(world.target.adapters) == ["chat@v1"]


def test_only_a_lora_is_judged_before_it_answers(world: World):
    world.target.served_loss = {"chat@v2": 3.0, "chat@v3": 3.0}
    world.release(form="lora")
    assert set(world.target.answering) == {"chat@v1"}
    world.release(form="sparse")
    assert world.target.answering[-2:] == ["chat@v3", "chat@v1"]


def test_a_lora_that_follows_a_sparse_adapter_is_judged_once_it_answers(world: World):
    world.release(form="sparse")
    world.target.served_loss = {"chat@v3": 3.0}
    world.release(form="lora")
    assert world.target.answering[-2:] == ["chat@v3", "chat@v2"]
    assert world.record.declined is not None and "3.0000" in world.record.declined.reason
    world.release(form="lora")
    assert world.target.names == {"chat": "chat@v4"}


def test_a_version_worse_than_the_one_that_answers_is_declined(world: World):
    world.release(loss=2.3)
    assert world.record.live == 1
    assert world.record.declined is not None
    assert "worse than 2.0000 of the version that answers now" in world.record.declined.reason


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"base": "b" * 64}, "trained on /models/base (bbbbbbbbbbbb), but the endpoint local"),
        ({"config": {"r": 32}}, "its rank is 32, but the endpoint local serves up to 16"),
        ({"config": {"task_type": "SEQ_CLS"}}, "its task is 'SEQ_CLS'"),
        ({"config": {"target_parameters": ["experts"]}}, "it adapts fused experts, which"),
    ],
)
def test_what_the_server_cannot_serve_is_refused_before_anything_moves(
    world: World, options: dict[str, Any], reason: str
):
    world.release(**options)
    assert world.record.declined is not None and reason in world.record.declined.reason
    assert "load chat@v2" not in world.target.calls
    with pytest.raises(InputError) as refused:
        deploy(world.store, world.target, make_wish(2), by="me")
    assert reason in str(refused.value)


def test_a_sparse_adapter_is_refused_by_a_server_that_serves_lora_only(
    store: DirectoryStore, tmp_path: Path
):
    commit_promoted(store, tmp_path / "folders", form="sparse")
    with pytest.raises(InputError, match="its form is sparse, but the endpoint local serves lora"):
        deploy(store, FakeTarget(forms=frozenset({"lora"})), make_wish(), by="me")
    with pytest.raises(NotInStore):
        read_deployment(store, "chat")


def test_a_promotion_of_the_same_version_again_is_another_try(world: World):
    world.target.served_loss = {"chat@v2": 3.0}
    world.release()
    world.target.served_loss = {}
    roll_pointer_back(world.store, "chat")
    world.driver.settle("chat")
    assert (world.record.status, world.record.declined) == ("live", None)
    promote(world.store, "chat", 2)
    world.driver.settle("chat")
    assert world.target.names == {"chat": "chat@v2"}


def test_a_promotion_during_a_rollout_supersedes_it(world: World):
    commit_promoted(world.store, world.folder)
    while world.driver.advance("chat").kind != "load":
        pass
    commit_promoted(world.store, world.folder)
    world.driver.settle("chat")
    assert world.target.names == {"chat": "chat@v3"}
    assert sorted(world.target.adapters) == ["chat@v1", "chat@v3"]
    assert "superseded" in world.events


@pytest.mark.parametrize("form", ["lora", "sparse"])
def test_a_rollback_switches_at_once_and_stays_until_the_next_promotion(world: World, form: str):
    world.release(form=form)
    world.target.calls.clear()
    rollback(world.store, world.target, "chat", by="me")
    assert world.target.names == {"chat": "chat@v1"}
    assert world.target.calls == ["read_state", "set_name chat@v1"]
    world.driver.settle("chat")
    assert (world.record.live, world.record.previous) == (1, None)
    assert world.record.history[-1].by == "me"
    with pytest.raises(NoEarlierVersion):
        rollback(world.store, world.target, "chat", by="me")
    world.release(form=form)
    assert world.target.names == {"chat": "chat@v3"}


def test_a_rollback_ends_a_rollout_that_runs(world: World):
    world.release()
    commit_promoted(world.store, world.folder)
    while world.driver.advance("chat").kind != "judge":
        pass
    rollback(world.store, world.target, "chat", by="me")
    world.driver.settle("chat")
    assert world.target.names == {"chat": "chat@v1"}
    assert list(world.target.adapters) == ["chat@v1"]


@pytest.mark.parametrize("form", ["lora", "sparse"])
def test_a_server_that_was_restarted_gets_its_versions_back(world: World, form: str):
    world.release(form=form)
    world.target.restart()
    assert world.driver.settle("chat") is None
    assert world.target.names == {"chat": "chat@v2"}
    assert sorted(world.target.adapters) == ["chat@v1", "chat@v2"]
    assert world.events[-1] == "restored"


def test_a_server_that_does_not_answer_is_waited_for(world: World):
    commit_promoted(world.store, world.folder)
    world.target.is_down = True
    problem = world.driver.settle("chat")
    assert problem is not None and "The endpoint local does not answer" in problem
    assert world.record.problem == problem
    with pytest.raises(TargetUnreachable):
        rollback(world.store, world.target, "chat", by="me")
    world.target.is_down = False
    assert world.driver.settle("chat") is None
    assert (world.record.problem, world.record.live) == (None, 2)


def test_a_server_that_refuses_everything_after_a_failed_switch_is_repaired(world: World):
    def refuse(method: str, name: str) -> str | None:
        if method != "set_name" or failures[0] == 0:
            return None
        failures[0] -= 1
        world.target.problem = "the weights are a mixture"
        return world.target.problem

    failures = [2]
    world.target.refuses = refuse
    world.release(form="sparse")
    assert (world.target.names, world.target.problem) == ({"chat": "chat@v1"}, None)
    assert world.events[-2:] == ["declined", "restored"]


def test_a_removal_takes_the_name_and_the_versions_from_the_server(world: World):
    world.release()
    remove(world.store, "chat", by="me")
    world.driver.settle("chat")
    assert (world.target.names, world.target.adapters) == ({}, {})
    with pytest.raises(NotInStore):
        read_deployment(world.store, "chat")


def test_a_version_that_is_served_or_kept_for_a_rollback_is_not_deleted(world: World):
    world.release()
    promote(world.store, "chat", 2)
    commit_promoted(world.store, world.folder)
    world.store.put("deployments/broken.json", b"[]")
    for version in (1, 2):
        with pytest.raises(StillReferenced, match=r"deployments/chat\.json"):
            delete_version(world.store, "chat", version)
    world.driver.settle("chat")
    delete_version(world.store, "chat", 1)


def test_another_adapter_or_a_name_of_somebody_else_is_refused(world: World, tmp_path: Path):
    with pytest.raises(InputError, match="is of chat to local"):
        deploy(world.store, world.target, make_wish(endpoint="other"), by="me")
    other = DirectoryStore(tmp_path / "other")
    commit_promoted(other, world.folder)
    with pytest.raises(InputError, match="serves a chat that is not in this store"):
        deploy(other, world.target, make_wish(), by="me")
    deploy(other, world.target, make_wish(name="second"), by="me")
    RolloutDriver(other, world.target).settle("second")
    assert world.target.names == {"chat": "chat@v1", "second": "second@v1"}


def test_clients_of_a_server_without_public_names_are_told_the_versioned_one(
    store: DirectoryStore, tmp_path: Path
):
    target = FakeTarget(has_names=False, forms=frozenset({"lora"}))
    world = World(store, target, tmp_path / "folders")
    commit_promoted(store, world.folder)
    deploy(store, target, make_wish(), by="me")
    world.driver.settle("chat")
    world.release()
    assert (world.record.live, world.record.model) == (2, "chat@v2")
    assert sorted(target.adapters) == ["chat@v1", "chat@v2"]
    assert rollback(store, target, "chat", by="me").model == "chat@v1"


def test_every_event_is_reported_once(world: World):
    reported: list[str] = []
    world.driver = RolloutDriver(
        world.store, world.target, on_event=lambda record, entry: reported.append(entry.event)
    )
    world.release()
    assert reported == ["rollout_started", "live"]
