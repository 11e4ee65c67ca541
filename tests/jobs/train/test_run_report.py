"""A run's files, made by hand, as figures and as a text for 80 columns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.federation.round_log import open_round_log
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from jobs.train.monitor.run_report import collect_outcome, render_summary

RUN = "chat-20260101-120000-0a1b"
PLAN = {
    "head": 10,
    "model_parameters": 1000,
    "stages": [
        {"name": "sparse", "steps": 2, "trainable": 40, "share": 0.05},
        {"name": "low-rank", "steps": 4, "trainable": 90, "share": 0.1},
    ],
}
BEFORE = {"loss": 2.0, "perplexity": 7.389}
END = {"loss": 1.0, "perplexity": 2.718}
QUESTION = {"prompt": "What is [red]red[/red]?", "answer": "A colour."}
EVENTS: list[dict[str, Any]] = [
    {"event": "loading", "base": "/m"},
    {"event": "started", "steps": 6, "plan": PLAN},
    {"event": "evaluated", "at": "before", "step": 0, "metrics": BEFORE},
    {"event": "samples", "at": "before", "samples": [QUESTION | {"answer": "No idea."}]},
    {"event": "handoff", "energy_share": 0.8125},
    {"event": "evaluated", "at": "end", "step": 6, "metrics": {"loss": 9.0, "perplexity": 9.0}},
    {"event": "resumed", "step": 4, "stage": "low-rank"},
    {"event": "evaluated", "at": "end", "step": 6, "metrics": END},
    {"event": "samples", "at": "end", "samples": [QUESTION]},
    {"event": "published", "adapter": "chat@v1", "form": "peft", "bytes": 2_000_000,
     "url": "/s/adapters/chat/v1",
     "ledger": {"tokens": 1200, "seconds": 6.0}, "time": 1.0},
]  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> RunStore:
    return RunStore(DirectoryStore(tmp_path), RUN)


def write_events(runs: RunStore, *events: dict[str, Any]) -> RunStore:
    for event in events:
        runs.events.append(event)
    return runs


def render_text(runs: RunStore) -> str:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(render_summary(runs))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= 80 for line in text.splitlines())
    return str(text)


def test_the_outcome_is_read_from_the_journal_and_later_events_win(runs: RunStore):
    assert collect_outcome(write_events(runs, *EVENTS)) == {
        "run": RUN,
        "evaluations": {"before": BEFORE, "end": END},
        "samples": {"before": [QUESTION | {"answer": "No idea."}], "end": [QUESTION]},
        "plan": PLAN,
        "energy_share": 0.8125,
        "adapter": "chat@v1",
        "form": "peft",
        "bytes": 2_000_000,
        "url": "/s/adapters/chat/v1",
        "ledger": {"tokens": 1200, "seconds": 6.0},
    }


def test_a_run_that_has_just_started_has_an_outcome_too(runs: RunStore):
    assert collect_outcome(runs) == {"run": RUN, "evaluations": {}, "samples": {}}
    assert render_text(write_events(runs, EVENTS[0])).strip() == ""


def test_the_summary_shows_the_figures_the_stages_and_the_answers(runs: RunStore):
    text = render_text(write_events(runs, *EVENTS))
    for words in (
        "before training", "2.0000", "7.39", "at the end", "1.0000", "2.72",
        "2 steps, 50 parameters, 5.00% of 1,000", "4 steps, 100 parameters, 10.00% of 1,000",
        "81.2% of the update's energy", "1,200 in 6 s of steps, 200 tokens/s", "chat@v1, 2.0 MB",
        "/s/adapters/chat/v1", "No idea.", "A colour.",
    ):  # fmt: skip
        assert words in text
    assert "9.0000" not in text
    # A user's question is text, and no markup.
    assert "[red]red[/red]" in text.replace("\n", "")


def test_a_classifier_s_summary_shows_its_accuracy(runs: RunStore):
    event = {"event": "evaluated", "at": "end", "metrics": {"loss": 0.5, "accuracy": 0.875}}
    text = render_text(write_events(runs, event))
    assert "accuracy" in text and "87.5%" in text and "perplexity" not in text


def test_a_run_that_diverged_has_a_summary_too(runs: RunStore):
    nan = float("nan")
    metrics = {"loss": nan, "perplexity": nan}
    write_events(runs, {"event": "evaluated", "at": "end", "metrics": metrics})
    text = render_text(write_events(runs, {"event": "handoff", "energy_share": nan}))
    assert text.count("nan") == 3


def test_steps_that_took_no_time_have_no_speed(runs: RunStore):
    published = EVENTS[-1] | {"ledger": {"tokens": 0, "seconds": 0.0}}
    assert "0 in 0 s of steps, 0 tokens/s" in render_text(write_events(runs, published))


def test_a_torn_line_in_the_journal_is_ignored(runs: RunStore):
    write_events(runs, *EVENTS[:3])
    with runs.events.path.open("ab") as file:
        file.write(b'{"event": "evalu')
    write_events(runs, *EVENTS[3:])
    assert collect_outcome(runs)["evaluations"]["end"] == END


GATE = {
    "event": "gate", "adapter": "chat@v2", "baseline": "chat@v1", "metric": "eval_loss",
    "passed": False,
    "checks": [
        {"requirement": "as good as current", "rows": "held-out", "value": 1.5, "limit": 1.25,
         "passed": False},
        {"requirement": "current's own rows: gone", "rows": "before", "value": None, "limit": None,
         "passed": True},
    ],
}  # fmt: skip


def test_a_retraining_shows_its_gate_and_what_was_decided_by_it(runs):
    decision = {"event": "not_promoted", "adapter": "chat@v2", "why": "as good as current: 1.5000"}
    text = render_text(write_events(runs, *EVENTS, GATE, decision))
    assert "gate on eval_loss: chat@v2, baseline chat@v1" in text
    assert "1.5000" in text
    assert "1.2500" in text
    assert "chat@v2 is not promoted: as good as current: 1.5000" in text
    assert collect_outcome(runs)["decision"]["event"] == "not_promoted"


def test_the_decision_of_the_last_attempt_counts(runs):
    decision = {"event": "not_promoted", "adapter": "chat@v2", "why": "worse"}
    promoted = {"event": "promoted", "adapter": "chat@v2", "before": "chat@v1"}
    write_events(runs, GATE, decision, {**GATE, "passed": True}, promoted)
    assert collect_outcome(runs)["gate"]["passed"]
    assert collect_outcome(runs)["decision"] == promoted


def test_a_retraining_without_new_rows_prints_that_line_only(runs):
    nothing = {"event": "no_new_data", "adapter": "chat@v1", "why": "chat@v1 has learnt them"}
    text = " ".join(render_text(write_events(runs, nothing)).split())
    assert text == "no new data: chat@v1 has learnt them"


# A federation's clients.


def make_round(number: int, *clients: dict[str, Any]) -> dict[str, Any]:
    return {"round": number, "stage": "sparse", "clients": list(clients)}


def make_answer(client: int, name: str, loss: float, **more: Any) -> dict[str, Any]:
    return {"client": client, "name": name, "down": 2_000_000, "payload": 0, "up": 1_000_000,
            "rows": 7, "tokens": 9, "loss": loss, "seconds": 0.5, **more}  # fmt: skip


def make_dropped_line(client: int, name: str) -> dict[str, Any]:
    return {"client": client, "name": name, "down": 2_000_000, "payload": 500_000, "up": 0,
            "failure": "it died"}  # fmt: skip


FEDERATION = {"event": "started", "steps": 3, "plan": PLAN, "clients": 4, "local_steps": 2}
ROUNDS = [
    make_round(1, make_answer(0, "Lincoln", 2.0), make_dropped_line(1, "Grant")),
    make_round(2, make_answer(2, "Taft", 9.0)),
    # The run died, and resumed before round 2.
    make_round(2, make_answer(0, "Lincoln", 1.5), make_answer(2, "Taft", 1.25)),
]


def federated(runs: RunStore, lines: list[dict[str, Any]]) -> RunStore:
    for line in lines:
        open_round_log(runs).append(line)
    return write_events(runs, FEDERATION, *EVENTS[2:])


def test_a_federations_outcome_has_its_clients_and_a_repeated_round_once(runs: RunStore):
    lincoln, grant, taft = collect_outcome(federated(runs, ROUNDS))["clients"]
    assert lincoln == {"client": 0, "name": "Lincoln", "rows": 7, "rounds": 2, "dropped_rounds": 0,
                       "down": 4_000_000, "up": 2_000_000, "loss": 1.5}  # fmt: skip
    assert (grant["rows"], grant["dropped_rounds"], grant["down"]) == (None, 1, 2_500_000)
    assert (taft["rounds"], taft["loss"]) == (1, 1.25)


def test_a_federation_is_summarized_in_rounds_and_clients(runs: RunStore):
    text = render_text(federated(runs, ROUNDS))
    assert "1 rounds of 2 steps" in text and "2 rounds of 2 steps" in text
    first, *_ = [line for line in text.splitlines() if "Lincoln" in line]
    assert [word for word in first.split() if word != "│"] == [
        "Lincoln", "7", "2", "4.0", "2.0", "1.500"
    ]  # fmt: skip


def test_of_many_clients_the_busiest_are_shown_whatever_they_are_called(runs: RunStore):
    many = [make_answer(n, f"client {n} \x1b[2J{'x' * 99}", 1.0, up=n) for n in range(30)]
    text = render_text(federated(runs, [make_round(1, *many)]))
    assert "30 clients, the busiest first, 20 are shown" in text
    assert "client 29" in text and "client 9 " not in text and "\x1b" not in text


def test_the_phases_of_the_newest_start_are_a_table_with_bars(runs: RunStore):
    for attempt, seconds in ((0, 9.0), (1, 2.5)):
        values = {"seconds": seconds, "attempt": attempt, "since": 100.0 + attempt}
        for phase in ("queue", "first_step"):
            write_events(runs, {"event": "phase_ended", "phase": phase, **values})
    broken = {"event": "phase_ended", "phase": "base", "attempt": 1, "since": 101.0}
    write_events(runs, broken | {"seconds": "long"}, broken, broken | {"seconds": float("nan")})
    text = render_text(runs)
    assert "start, attempt 1: 5.0 s from the submission until the first step ended" in " ".join(
        text.split()
    )
    assert "first_step" in text and "2.50" in text and "9.00" not in text and "base" not in text
    assert [start["wait_s"] for start in collect_outcome(runs)["starts"]] == [18.0, 5.0]
