"""Whatever a spec contains, the control plane answers with none but the project's own errors."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from jobs.errors import InputError, JobsError
from jobs.plan.preflight import validate_run
from jobs.spec.kinds import find_kind
from jobs.spec.schema import RunSpec
from orchestrator.cluster.base import Capacity
from orchestrator.control.bulkheads.bulkhead import Bulkhead
from orchestrator.control.bulkheads.item_guard import ItemGuard
from orchestrator.control.bulkheads.look_keeper import LookKeeper
from orchestrator.control.intake import Intake
from orchestrator.control.looking.child import answer_request
from orchestrator.control.looking.look_protocol import LookRequest, LookResult, parse_answer
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.control.placement import BEING_CHECKED, Placement, find_shortage, set_node_memory
from orchestrator.control.resolve import SubmitRequest
from orchestrator.control.scheduler import Scheduler, find_next_firing
from orchestrator.registry import schedules
from orchestrator.registry.database import Database
from orchestrator.registry.schedules import NewSchedule
from tests.orchestrator.cluster.fake import FakeCluster
from tests.orchestrator.control.bulkheads.hostile_specs import list_leaves, make_specs
from tests.orchestrator.control.clock import SettableClock
from tests.tiny import chat_rows, hollow_model

EXAMPLES, LONG_EXAMPLES = 200, 10_000
START = 1_768_000_000.0
CAPACITIES = (
    None,
    Capacity(cpus=4, gpus=0, free_cpus=0, free_gpus=0, nodes=2, node_memory=8 << 30),
    Capacity(cpus=1e9, gpus=1e9, free_cpus=0, free_gpus=0, nodes=0, node_memory=None),
    Capacity(cpus=1e7, gpus=1e7, free_cpus=0, free_gpus=0, nodes=1, node_memory=1),
)


class LooksInProcess:
    """Looks at files as the child process does, in this one."""

    def submit(self, project: str, request: LookRequest) -> Future[LookResult]:
        result = Future[LookResult]()
        result.set_result(parse_answer(answer_request(request).model_dump_json().encode()))
        return result


class Campaign:
    """A control plane through which specs are sent, and a tally of how far they came."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.folder = database, folder
        self.tally, self.messages = Counter[str](), 0
        self.store = f"file://{folder / 'store'}"
        self.metrics, self.clock = ServiceMetrics(), SettableClock(START)
        self.intake = Intake(database, [self.store, f"file://{folder}"], ["default"])
        cluster = FakeCluster()
        cluster.cluster_capacity = Capacity(1e7, 1e7, 1e7, 1e7, 3, 8 << 30)
        looks = LooksInProcess()
        self.placement = Placement(cluster, looks, shared_filesystem=True, autoscaling=False)
        guard = ItemGuard(self.metrics, clock=self.clock.now)
        self.scheduler = Scheduler(
            database,
            self.intake,
            self.clock,
            holder="a",
            metrics=self.metrics,
            fingerprinter=lambda project, location, places: None,
            bulkhead=Bulkhead(guard, LookKeeper(database, "scheduler", "a")),
        )

    def try_spec(self, values: dict[str, Any]) -> None:
        """Send a spec through everything. Raise what is no error of the project."""
        kind = find_kind(values).name
        self.tally["specs"] += 1
        with self._allow_own_errors("intake"):
            key = f"k{self.tally['specs']}" if self.tally["specs"] % 2 else None
            run, _ = self.intake.accept(SubmitRequest(kind=kind, spec=values), key=key)
            request = self.intake.resolve(SubmitRequest(kind=kind, spec=values))
            self.tally["accepted"] += 1
            if (result := self.placement(run)) == BEING_CHECKED:
                result = self.placement(run)
            self.tally["rejected by the plan" if result.rejection else "fit"] += 1
            self._try_plan(request.load_spec())
        self._try_schedule(kind, values)
        failures = [sample.value for metric in self.metrics.item_failures.collect()
                    for sample in metric.samples if sample.name.endswith("_total")]  # fmt: skip
        assert sum(failures) == 0, "the guard caught an error that is not the project's own"

    def _try_plan(self, spec: RunSpec) -> None:
        for capacity in CAPACITIES:
            with self._allow_own_errors("plan"):
                if capacity is not None:
                    find_shortage(spec, capacity)
                    spec = set_node_memory(spec, capacity)
        with self._allow_own_errors("plan"):
            validate_run(spec, quick=True)

    def _try_schedule(self, kind: Any, values: dict[str, Any]) -> None:
        try:
            json.dumps(values, allow_nan=False).encode()
        except (ValueError, TypeError):
            return  # no body of a request and no row can hold it
        name = f"s{self.tally['specs']}"
        with self._allow_own_errors("schedule"):
            new = NewSchedule(name=name, cron="* * * * *", kind=kind, spec=values)
            # Not validated, as a row of an earlier version: firing it validates it again.
            with self.database.write() as session:
                next_at = find_next_firing(new, self.clock.now())
                schedules.add(session, new, next_at=next_at)
            self.clock.at += 61
            assert self.scheduler.fire_due() == 1
            self.tally["fired"] += 1
            with self.database.write() as session:
                schedules.remove(session, schedules.get(session, "default", name))

    @contextmanager
    def _allow_own_errors(self, part: str) -> Iterator[None]:
        try:
            yield
        except InputError as invalid:
            self.messages += len(str(invalid)) > 0
            self.tally[f"refused by {part}"] += 1
        except JobsError as error:
            self.tally[f"{part}: {type(error).__name__}"] += 1


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[Campaign]:
    folder = tmp_path_factory.mktemp("hostile")
    hollow_model(folder / "model")
    chat_rows(folder / "train.jsonl", 20)
    shutil.copy(migrated_file, folder / "registry.db")
    database = Database(f"sqlite:///{folder / 'registry.db'}")
    yield Campaign(database, folder)
    database.close()


def test_the_strategy_knows_every_key_of_the_schema():
    paths = {".".join(leaf.path) for leaf in list_leaves()}
    assert {"train.steps", "cluster.workers.min", "search.budget.tokens", "data.eval"} <= paths
    assert len(paths) > 100


@pytest.mark.parametrize(
    "examples", [EXAMPLES, pytest.param(LONG_EXAMPLES, marks=pytest.mark.long)]
)
@pytest.mark.timeout(7200)
def test_no_spec_raises_anything_but_the_projects_own_errors(campaign: Campaign, examples: int):
    campaign.tally.clear()

    @seed(18)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(make_specs(campaign.folder))
    def try_all(values: dict[str, Any]) -> None:
        campaign.try_spec(values)

    try_all()
    print(dict(campaign.tally))
    assert campaign.tally["specs"] >= examples
    assert campaign.tally["accepted"] > examples / 20, "most specs never reached the plan"
