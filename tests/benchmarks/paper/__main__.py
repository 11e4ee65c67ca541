"""`python -m tests.benchmarks.paper`: the paper's experiment, on clients with different data.

MiniLM sorts 20 Newsgroups, its rows divided among clients at random or by Dirichlet draws of the
labels; SmolLM2 learns State of the Union addresses, a client for each president. Full fine-tuning,
LoRA, FFA-LoRA, sparse values, SLoRA under three masks, primed LoRA and BitFit, each at the best of
three learning rates of its own, or more, where the best lay at an end. Rates are chosen
on validation rows, on the first seed, where the clients differ most (Dirichlet 0.1); the other
seeds and partitions, and the variants of SLoRA, run at the chosen ones. The test rows choose
nothing.

`--size small` is for 2 cores: 20 clients, 5 a round, 24 rounds of 4 local steps of 8 x 32 tokens:
123 k tokens a training, 75 s for LoRA and 270 s for full fine-tuning with one thread, two side by
side; 7 evaluations of 600 texts are 134 k tokens forward, 45 s more. Nine methods at three rates
and two more seeds are 45 trainings: 55 minutes on an idle machine; the five variants on three seeds
15; the other two partitions 27 trainings each: an hour for both. The addresses run at one rate and
seed: 16 k tokens a training, 10 minutes in all. Other work on the two cores stretches all of it.

Against `--size full` (100 clients, 10 a round) fewer clients, shorter texts and fewer rounds are
cut, for all methods alike. MiniLM keeps its layers: with 3 of its 6 LoRA learns nothing in so short
a time.

Every finished training is a line of the results file; a second start does only what is missing, the
most important first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import sys
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.paper.data import NoData, prepared
from tests.benchmarks.paper.order import wanted
from tests.benchmarks.paper.plan import RIVALS, SIZES, Part, Rival, Setting, find_unknown
from tests.benchmarks.paper.plots import write_plots
from tests.benchmarks.paper.table import curves, goals, rows, show
from tests.benchmarks.paper.training import train_one
from tests.benchmarks.quality.outside import tfidf
from tests.benchmarks.quality.results_file import Results, append_result, read_results
from tests.benchmarks.quality.training import start_process

FOLDER = Path(".cache/paper")
PARTITIONS = ("dirichlet-0.1", "iid", "dirichlet-1.0", "president")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when all that was asked for is there."""
    asked = _parser().parse_args(arguments)
    path = asked.results or FOLDER / f"{asked.size}.jsonl"
    parts = [_with(part, asked) for name, part in SIZES[asked.size].items() if name in asked.part]
    rivals = tuple(r for r in RIVALS if asked.methods is None or r.name in asked.methods)
    whole = True
    if not asked.table:
        for part in parts:
            whole = run(part, _known(part, rivals), path, asked) and whole
    _tell(parts, rivals, read_results(path), asked)
    return 0 if whole else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--part", nargs="+", choices=["newsgroups", "addresses"],
                        default=["newsgroups", "addresses"])  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=PARTITIONS, help="these partitions")
    parser.add_argument("--methods", nargs="+", choices=[rival.name for rival in RIVALS])
    parser.add_argument("--seeds", type=int, help="only the first so many")
    parser.add_argument("--one-rate", action="store_true", help="the middle one of each grid")
    parser.add_argument("--model", help="another model's folder, for both parts")
    parser.add_argument("--results", type=Path, help="the file of results")
    parser.add_argument("--workers", type=int, default=2, help="trainings at once")
    parser.add_argument("--threads", type=int, default=1, help="of one training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true", help="train nothing, show what is there")
    parser.add_argument("--markdown", action="store_true", help="the tables for docs/paper.md")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plots", type=Path, help="write the charts into this folder")
    return parser


def _with(part: Part, asked: argparse.Namespace) -> Part:
    one_rate = part.one_rate or asked.one_rate
    part = replace(part, seeds=part.seeds[: asked.seeds], one_rate=one_rate)
    return replace(part, model=asked.model) if asked.model else part


def _known(part: Part, rivals: tuple[Rival, ...]) -> tuple[Rival, ...]:
    """Those whose spec the product knows; the others are named, and wait for it."""
    unknown = {
        rival.name: find_unknown(part, rival) for rival in rivals if part.name in rival.parts
    }
    for name, why in unknown.items():
        if why:
            print(f"left out: {part.name}, {name}: {why}", file=sys.stderr)
    return tuple(rival for rival in rivals if not unknown.get(rival.name))


def _partitions(part: Part, asked: argparse.Namespace) -> list[str]:
    return [name for name in part.partitions if asked.only is None or name in asked.only]


def run(part: Part, rivals: tuple[Rival, ...], path: Path, asked: argparse.Namespace) -> bool:
    """Train what is missing of one part. False where its data are not there, or none was tried."""
    try:
        data = prepared(part, FOLDER / "data")
    except NoData as missing:
        print(f"paper: {part.name} is left out, {missing}", file=sys.stderr)
        return False
    if part.name == "newsgroups" and _outside_key(part) not in read_results(path):
        append_result(path, {"key": _outside_key(part), **tfidf(data)})
    pool = ProcessPoolExecutor(
        asked.workers, mp.get_context("spawn"), start_process, (asked.threads, asked.device)
    )
    running: dict[Future[Mapping[str, Any]], Setting] = {}
    try:
        while True:
            # What is wanted grows: a method's other seeds wait for its grid.
            left = _left(part, rivals, path, asked, {one.key for one in running.values()})
            for setting in left[: asked.workers - len(running)]:
                running[pool.submit(train_one, setting, data, asked.device)] = setting
            if not running:
                return True
            for ready in wait(running, return_when=FIRST_COMPLETED).done:
                setting, found = running.pop(ready), ready.result()
                append_result(path, {"key": setting.key, **found})
                said = found.get("unavailable")
                said = said or f"{found['test']:.3f} in {found['wall_seconds']:.0f} s"
                print(f"{setting.told}: {said} ({len(left)} due)", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _left(
    part: Part, rivals: tuple[Rival, ...], path: Path, asked: argparse.Namespace, busy: set[str]
) -> list[Setting]:
    done = read_results(path)
    due = {one.key: one for one in wanted(part, rivals, _partitions(part, asked), done)}
    return [one for key, one in due.items() if key not in done and key not in busy]


def _outside_key(part: Part) -> str:
    return f"tfidf {part.train_rows} {part.validation_rows} {part.test_rows}"


def _tell(
    parts: list[Part], rivals: tuple[Rival, ...], done: Results, asked: argparse.Namespace
) -> None:
    found = [
        (part, partition, rows(part, partition, rivals, done))
        for part in parts
        for partition in _partitions(part, asked)
    ]
    if asked.json:
        print(json.dumps([row for _, _, some in found for row in some]))
    for part, partition, some in found:
        if some and not asked.json:
            _show(part, partition, some, done.get(_outside_key(part)), markdown=asked.markdown)
        if asked.plots:
            lines = curves(part, partition, rivals, done)
            for path in write_plots(part, partition, lines, asked.plots):
                print(f"written: {path}", file=sys.stderr)


def _show(
    part: Part, partition: str, found: list[dict[str, Any]], outside: Any, *, markdown: bool
) -> None:
    figure = "accuracy" if part.metric == "accuracy" else "perplexity"
    title = f"{part.name}, {partition}: test {figure}"
    beside = list[tuple[str, str]]()
    if outside and part.name == "newsgroups":
        for name in ("same rows", "all rows"):
            beside.append((f"TF-IDF + linear, {name}", f"{outside[name]:.3f}"))
    show(title, part, found, beside, markdown=markdown)
    print()
    for sentence in goals(part, found):
        print(f"- {sentence}" if markdown else sentence)


if __name__ == "__main__":
    sys.exit(main())
