"""The live table as text of 80 columns, and a trial as a line of a log."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from jobs.search.report.live_table import format_trial, render_table
from jobs.search.trial_record import TrialRecord
from tests.jobs.search.builders import HOSTILE, row, search


def text_of(rows: list[TrialRecord], mode: str = "min", width: int = 80) -> list[str]:
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(render_table(rows, "eval_loss", "max" if mode == "max" else "min", width))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def numbers_in(lines: list[str]) -> list[int]:
    return [int(numbers[1]) for line in lines if (numbers := re.match(r"[★ ] +(\d+)  ", line))]


def test_a_trial_is_a_line_with_its_figures():
    head, first, *_ = text_of(search())
    assert head.split() == [
        "#",
        "status",
        "step",
        "eval_loss",
        "rank",
        "dens…",
        "mask",
        "learning…",
        "share",
        "MB",
        "time",
    ]
    assert first.split() == [
        "★",
        "0",
        "done",
        "60",
        "0.8005",
        "16",
        "0.005",
        "random",
        "0.0003295",
        "1.60%",
        "6.4",
        "1:30",
    ]


def test_names_stand_over_their_values():
    head, *lines = text_of(search())
    for name, values in (("rank", {"2", "4", "8", "16"}), ("mask", {"random", "fisher", "rows"})):
        at = head.index(name)
        assert {line[at:].split()[0] for line in lines[:12]} <= values


@pytest.mark.parametrize(("mode", "number"), [("min", 2), ("max", 1)])
def test_the_best_trial_by_the_mode_is_marked_and_named(mode: str, number: int):
    rows = [row(0, 0.9), row(1, 2.0), row(2, 0.5), row(3, 0.1, status="running")]
    lines = text_of(rows, mode)
    assert [line.split()[1] for line in lines if line.startswith("★")] == [str(number)]
    assert f"best: trial {number}, eval_loss {rows[number].metric:.4f}" in lines


def test_a_large_search_shows_the_best_the_running_and_the_newest_trials_and_counts_the_rest():
    rows = search(60)
    rows[2] = replace(rows[2], metric=-9.0)
    rows[7] = replace(rows[7], status="running")
    lines = text_of(rows)
    numbers = numbers_in(lines)
    assert numbers == [2, 7, *range(42, 60)]
    text = next(line for line in lines if line.startswith("and 40 more: "))
    assert sum(int(count) for count in re.findall(r"(\d+) [a-z]+(?:,|$)", text)) == 40


def test_more_running_trials_than_lines_do_not_make_it_longer():
    assert len(numbers_in(text_of([row(n, status="running") for n in range(90)]))) == 20


def test_reasons_are_listed_below_grouped_and_the_most_frequent_first():
    rows = [row(n, None, status="failed", reason="out of memory") for n in (1, 2, 3, 4, 5, 6)]
    rows += [row(0, None, status="rejected", reason="adapter of 9.1 MB: at most 2.0 MB")]
    rows += [row(7, status="stopped", reason="asha")]
    assert text_of(rows)[-2:] == [
        "1, 2, 3, 4 and 2 more: out of memory",
        "0: adapter of 9.1 MB: at most 2.0 MB",
    ]


def test_many_reasons_are_counted():
    rows = [row(n, None, status="failed", reason=f"reason {n}") for n in range(9)]
    assert text_of(rows)[-2:] == ["4: reason 4", "and 4 more reasons"]


def test_long_and_hostile_texts_are_truncated_and_escaped():
    bad = "\x1b[2J[red]" + "x" * 300 + "\nsecond line"
    rows = [
        row(0, config={"a": bad, "b": HOSTILE}),
        row(1, None, config={"a": 1, "b": 2}, status="failed", reason=bad),
    ]
    text = "\n".join(text_of(rows))
    assert "\x1b" not in text and r"\x1b[2J[red]xxx" in text and "second line" not in text


def test_only_keys_that_differ_have_a_column():
    rows = [row(n, config={"method.rank": n, "method.alpha": 16}) for n in range(3)]
    assert "rank" in text_of(rows)[0] and "alpha" not in text_of(rows)[0]
    assert "alpha" in text_of(rows[:1])[0]


def test_keys_with_the_same_last_part_keep_their_full_names():
    line = format_trial(row(0, config={"a.rank": 2, "b.rank": 4}))
    assert "a.rank=2 b.rank=4" in line


def test_a_search_without_trials_says_so():
    assert text_of([])[-1] == "no trials yet"


def test_a_nan_metric_and_unknown_costs_are_shown_as_such():
    rows = [row(0, float("nan")), row(1, trainable_share=None, node_bytes=None)]
    _, first, second, *_ = text_of(rows)
    assert "nan" in first and second.split()[-3:] == ["–", "–", "–"]


def test_a_log_has_one_plain_line_per_trial():
    trial = row(3, 0.61, steps=60, seconds=192.0, config={"method.rank": 8, "x.mask": "rows"})
    assert format_trial(trial, "accuracy") == (
        "trial 3 done, rank=8 mask=rows, accuracy 0.6100 at step 60, 3 min 12 s"
    )
    failed = TrialRecord(4, {"method.rank": 8}, status="failed", reason="bad\n\x1b[31mvalue")
    assert format_trial(failed) == r"trial 4 failed, rank=8, bad \x1b[31mvalue"
