"""What all tests share: their order, one Ray head for each worker process, and an honest end.

The files that need Ray come first, the longest of them at the front, and the others likewise: no
core waits at the end for the other one's long file, and a head ends after its last test.

Nothing is skipped in silence. A browser, server or client that is missing is an error which names
the way out, unless the command line says `--without NAME`; the last lines list what was skipped.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

# Triton reads it when it is imported, which peft does: the kernels for GPUs run on CPUs in tests.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.file_seconds import SECONDS
from tests.ray_head import Head, ray_head

SLOWEST_FIRST = ("end_to_end", "ray", "ranks", "storage")
OPTIONAL_PARTS = ("browser", "end_to_end", "postgres", "ray", "storage")
ROOT = Path(__file__).parents[1]
PLUGINS = ROOT / "tests/plugins"
"""The metadata of a package with mask strategies, as if it was installed."""
RAY_FILES = pytest.StashKey[set[Path]]()
HEAD = pytest.StashKey[ExitStack]()
"""What ends the head of this process, once it has one."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without",
        action="append",
        default=[],
        choices=OPTIONAL_PARTS,
        help="skip the tests that need this part, and say so at the end; may be repeated",
    )


def pytest_configure() -> None:
    """Install the plugins for this process and what it starts, and let Ctrl-C reach that too:
    background jobs of a shell ignore it by inheritance.
    """
    sys.path.append(str(PLUGINS))
    paths = (os.environ.get("PYTHONPATH") or str(ROOT), str(PLUGINS))
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# After those that mark tests, or leave them out.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the files with Ray first, then slow ones, and skip what `--without` names."""
    for part in config.getoption("--without"):
        for item in items:
            if item.get_closest_marker(part):
                item.add_marker(pytest.mark.skip(reason=f"--without {part}"))
    ranks: dict[Path, int] = defaultdict(lambda: len(SLOWEST_FIRST))
    for item in items:
        ranks[item.path] = min(ranks[item.path], _rank_by_marker(item))
    seconds = {ROOT / path: count for path, count in SECONDS.items()}
    ray_files = {item.path for item in items if item.get_closest_marker("ray")}
    config.stash[RAY_FILES] = ray_files

    def place(item: pytest.Item) -> tuple[bool, int, int]:
        return item.path not in ray_files, -seconds.get(item.path, 0), ranks[item.path]

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """End the Ray head with the last file that needs one: idle, it takes time from the rest."""
    yield
    ending = item.config.stash.get(HEAD, None)
    if ending and nextitem and nextitem.path not in item.config.stash[RAY_FILES]:
        ending.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was skipped and why, one line a reason."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        terminalreporter.section("skipped")
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture(scope="session")
def head(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Head]:
    """One Ray head for all tests of this process that do not kill it; jobs import these tests."""
    with ExitStack() as ending:
        request.config.stash[HEAD] = ending
        environment = ending.enter_context(pytest.MonkeyPatch.context())
        environment.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(PLUGINS))))
        yield ending.enter_context(ray_head(tmp_path_factory.mktemp("ray", numbered=True)))


def _rank_by_marker(item: pytest.Item) -> int:
    matches = (rank for rank, mark in enumerate(SLOWEST_FIRST) if item.get_closest_marker(mark))
    return next(matches, len(SLOWEST_FIRST))
