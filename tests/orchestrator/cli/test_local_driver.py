"""The driver of a Ray that starts: its end, its output, its stop, and a Ray that never answers."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from jobs.errors import Unreachable
from jobs.train.cluster import ray_address
from jobs.train.cluster.ray_address import STARTING_VARIABLE, is_listening, wait_for_starting_ray
from orchestrator.cli.job_clients.local_driver import LocalDriver, make_start_check
from tests.waiting import wait_for


def run_python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[LocalDriver]:
    driver = LocalDriver(
        tmp_path, {**os.environ, "A": "1"}, check_ray=lambda: None, prepare_child=lambda: None
    )
    yield driver
    driver.stop_job("a")


@pytest.mark.parametrize(("code", "status"), [(0, "SUCCEEDED"), (2, "FAILED"), (3, "FAILED")])
def test_a_driver_ends_with_its_code_and_its_output(driver: LocalDriver, code: int, status: str):
    words = run_python(
        f"import os; print(os.environ['A'], os.environ['B']); raise SystemExit({code})"
    )
    variables = {"env_vars": {"B": "2"}}
    assert driver.submit_job(entrypoint=words, submission_id="a", runtime_env=variables) == "a"
    wait_for(lambda: (driver.get_job_status("a").is_terminal()) or None, timeout_s=60)
    info = driver.get_job_info("a")
    assert (info.status, info.driver_exit_code) == (status, code)
    assert driver.get_job_logs("a") == "1 2\n"


def test_a_stopped_driver_ends_also_if_it_ignores_sigterm(
    driver: LocalDriver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("orchestrator.cli.job_clients.local_driver.STOP_GRACE_S", 0.2)
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"{ignore}; print('deaf', flush=True); signal.pause()"
    driver.submit_job(entrypoint=run_python(code), submission_id="a")
    wait_for(lambda: ("deaf" in driver.get_job_logs("a")) or None, timeout_s=60)
    assert driver.get_job_status("a").status == "RUNNING"
    driver.stop_job("a")
    wait_for(lambda: (driver.get_job_info("a").is_terminal()) or None, timeout_s=60)
    assert driver.get_job_info("a").driver_exit_code == -signal.SIGKILL
    driver.stop_job("a")


def test_a_ray_that_is_gone_ends_the_wait_for_the_driver_and_not_its_result(tmp_path: Path):
    def check_ray() -> None:
        raise Unreachable("Ray ended")

    driver = LocalDriver(tmp_path, os.environ, check_ray=check_ray, prepare_child=lambda: None)
    driver.submit_job(entrypoint=run_python("input()"), submission_id="a")
    wait_for(lambda: (driver.get_job_info("a").is_terminal()) or None, timeout_s=60)
    assert driver.get_job_status("a").status == "FAILED"
    driver.submit_job(entrypoint=run_python("import signal; signal.pause()"), submission_id="a")
    with pytest.raises(Unreachable, match="Ray ended"):
        driver.get_job_status("a")
    driver.stop_job("a")


class FakeHead:
    """A head process: its exit code, or None while it runs."""

    code: int | None = None

    def poll(self) -> int | None:
        return self.code


@pytest.mark.parametrize(
    ("code", "ready", "timeout_s", "message"),
    [
        (None, False, 60.0, ""),
        (None, True, 0.0, ""),
        (None, False, 0.0, "Ray did not start within 0 s:\ndisk full"),
        (1, False, 60.0, "Ray did not start:\ndisk full"),
    ],
)
def test_a_ray_that_does_not_start_is_reported_with_the_end_of_its_log(
    tmp_path: Path, code: int | None, ready: bool, timeout_s: float, message: str
):
    log, head = tmp_path / "log", FakeHead()
    log.write_text("disk full\n")
    head.code = code
    check = make_start_check(head, log, is_ready=lambda: ready, timeout_s=timeout_s)  # type: ignore[arg-type]
    expected = pytest.raises(Unreachable, match=message) if message else nullcontext()
    with expected:
        check()


def test_a_ray_that_has_started_is_not_asked_again_and_its_end_is_reported(tmp_path: Path):
    log, head, answers = tmp_path / "log", FakeHead(), iter([True])
    log.write_text("killed\n")
    check = make_start_check(head, log, is_ready=lambda: next(answers), timeout_s=60.0)  # type: ignore[arg-type]
    check()
    check()
    head.code = -9
    with pytest.raises(Unreachable, match="Ray ended:\nkilled"):
        check()


def test_a_driver_waits_for_the_ray_beside_it_and_for_no_other(monkeypatch: pytest.MonkeyPatch):
    wait_for_starting_ray({})
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr(ray_address, "START_TIMEOUT_S", 0.0)
        with pytest.raises(Unreachable, match=f"Ray did not start at {address}"):
            wait_for_starting_ray({STARTING_VARIABLE: address})
        assert not is_listening(address)
        listener.listen()
        wait_for_starting_ray({STARTING_VARIABLE: address})
