"""Works through the plan of trainings for so many minutes, in processes that keep their bases."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.errors import InputError
from tests.benchmarks.quality.claims import list_pairs
from tests.benchmarks.quality.corpora import Corpus
from tests.benchmarks.quality.rate_search import get_start
from tests.benchmarks.quality.results_file import Line, Results, append_result
from tests.benchmarks.quality.schedule import forecast_runs, get_grids, list_due
from tests.benchmarks.quality.setting import Setting, find_refusal
from tests.benchmarks.quality.variants import BY_NAME, Variant

GUESSED_SECONDS = {"newsgroups": 330.0, "chat": 420.0, "addresses": 450.0}
"""Seconds of a training with one thread, two side by side, before any of its data set has been
measured: 0.75 s a step of MiniLM, and 400 tokens/s of SmolLM2 as in the demo.
"""
Report = Callable[[str], None]
Train = Callable[[Setting, Mapping[str, str]], dict[str, Any]]
"""Train a setting on its rows, and return its line. Raise InputError if it is refused."""


@dataclass
class Campaign:
    """The plan with its results, and what was left out of it."""

    corpora: Sequence[Corpus]
    variants: Sequence[Variant]
    results: Results
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)
    """Why a variant is not run on a data set, by both names."""

    def skip_unknown(self) -> None:
        """Leave out each variant whose spec the product refuses, and those that start from it."""
        for corpus in self.corpora:
            for variant in self.variants:
                reason = _find_reason(corpus, variant)
                if reason is not None:
                    self.skipped[corpus.name, variant.name] = reason

    def list_next(self, busy: set[str]) -> list[Setting]:
        """Return the trainings that are due and not under way, in their order."""
        due = list_due(self.corpora, self.variants, self.results, list_pairs())
        return [
            run.setting for run in due if run.setting.key not in busy and self._is_run(run.setting)
        ]

    def forecast(self) -> list[Setting]:
        """Return the trainings that are left at least."""
        runs = forecast_runs(self.corpora, self.variants, self.results, list_pairs())
        return [setting for setting in runs if self._is_run(setting)]

    def estimate_seconds(self, setting: Setting) -> float:
        """Return the seconds of a training: those of its method so far, or of its data set.

        Of a processor, for each thread: a busy machine says nothing about the next hour.
        """
        of_data = [
            line
            for line in self.results.values()
            if line.get("data") == setting.corpus.name and "cpu_seconds" in line
        ]
        same = [line for line in of_data if line["method"] == setting.variant.name]
        known = [float(line["cpu_seconds"]) / line["threads"] for line in same or of_data]
        return statistics.median(known) if known else GUESSED_SECONDS[setting.corpus.name]

    def _is_run(self, setting: Setting) -> bool:
        return (setting.corpus.name, setting.variant.name) not in self.skipped


def run_campaign(
    campaign: Campaign,
    splits: Mapping[str, Mapping[str, str]],
    path: Path,
    pool: Executor,
    *,
    train: Train,
    minutes: float,
    workers: int,
    report: Report,
) -> int:
    """Run what is due until the minutes are over; a training that would not end by then is not
    started. Return the number of trainings that ended.

    Each result is appended to `path` as it comes, so that the command may be stopped at any time.
    `pool` calls `train` on `workers` settings at once.
    """
    deadline, count = time.monotonic() + 60 * minutes, 0
    running: dict[Future[dict[str, Any]], Setting] = {}
    while True:
        due = campaign.list_next({setting.key for setting in running.values()})
        for setting in due[: workers - len(running)]:
            if time.monotonic() + campaign.estimate_seconds(setting) < deadline:
                running[pool.submit(train, setting, splits[setting.corpus.name])] = setting
        if not running:
            return count
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            setting = running.pop(future)
            try:
                line = {**future.result(), "processes": workers}
            except InputError as error:
                reason = "; ".join(str(error).splitlines())
                campaign.skipped[setting.corpus.name, setting.variant.name] = reason
                report(f"skipped on {setting.corpus.name}: {setting.variant.name}: {reason}")
                continue
            append_result(path, line)
            campaign.results[setting.key] = line
            count += 1
            report(format_progress(campaign, setting, line, workers, deadline))


def format_progress(
    campaign: Campaign, setting: Setting, line: Line, workers: int, deadline: float
) -> str:
    """Return one line about a training that ended, and what is left of the time and the plan."""
    left = campaign.forecast()
    hours = sum(map(campaign.estimate_seconds, left)) / workers / 3600
    minutes = max(0.0, deadline - time.monotonic()) / 60
    figures = line.get("unavailable") or (
        f"validation {line['validation']:.3f}, test {line['test']:.3f}"
    )
    return (
        f"{setting.label}: {figures} in {line['wall_seconds']:.0f} s "
        f"({minutes:.0f} min left; the plan: at least {len(left)} trainings, {hours:.1f} h)"
    )


def _find_reason(corpus: Corpus, variant: Variant) -> str | None:
    for name in (variant.like, variant.near):
        if name is not None and (reason := _find_reason(corpus, BY_NAME[name])) is not None:
            return reason
    root = variant
    while (name := root.like or root.near) is not None:
        root = BY_NAME[name]
    grids = get_grids(corpus, root, {}) or {}
    return find_refusal(Setting(corpus, variant, get_start(grids), 0))
