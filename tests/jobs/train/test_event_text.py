"""A run's events as lines: one line each, and none for those that a log does not show."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.train.monitor.event_text import (
    format_event,
    format_metrics,
    format_number,
    format_step,
    name_evaluation,
)

PLAN = {
    "workers": 2,
    "sharding": "replicate",
    "stages": [
        {"name": "sparse", "steps": 2, "share": 0.01},
        {"name": "low-rank", "steps": 4, "share": 0.0234},
    ],
}
ROUND = {"step": 3, "stage": "sparse", "clients": 5, "answered": 5, "seconds": 6.0,
         "loss": 1.25, "up": 40_000, "down": 1_250_000}  # fmt: skip
EVENTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "loading": ({"event": "loading", "base": "/m", "host": "h", "pid": 7}, "loading /m"),
    "resumed": (
        {"event": "resumed", "step": 4, "stage": "low-rank"},
        "resuming from step 4, low-rank stage"),
    "started": (
        {"event": "started", "steps": 6, "plan": PLAN},
        "2 workers, replicate: sparse 2 steps (1.00% of the model), "
        "low-rank 4 steps (2.34% of the model)"),
    "evaluated": (
        {"event": "evaluated", "at": "before", "metrics": {"loss": 2.0, "perplexity": 7.389}},
        "before training: loss 2.000, perplexity 7.39"),
    "classifier": (
        {"event": "evaluated", "at": "end", "metrics": {"loss": 0.5, "accuracy": 0.875}},
        "at the end: loss 0.500, accuracy 87.5%"),
    "diverged": (
        {"event": "evaluated", "at": "handoff", "metrics": {"loss": None, "perplexity": None}},
        "after the hand-off: loss nan, perplexity nan"),
    "stage": (
        {"event": "stage", "stage": "sparse", "steps": 2, "done": 0}, "sparse stage, 2 steps"),
    "progress": (
        {"event": "progress", "what": "hand-off, layers", "done": 3, "of": 9},
        "hand-off, layers: 3 of 9"),
    "masks by their own score": (
        {"event": "masks_selected", "strategy": "fisher", "score": "fisher", "seconds": 4.2},
        "masks: fisher, scored in 4 s"),
    "masks by another score": (
        {"event": "masks_selected", "strategy": "rows", "score": "snip", "seconds": 61.0},
        "masks: rows by snip, scored in 61 s"),
    "kernels": (
        {"event": "kernels_chosen", "kernels": {
            "96x64, 64 entries, 32 tokens, float32": {"kernel": "tiles"},
            "96x64, 64 entries, 64 tokens, float32": {"kernel": "tiles"},
            "64x64, 64 entries, 32 tokens, float32": {"kernel": "slabs"}}},
        "kernels: tiles for 96x64; slabs for 64x64"),
    "hand-off": (
        {"event": "handoff", "energy_share": 0.8125},
        "hand-off: 81.2% of the update's energy retained"),
    "hand-off by the outputs": (
        {"event": "handoff", "energy_share": 0.25, "output_share": 0.5},
        "hand-off: 25.0% of the update's energy retained, 50.0% of its outputs' energy"),
    "hand-off of what diverged": (
        {"event": "handoff", "energy_share": None},
        "hand-off: nan of the update's energy retained"),
    "checkpoint": (
        {"event": "checkpoint_saved", "step": 20, "bytes": 1_250_000},
        "checkpoint at step 20: 1.2 MB"),
    "preempting": (
        {"event": "preempting", "step": 7}, "a worker will be stopped soon: checkpoint at step 7"),
    "early stopped": (
        {"event": "early_stopped", "step": 7, "why": "eval_loss 1 meets the target of 2"},
        "stopped early at step 7: eval_loss 1 meets the target of 2"),
    "published": (
        {"event": "published", "adapter": "chat@v1", "bytes": 2_000_000, "url": "/s"},
        "committed chat@v1: 2.0 MB at /s"),
    "counted": ({"event": "dataset_counted", "rows": 3}, None),
    "samples": ({"event": "samples", "at": "end", "samples": []}, None),
    "of a later version": ({"event": "something new"}, None),
    "baseline": (
        {"event": "baseline_selected", "current": "chat@v1", "start": None, "rows": 1200},
        "1,200 rows that chat@v1 was not trained on; starting from scratch"),
    "no new data": (
        {"event": "no_new_data", "adapter": "chat@v1", "why": "chat@v1 was trained on these"},
        "no new data: chat@v1 was trained on these"),
    "rows that changed": ({"event": "data_changed", "why": "starting anew"}, "starting anew"),
    "warm start": ({"event": "warm_started", "parent": "chat@v1"}, "starting from chat@v1"),
    "adapter evaluated": (
        {"event": "adapter_evaluated", "adapter": "chat@v2", "rows": "held-out",
         "metrics": {"loss": 0.5, "accuracy": 0.875}},
        "chat@v2 on the held-out rows: loss 0.500, accuracy 87.5%"),
    "gate": ({"event": "gate", "adapter": "chat@v2", "passed": False},
             "gate failed for chat@v2"),
    "promoted": ({"event": "promoted", "adapter": "chat@v2", "before": None},
                 "promoted chat@v2; current before: none"),
    "promotion requested": (
        {"event": "promotion_requested", "adapter": "chat@v2"}, "the service promotes chat@v2"),
    "not promoted": ({"event": "not_promoted", "adapter": "chat@v2", "why": "it is worse"},
             "chat@v2 is not promoted: it is worse"),
    "a federation started": (
        {"event": "started", "steps": 3, "plan": PLAN, "clients": 20, "local_steps": 2},
        "20 clients: sparse 1 rounds of 2 steps (1.00% of the model), "
        "low-rank 2 rounds of 2 steps (2.34% of the model)"),
    "a federation's stage": (
        {"event": "stage", "stage": "sparse", "steps": 2, "unit": "round", "done": 0},
        "sparse stage, 2 rounds"),
    "a federation's checkpoint": (
        {"event": "checkpoint_saved", "step": 3, "unit": "round", "bytes": 2_000_000},
        "checkpoint at round 3: 2.0 MB"),
    "client dropped": (
        {"event": "client_dropped", "round": 3, "client": "017", "why": "its site was lost"},
        "round 3: client 017 dropped: its site was lost"),
    "client dropped, by name": (
        {"event": "client_dropped", "round": 3, "client": 17, "name": "ann", "why": "no rows"},
        "round 3: client ann dropped: no rows"),
    "client dropped while scoring": (
        {"event": "client_dropped", "round": 0, "client": 17, "name": "ann", "why": "no rows"},
        "scoring: client ann dropped: no rows"),
    "no event": ({}, None),
}  # fmt: skip


def test_an_event_is_a_line_or_none():
    for case, (event, line) in EVENTS.items():
        assert format_event(event) == line, case


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("before", "before training"),
        ("sparse", "after the sparse stage"),
        ("handoff", "after the hand-off"),
        ("end", "at the end"),
        ("step 20", "after step 20"),
    ],
)
def test_each_evaluation_has_a_name_in_words(at: str, words: str):
    assert name_evaluation(at) == words


STEP = {"step": 2, "stage": "sparse", "loss": 1.2345, "tokens_per_second": 99.6, "seconds": 3.0}


def test_a_step_shows_the_time_that_remains_at_the_present_speed():
    assert format_step(STEP, 6) == "step 2/6 sparse: loss 1.234, 100 tokens/s, 6 s left"
    assert format_step(STEP, 2) == "step 2/2 sparse: loss 1.234, 100 tokens/s, 0 s left"


@pytest.mark.parametrize(
    ("changes", "who"),
    [({}, "5 clients, loss 1.250"), ({"answered": 3, "loss": None}, "3 of 5 clients, loss nan")],
)
def test_a_federation_counts_rounds_and_who_answered(changes: dict[str, Any], who: str):
    line = format_step(ROUND | changes, 30)
    assert line == f"round 3/30 sparse: {who}, 1.25 MB down, 0.04 MB up, 54 s left"


def test_a_loss_that_is_no_number_is_shown_as_nan():
    assert format_step(STEP | {"loss": None}, 6) == (
        "step 2/6 sparse: loss nan, 100 tokens/s, 6 s left"
    )


def test_an_evaluation_among_the_metrics_is_no_step():
    assert format_step({"step": 2, "evaluation": "end", "loss": 1.0}, 6) is None


def test_figures_are_rounded_and_what_is_none_is_nan():
    assert format_metrics({"loss": 0.12345, "accuracy": 1.0}) == "loss 0.123, accuracy 100.0%"
    assert (format_number(None, ".2f"), format_number(float("inf"), ".2f")) == ("nan", "inf")
