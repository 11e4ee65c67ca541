"""Results of the quality benchmark without a training: figures that fall from a best point on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.benchmarks.quality.corpora import CORPORA, Corpus
from tests.benchmarks.quality.schedule import (
    list_due,
)
from tests.benchmarks.quality.setting import Setting
from tests.benchmarks.quality.variants import (
    BY_NAME,
    LADDER,
    Point,
)

NEWS, CHAT = CORPORA["newsgroups"], CORPORA["chat"]


def make_bowl(best: Point) -> Callable[[Point], float]:
    """A figure that falls with the distance from the best point on the ladder."""

    def score(point: Point) -> float:
        return -sum(abs(LADDER.index(point[axis]) - LADDER.index(best[axis])) for axis in best)

    return score


def make_line(setting: Setting, figure: float, test: float | None = None) -> dict[str, Any]:
    return {
        "key": setting.key, "data": setting.corpus.name, "method": setting.variant.name,
        "rates": dict(setting.point), "seed": setting.seed, "steps": setting.corpus.steps,
        "validation": figure, "test": figure if test is None else test, "dtype": "bfloat16",
        "curve": [[0, 0, 0.1], [200, 1000, figure - 0.1], [400, 2000, figure]],
        "stages": [{"stage": "low-rank", "steps": 400, "trained": 1000, "bytes_a_step": 4000}],
        "trained": 1000, "parameters": 100_000, "bytes": 1_600_000, "tokens": 2000,
        "seconds": 10.0, "wall_seconds": 12.0, "cpu_seconds": 12.0, "threads": 1,
        "evaluations": {"end": {"loss": 1.0}}, "machine": "a machine", "code": "abc",
        "libraries": {"torch": "2"}, "handoff": {},
    }  # fmt: skip


def run_plan(
    corpus: Corpus, names: list[str], score: Callable[[Setting], float], **options: Any
) -> tuple[dict[str, Any], list[tuple[str, int, int]]]:
    """Every training of these variants, one at a time: results, and (name, phase, seed)."""
    results, order = dict[str, Any](), list[tuple[str, int, int]]()
    variants = [BY_NAME[name] for name in names]
    while due := list_due([corpus], variants, results, **options):
        run = due[0]
        order.append((run.setting.variant.name, run.phase, run.setting.seed))
        results[run.setting.key] = make_line(run.setting, score(run.setting))
    return results, order


def score_setting(setting: Setting) -> float:
    best = {"adapter": 2e-2, "sparse": 2e-2, "head": 1e-2}
    return 0.6 + 0.01 * make_bowl({axis: best[axis] for axis in setting.point})(setting.point)
