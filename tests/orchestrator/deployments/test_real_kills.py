"""SIGKILL for the server, the store and whoever drives a rollout, at each step of it. All of them
are real: vLLM with the plug-in, an S3 server, and a process that follows the pointer.

A client asks the public name throughout. While a part is away its requests may fail; what answers
them is the old version or the new one, never a mixture, and in the end it is the new one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from jobs.store.adapters.operations import promote
from jobs.store.base import ObjectStore
from orchestrator.deployments.deployment_acts import deploy
from orchestrator.deployments.deployment_record import DeploymentRecord
from orchestrator.deployments.rollout_driver import RolloutDriver
from tests.orchestrator.deployments.builders import make_wish
from tests.orchestrator.deployments.crash_fuse import Fuse
from tests.orchestrator.deployments.steady_client import SteadyClient
from tests.orchestrator.deployments.trained_versions import (
    LIMITS,
    RealWorld,
    Version,
    serve_versions,
    train_versions,
)
from tests.storage.weed import BUCKET, Weed

pytestmark = [
    pytest.mark.long,
    pytest.mark.ranks,
    pytest.mark.storage,
    pytest.mark.timeout(3600),
]

VERSIONS = (Version(), Version(), Version("sparse"))
STORE = f"s3://{BUCKET}/kills"
CALLS_TO_THE_SERVER = ("load", "score", "ask", "set_name", "unload")
MAX_CALLS = 100
ANSWER_ERROR = 2e-4
"""A log-probability depends a little on the requests in the same batch."""


class KilledWorld:
    """A deployment that goes from version to version, and a client that asks throughout."""

    def __init__(self, world: RealWorld, weed: Weed) -> None:
        self.world, self.weed = world, weed
        self.answers: dict[int, float] = {}
        """What the client is answered with, by version."""

    @property
    def store(self) -> ObjectStore:
        return self.world.store

    @property
    def live(self) -> int:
        live = self.world.record.live
        assert live is not None
        return live

    def learn_answers(self) -> None:
        """Let each version answer once, with nothing killed."""
        for version in (*range(2, len(VERSIONS) + 1), 1):
            self.world.follow(version)
            with self.world.make_client().run() as client:
                self.answers[version] = float(client.wait_for_answer(300))
        figures = sorted(self.answers.values())
        gaps = [after - before for before, after in pairwise(figures)]
        assert min(gaps) > 3 * ANSWER_ERROR, self.answers

    @contextmanager
    def move_on(self) -> Iterator[SteadyClient]:
        """Promote the next version. The block kills something and repairs it; then the rollout
        has to end, and only the two versions may have answered.
        """
        old = self.live
        new = old % len(VERSIONS) + 1
        promote(self.store, "chat", new)
        with self.world.make_client().run() as client:
            yield client
            record = self.settle()
            last = float(client.wait_for_answer(300))
        assert (record.live, self.world.read_answering()) == (new, f"chat@v{new}"), record
        assert last == pytest.approx(self.answers[new], abs=ANSWER_ERROR)
        allowed = [self.answers[old], self.answers[new]]
        mixed = [
            answer
            for answer in map(float, client.answers)
            if min(abs(answer - one) for one in allowed) > ANSWER_ERROR
        ]
        assert not mixed, (mixed, allowed, old, new)

    def settle(self) -> DeploymentRecord:
        assert self.world.driver.settle("chat") is None
        return self.world.record


class CallingFuse(Fuse):
    """Calls a function where it blows, and lets the call go on: it finds the other side dead."""

    def __init__(
        self, act: Callable[[], None], at: int, *, is_after: bool, watched: frozenset[str]
    ) -> None:
        super().__init__(at, is_after=is_after, watched=watched)
        self._act = act

    def blow(self) -> None:
        self._act()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KilledWorld]:
    folder = tmp_path_factory.mktemp("killed")
    weed = Weed(folder / "weed")
    weed.start()
    try:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in weed.environment.items():
                environment.setenv(name, value)
            store = train_versions(folder, STORE, VERSIONS)
            with serve_versions(folder, store) as world:
                promote(store, "chat", 1)
                deploy(store, world.target, make_wish(**LIMITS), by="me")
                assert world.driver.settle("chat") is None
                killed = KilledWorld(world, weed)
                killed.learn_answers()
                yield killed
    finally:
        weed.kill()


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("call", CALLS_TO_THE_SERVER)
def test_a_server_that_is_killed_at_a_call_is_started_again_and_answers_with_the_new_version(
    killed: KilledWorld, call: str, is_after: bool
):
    server = killed.world.server
    with killed.move_on():
        fuse = CallingFuse(server.kill, 1, is_after=is_after, watched=frozenset({call}))
        RolloutDriver(killed.store, fuse.wrap(killed.world.target)).settle("chat")
        assert fuse.calls >= 1, f"no rollout calls {call}"
        server.start()


def test_a_store_that_is_killed_before_any_write_is_started_again_and_the_rollout_ends(
    killed: KilledWorld,
):
    for at in range(1, MAX_CALLS):
        with killed.move_on() as client:
            fuse = CallingFuse(killed.weed.kill, at, is_after=False, watched=frozenset({"put"}))
            problem = RolloutDriver(fuse.wrap(killed.store), killed.world.target).settle("chat")
            is_killed = fuse.calls >= at
            assert is_killed == (problem is not None), problem
            if is_killed:
                killed.weed.start()
        assert client.failures == client.interruptions == []
        if not is_killed:
            break
    assert at > 4


def test_a_driver_that_is_killed_before_any_change_is_followed_by_another(killed: KilledWorld):
    endpoint = killed.world.config.model_dump_json(exclude_none=True)
    for at in range(1, MAX_CALLS):
        with killed.move_on() as client:
            command = [sys.executable, "-m", "tests.orchestrator.deployments.killed_driver"]
            result = subprocess.run(
                [*command, STORE, endpoint, str(at)], capture_output=True, text=True, check=False
            )
            assert result.returncode in (0, -9), result.stderr
        assert client.failures == client.interruptions == []
        if result.returncode == 0:
            break
    assert at > 6
