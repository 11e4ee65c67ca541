"""A short form of `tests.benchmarks.service_kills`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.benchmarks.service_kills.__main__ import kill_during_runs
from tests.benchmarks.service_kills.firings import kill_during_firings

BY_KIND = [
    "sqlite",
    pytest.param("postgresql", marks=pytest.mark.postgres),
]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.storage
@pytest.mark.timeout(600)
@pytest.mark.parametrize("url", BY_KIND, indirect=True)
def test_no_run_is_lost_or_duplicated_whatever_is_killed(url: str, tmp_path: Path):
    # Of this seed's first kills two are of a service, two of the S3 server, one of the database's
    # connections, and the sixth, where it comes to that, is of Ray.
    tallies = kill_during_runs(tmp_path, {"here": url}, 3, random.Random(3))
    tally, kills = tallies["here"]
    assert sum(kills.values()) >= 3
    assert tally.is_good, (tally, kills)


@pytest.mark.slow
def test_each_due_time_fires_once_however_often_schedulers_are_killed(url: str, tmp_path: Path):
    tally = kill_during_firings(url, tmp_path / "firings", 60, random.Random(3))
    assert tally.kills >= 3
    assert tally.is_good, tally
