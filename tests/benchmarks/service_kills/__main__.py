"""Kill parts of the control plane at random, and count what was lost or duplicated.

    python -m tests.benchmarks.service_kills [--runs N] [--firings N] [--seed S] [--json]

Short runs (a job that commits a small adapter) go through two services on a real Ray, a real S3
server and SQLite or PostgreSQL (half of them each), while a service, the S3 server, the database's
connections or the Ray head are killed. Lost runs, duplicate runs and lost adapters are counted.
Then schedules fire on a settable clock while their schedulers are killed: missed and duplicate
firings are counted. The exit code is 1 if any count is not zero.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.errors import InputError, JobsError
from orchestrator.control.intake import Intake
from orchestrator.control.resolve import SubmitRequest
from orchestrator.registry import runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import FINAL
from orchestrator.registry.migrate import upgrade
from tests.benchmarks.service_kills.firings import FiringTally, kill_during_firings
from tests.benchmarks.service_kills.tally import KillTally, count_outcomes
from tests.benchmarks.service_kills.world import SERVICES, Services, World
from tests.orchestrator.conftest import Postgres
from tests.orchestrator.control.builders import make_spec

KINDS = ("sqlite", "postgresql")
VICTIMS = {"service": 12, "database": 4, "s3": 2, "ray": 1}
"""The parts to kill, with weights: a Ray head takes 15 s to restart."""
BETWEEN_S = (0.5, 5.0)
KILLS_A_RUN = 3
"""No more kills after that, because a service needs some seconds to take over."""
ADAPTERS = 5
"""Adapter names that the runs share, so that their commits conflict."""
DEADLINE_S = 900.0
SUBMIT_DEADLINE_S = 180.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if nothing was lost and nothing was duplicated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--firings", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--databases", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="slora-kills-") as folder, ExitStack() as stack:
        urls = {kind: _make_url(kind, Path(folder), stack) for kind in options.databases}
        tallies = kill_during_runs(Path(folder), urls, options.runs, chance)
        moments = {
            kind: kill_during_firings(
                _make_url(kind, Path(folder), stack), Path(folder) / f"f-{kind}", count, chance
            )
            for kind, count in _share_out(options.firings, options.databases).items()
        }
    if options.json:
        print(json.dumps(_describe(tallies, moments)))
    else:
        _show(tallies, moments)
    good = [
        *(tally.is_good for tally, _ in tallies.values()),
        *(firing_tally.is_good for firing_tally in moments.values()),
    ]
    return 0 if all(good) else 1


Tallies = dict[str, tuple[KillTally, Counter[str]]]


def kill_during_runs(
    folder: Path, urls: dict[str, str], count: int, chance: random.Random
) -> Tallies:
    """Submit runs on each database, and kill parts meanwhile."""
    tallies: Tallies = {}
    with ExitStack() as stack:
        world = World(folder / "world", stack)
        for kind, runs_here in _share_out(count, list(urls)).items():
            with ExitStack() as here:
                services = Services(world, urls[kind], f"kills-{kind}", here)
                tallies[kind] = _run_share(world, services, runs_here, chance)
    return tallies


def _run_share(
    world: World, services: Services, count: int, chance: random.Random
) -> tuple[KillTally, Counter[str]]:
    database, kills, accepted = Database(services.url), Counter[str](), list[str]()
    intake = Intake(database, [services.store], ["default"])
    until, dead = time.monotonic() + DEADLINE_S, 0
    while time.monotonic() < until:
        for _ in range(min(count - len(accepted), chance.randint(0, 3))):
            accepted.append(_submit(intake, services.store, len(accepted)))
        time.sleep(chance.uniform(*BETWEEN_S))
        waiting = count - _count_finished(database, accepted)
        _log(f"{len(accepted)}/{count} accepted, {waiting} to come, killed {dict(kills)}")
        dead += services.count_ended()
        if waiting == 0:
            break
        if kills.total() >= KILLS_A_RUN * count:
            continue
        victim = chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        kills[victim] += 1
        _kill(victim, world, services, chance)
    tally = count_outcomes(database, services.store, accepted, world.marks, dead)
    database.close()
    return tally, kills


def _kill(victim: str, world: World, services: Services, chance: random.Random) -> None:
    if victim == "service":
        services.kill(chance.randrange(SERVICES))
    elif victim == "database":
        services.cut_database()
    elif victim == "s3":
        world.kill_s3(chance.uniform(0, 1))
    else:
        world.kill_ray()


def _submit(intake: Intake, store: str, number: int) -> str:
    """Submit a run, and repeat that with the same key until there is an answer."""
    submission = SubmitRequest(spec=make_spec(store, name=f"kill-{number % ADAPTERS}"))
    until = time.monotonic() + SUBMIT_DEADLINE_S
    while True:
        try:
            return intake.accept(submission, key=f"run-{number}")[0].id
        except InputError:
            raise
        except JobsError as error:
            if time.monotonic() > until:
                raise
            _log(f"asks again: {error}")
            time.sleep(0.2)


def _count_finished(database: Database, accepted: Sequence[str]) -> int:
    """Count the ended runs; return 0 while the database does not answer."""
    try:
        with database.read() as session:
            return sum(runs.get(session, run_id).status in FINAL for run_id in accepted)
    except JobsError:
        return 0


def _share_out(count: int, kinds: Sequence[str]) -> dict[str, int]:
    each, more = divmod(count, len(kinds))
    return {kind: each + (index < more) for index, kind in enumerate(kinds)}


def _make_url(kind: str, folder: Path, stack: ExitStack) -> str:
    """Make the URL of a new database."""
    if kind == "sqlite":
        (folder / "sqlite").mkdir(exist_ok=True)
        url = f"sqlite:///{tempfile.mkdtemp(dir=folder / 'sqlite')}/registry.db"
        upgrade(url)
        return url
    return stack.enter_context(_run_postgres())


@contextmanager
def _run_postgres() -> Iterator[str]:
    # Not below the folder of this benchmark: if root starts it, the server runs as another user.
    folder = Path(tempfile.mkdtemp(prefix="slora-kills-pg-"))
    server = Postgres(folder)
    try:
        yield server.new_database(tables=True)
    finally:
        server.end()
        shutil.rmtree(folder, ignore_errors=True)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _describe(tallies: Tallies, moments: dict[str, FiringTally]) -> dict[str, Any]:
    return {
        "runs": {
            kind: {**asdict(tally), "killed": dict(kills), "good": tally.is_good}
            for kind, (tally, kills) in tallies.items()
        },
        "firings": {
            kind: {**asdict(fired), "good": fired.is_good} for kind, fired in moments.items()
        },
    }


def _show(tallies: Tallies, moments: dict[str, FiringTally]) -> None:
    for kind, (tally, kills) in tallies.items():
        victims = ", ".join(f"{count} x {victim}" for victim, count in kills.most_common())
        print(
            f"{kind}: {tally.runs} runs in {tally.attempts} attempts, "
            f"killed {victims or 'nothing'}: {tally.lost} lost, "
            f"{tally.committed_twice} committed twice, {tally.alive_twice} alive twice, "
            f"{tally.adapters_lost} adapters lost"
        )
    for kind, fired in moments.items():
        print(
            f"{kind}: {fired.moments} firings, {fired.kills} schedulers killed: "
            f"{fired.missed} missed, {fired.doubled} doubled, {fired.runs} runs"
        )


if __name__ == "__main__":
    sys.exit(main())
