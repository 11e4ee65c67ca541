"""The watchdog names the workers that the others wait for: silent ones, and ones behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from torch.distributed import TCPStore

from jobs.train.monitor.watchdog import STALE_S, Watchdog


class DictStore(dict[str, bytes]):
    """The process group's store as a dict."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key]


def _publish_report(store: DictStore, rank: int, position: str, heard: float) -> None:
    report = {"position": position, "since": heard - 3, "heard": heard, "host": f"host{rank}"}
    store.set(f"slora/watchdog/{rank}", json.dumps(report))


def test_silent_late_and_missing_workers_are_named():
    store, now = DictStore(), time.time()
    _publish_report(store, 1, "step 7", now - STALE_S - 30)
    _publish_report(store, 2, "step 6", now)
    _publish_report(store, 3, "step 7", now)
    watchdog = Watchdog(0, 5, store)
    watchdog.report_position("step 7")
    stragglers = watchdog.describe_stragglers()
    assert "rank 1 (host1, last at step 7) was silent for 38 s" in stragglers
    assert "rank 2 (host2, at step 6 for 3 s) is behind rank 0, which is at step 7" in stragglers
    assert "rank 3" not in stragglers
    assert "rank 4 does not answer" in stragglers


def test_where_all_wait_the_network_is_named():
    store = DictStore()
    _publish_report(store, 1, "step 7", time.time())
    watchdog = Watchdog(0, 2, store)
    watchdog.report_position("step 7")
    assert "the network is interrupted" in watchdog.describe_stragglers()


def test_a_store_that_does_not_answer_is_a_worker_that_does_not():
    class BrokenStore(DictStore):
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("Connection reset by peer")

    assert Watchdog(1, 2, BrokenStore()).describe_stragglers() == "rank 0 does not answer"


def test_a_store_in_a_process_that_stands_still_is_not_waited_for(monkeypatch):
    keeper = (
        "import sys, torch.distributed as d\n"
        "store = d.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
        "print(store.port, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", keeper], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        store: Any = TCPStore("127.0.0.1", port, is_master=False)
        assert Watchdog(1, 2, store).describe_stragglers() == "rank 0 does not answer"
        store.set("slora/watchdog/0", '{"position": "step 7", "since": 0, "heard": 0, "host": "a"}')
        assert (
            "rank 0 (a, last at step 7) was silent" in Watchdog(1, 2, store).describe_stragglers()
        )
        monkeypatch.setattr("jobs.train.monitor.watchdog.STORE_TIMEOUT_S", 0.2)
        process.send_signal(signal.SIGSTOP)
        # The signal is not there at once: until then it could answer.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            # Rank 2's report can't be read, so it is not mentioned.
            stragglers = Watchdog(1, 3, store).describe_stragglers()
            assert stragglers == "rank 0, which stores the reports of the others, does not answer"
        finally:
            process.kill()


def test_the_position_is_reported_from_a_thread():
    store = DictStore()
    with Watchdog(0, 2, store) as watchdog:
        watchdog._thread.join(timeout=0.01)
        while "slora/watchdog/0" not in store:
            watchdog._thread.join(timeout=0.01)
    assert json.loads(store["slora/watchdog/0"])["position"] == "loading"
