"""Who is waited for: workers that fell silent, that are behind, and none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import Any

from torch.distributed import TCPStore

from jobs.train.monitor.watchdog import STALE_S, Watchdog


class Board(dict[str, bytes]):
    """The process group's store as a dict."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key]


def _publish_report(board: Board, rank: int, position: str, heard: float) -> None:
    report = {"place": position, "since": heard - 3, "heard": heard, "host": f"host{rank}"}
    board.set(f"slora/pulse/{rank}", json.dumps(report))


def test_a_silent_worker_one_behind_and_one_that_never_came_are_named():
    board, now = Board(), time.time()
    _publish_report(board, 1, "step 7", now - STALE_S - 30)
    _publish_report(board, 2, "step 6", now)
    _publish_report(board, 3, "step 7", now)
    pulse = Watchdog(0, 5, board)
    pulse.report_position("step 7")
    late = pulse.describe_stragglers()
    assert "rank 1 (host1, last at step 7) was silent for 38 s" in late
    assert "rank 2 (host2, at step 6 for 3 s) is behind rank 0, step 7" in late
    assert "rank 3" not in late
    assert "rank 4 does not answer" in late


def test_where_all_wait_the_network_is_named():
    board = Board()
    _publish_report(board, 1, "step 7", time.time())
    pulse = Watchdog(0, 2, board)
    pulse.report_position("step 7")
    assert "the network is cut" in pulse.describe_stragglers()


def test_a_store_that_does_not_answer_is_a_worker_that_does_not():
    class Gone(Board):
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("Connection reset by peer")

    assert Watchdog(1, 2, Gone()).describe_stragglers() == "rank 0 does not answer"


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
        store.set("slora/pulse/0", '{"place": "step 7", "since": 0, "heard": 0, "host": "a"}')
        assert (
            "rank 0 (a, last at step 7) was silent" in Watchdog(1, 2, store).describe_stragglers()
        )
        process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr("jobs.train.monitor.watchdog.ANSWER_S", 0.2)
        try:
            # Of rank 2 nothing can be known, so nothing is said.
            late = Watchdog(1, 3, store).describe_stragglers()
            assert late == "rank 0 does not answer, and it keeps what is known of the others"
        finally:
            process.kill()


def test_the_place_is_told_from_a_thread():
    board = Board()
    with Watchdog(0, 2, board) as pulse:
        pulse._thread.join(timeout=0.01)
        while "slora/pulse/0" not in board:
            pulse._thread.join(timeout=0.01)
    assert json.loads(board["slora/pulse/0"])["place"] == "loading"
