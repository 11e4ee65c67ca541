"""A short form of `tests.benchmarks.tenants`: nothing of a project is reached by another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.benchmarks.tenants.__main__ import main
from tests.benchmarks.tenants.evidence import Watch
from tests.benchmarks.tenants.hostile_files import FileAttacks
from tests.benchmarks.tenants.hostile_keys import fill_lab
from tests.benchmarks.tenants.hostile_requests import PLAIN_ATTACKS, RequestAttacks
from tests.benchmarks.tenants.tenant_world import TenantWorld


@pytest.fixture
def world(open_folder: Path) -> Iterator[TenantWorld]:
    """A service as a process, on a scripted cluster and a store in a folder."""
    with ExitStack() as stack:
        yield TenantWorld(open_folder, stack, is_real=False)


@pytest.mark.slow
def test_no_request_of_a_hostile_project_reaches_another_one(world: TenantWorld):
    watch = Watch(world)
    watch.remember(fill_lab(world))
    client = world.make_client(world.mallory)
    requests = RequestAttacks(world, watch, client)
    for name in PLAIN_ATTACKS:
        attack = requests.run(name)
        assert attack.is_good, attack
        assert attack.tries > 0
    links = FileAttacks(world, watch, client).try_links(is_short=True)
    assert links.is_good, links
    assert watch.find_stolen() == []


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.storage
@pytest.mark.timeout(1800)
def test_a_hostile_project_reaches_nothing_of_another_one_on_ray_and_s3():
    assert main(["--short", "--parts", "attacks"]) == 0
