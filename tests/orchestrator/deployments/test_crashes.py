"""A process that dies at any call of a rollout: another one continues, and it settles.

The script of every crash: the n-th call to the store or the server raises, before or after its
effect. Then a new driver reads the record and continues. The name answers with the old or the new
version after each change, never with another, and ends where a rollout without a crash ends.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import NotInStore
from jobs.store.adapters.operations import promote
from jobs.store.local import DirectoryStore
from orchestrator.deployments.deployment_acts import deploy, remove, rollback
from orchestrator.deployments.deployment_record import DeploymentRecord, read_deployment
from orchestrator.deployments.errors import TargetUnreachable
from orchestrator.deployments.rollout_driver import RolloutDriver
from tests.jobs.store.builders import Killed
from tests.orchestrator.deployments.builders import commit_version, make_wish
from tests.orchestrator.deployments.crash_fuse import Fuse
from tests.orchestrator.deployments.fake_target import FakeTarget

MAX_CALLS = 300


class RestartingFuse(Fuse):
    """Restarts the server at a call to it, which is not answered."""

    def __init__(self, target: FakeTarget, at: int) -> None:
        super().__init__(at, is_after=False)
        self._target = target

    def blow(self) -> None:
        self._target.restart()
        self._target.answering.append(None)
        raise TargetUnreachable("local", "the connection was interrupted")


Act = Callable[[Any, Any], None]


def follow(store: Any, target: Any) -> None:
    RolloutDriver(store, target).settle("chat")


def follow_broken(store: Any, target: Any) -> None:
    """Follow a version whose loss is not that of its run."""
    follow(store, target)


def roll_back(store: Any, target: Any) -> None:
    rollback(store, target, "chat", by="me")
    follow(store, target)


def take_away(store: Any, target: Any) -> None:
    remove(store, "chat", by="me")
    follow(store, target)


def make_world(folder: Path, act: Act, form: str) -> tuple[DirectoryStore, FakeTarget]:
    """Make a deployment of v1 that is to move to v2, or that answers with v2 already."""
    store, target = DirectoryStore(folder / "store"), FakeTarget()
    for _ in range(2):
        commit_version(store, folder / "folders", form=form)
    promote(store, "chat", 1)
    deploy(store, target, make_wish(), by="me")
    follow(store, target)
    promote(store, "chat", 2)
    if act in (roll_back, take_away):
        follow(store, target)
    if act is follow_broken:
        target.served_loss = {"chat@v2": 3.0}
    target.answering.clear()
    return store, target


def copy_world(
    world: tuple[DirectoryStore, FakeTarget], folder: Path
) -> tuple[DirectoryStore, FakeTarget]:
    store, target = world
    origin = store.local_path("deployments")
    assert origin is not None
    shutil.copytree(origin.parent, folder)
    return DirectoryStore(folder), copy.deepcopy(target)


def read_record(store: DirectoryStore) -> DeploymentRecord | None:
    try:
        return read_deployment(store, "chat")[0]
    except NotInStore:
        return None


def describe_end(store: DirectoryStore, target: FakeTarget) -> tuple[Any, ...]:
    record = read_record(store)
    state = record and (record.live, record.previous, record.status, record.problem)
    return state, dict(target.names), sorted(target.adapters)


@pytest.mark.parametrize("form", ["lora", "sparse"])
@pytest.mark.parametrize("act", [follow, follow_broken, roll_back, take_away])
def test_a_crash_at_any_call_leaves_the_old_or_the_new_version_and_it_settles(
    tmp_path: Path, act: Act, form: str
):
    world = make_world(tmp_path / "origin", act, form)
    store, target = copy_world(world, tmp_path / "whole")
    act(store, target)
    end, allowed = describe_end(store, target), {"chat@v1", "chat@v2"}
    if act is take_away:
        allowed |= {None}  # type: ignore[arg-type]
    for at in range(1, MAX_CALLS):
        crashes = 0
        for is_after in (False, True):
            store, target = copy_world(world, tmp_path / f"{at}-{is_after}")
            fuse = Fuse(at, is_after=is_after)
            try:
                act(fuse.wrap(store), fuse.wrap(target))
            except Killed:
                crashes += 1
                record = read_record(store)
                assert act is take_away or record is not None
                # A rollback or a removal that was not recorded is asked for again.
                if record is not None and act is roll_back and record.live == 2:
                    roll_back(store, target)
                elif record is not None and act is take_away and not record.removing:
                    take_away(store, target)
                else:
                    follow(store, target)
            where = f"crash {'after' if is_after else 'before'} call {at}"
            assert describe_end(store, target) == end, where
            assert set(target.answering) <= allowed, where
        if not crashes:
            break
    assert at > 3


@pytest.mark.parametrize("form", ["lora", "sparse"])
@pytest.mark.parametrize("act", [follow, follow_broken, take_away])
def test_a_server_that_is_restarted_at_any_call_gets_its_versions_and_it_settles(
    tmp_path: Path, act: Act, form: str
):
    world = make_world(tmp_path / "origin", act, form)
    store, target = copy_world(world, tmp_path / "whole")
    act(store, target)
    end = describe_end(store, target)
    for at in range(1, MAX_CALLS):
        store, target = copy_world(world, tmp_path / f"{at}")
        fuse = RestartingFuse(target, at)
        act(store, fuse.wrap(target))
        follow(store, target)
        follow(store, target)
        assert describe_end(store, target) == end, f"restart at call {at}"
        assert set(target.answering) <= {"chat@v1", "chat@v2", None}
        if fuse.calls < at:
            break
    assert at > 3
