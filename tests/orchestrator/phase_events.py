"""Events of phases in a run's journal, honest ones among hostile ones."""

from __future__ import annotations

from typing import Any

from jobs.store.runs.run_store import EVENTS, RunStore

T0 = 1_796_000_000.0
HOSTILE = [
    b'{"event":"phase_ended","phase":"base","seconds":NaN,"attempt":1,"since":1}',
    b'{"event":"phase_ended","phase":"base","seconds":-1e99,"attempt":1,"since":1}',
    b'{"event":"phase_ended","phase":"base","seconds":1e999,"attempt":1,"since":1}',
    b'{"event":"phase_ended","phase":"\\u001b[2J","seconds":1,"attempt":1,"since":1}',
    b'{"event":"phase_ended","seconds":' + b"9" * 5000 + b',"phase":"base","attempt":1,"since":1}',
    b'{"event":"phase_ended"}',
    b"[" * 10_000,
    b"\xff\xfe no JSON",
]


def make_phase(phase: str, seconds: float, attempt: int = 1) -> dict[str, Any]:
    values = {"phase": phase, "seconds": seconds, "attempt": attempt, "since": T0 + attempt}
    return {"event": "phase_ended", "time": T0, "started": T0, **values}


def write_phases(runs: RunStore) -> None:
    for line in HOSTILE:
        path = runs.store.local_path(runs.key(EVENTS))
        assert path is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(line + b"\n")
    for event in (
        make_phase("queue", 1.5),
        make_phase("base", 2.0),
        make_phase("first_step", 0.5),
        make_phase("queue", 9.0, attempt=2),
    ):
        runs.events.append(event)
