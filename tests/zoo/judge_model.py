"""One model of the zoo, judged in all columns: what a forked rank runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from tests.zoo.case import KINDS, ZooCase, make_case
from tests.zoo.cells import ABSENT, COLUMNS, OK, REFUSED, WRONG, Cell, Row, WrongError, shorten
from tests.zoo.load_models import load_maker
from tests.zoo.plan_command import REFUSED_INPUT, PlanAnswer, ask_plan

ALONE = tuple(column for column in COLUMNS if column != "shard")
"""The columns that one process judges."""


def judge_alone(
    rank: int, models: str, group: str, name: str, folder: str, columns: Collection[str]
) -> Row:
    """Return the cells of one model that need no second rank; make its folder first."""
    from tests.zoo import judge
    from tests.zoo.trainings import train

    started, row = time.monotonic(), Row(name, group)
    try:
        case = make_case(name, group, load_maker(models, group, name), Path(folder))
    except Exception as error:
        row.cells["plan"] = Cell(WRONG, shorten(f"the model could not be made: {error!r}"))
        return row
    plans = {kind: _plan(case, kind) for kind in KINDS}
    if isinstance(refusal := plans["slora"], Cell):
        row.cells = {column: refusal for column in ALONE if column in columns}
        row.cells["plan"] = refusal
        return row
    trainings: dict[str, Any] = {}
    for kind in KINDS:
        plan = plans[kind]
        if not _is_needed(kind, columns):
            continue
        if isinstance(plan, Cell):
            row.cells[kind] = plan
            continue
        row.cells[kind] = run_check(_train_and_judge, case, kind, plan, trainings, train)
    for column, needed, check in _list_checks(case, plans, trainings, judge):
        if column in columns:
            row.cells[column] = run_check(check) if needed in trainings else Cell(ABSENT)
    row.cells = {column: row.cells[column] for column in COLUMNS if column in row.cells}
    row.seconds = time.monotonic() - started
    return row


def _is_needed(kind: str, columns: Collection[str]) -> bool:
    uses = {"lora": ("plan", "pack", "reload", "peft"), "slora": ("reload", "peft"),
            "sparse": ("reload",), "full": ("names", "reload")}  # fmt: skip
    return kind in columns or any(column in columns for column in uses[kind])


def _plan(case: ZooCase, kind: str) -> Any:
    """Return the plan, or the cell of its refusal."""
    try:
        answer = ask_plan(case.make_spec(kind), case.folder / f"{kind}.yaml")
    except Exception as error:
        return Cell(WRONG, shorten(f"slora plan fails: {type(error).__name__}: {error}"))
    return answer.plan if answer.exit_code == 0 else judge_refusal(answer)


def judge_refusal(answer: PlanAnswer) -> Cell:
    """Accept a refusal with exit code 2 whose lines say what is wrong, and then what to do."""
    message = shorten(answer.message)
    if answer.exit_code != REFUSED_INPUT:
        return Cell(WRONG, f"slora plan ends with {answer.exit_code}: {message}")
    for line in answer.message.splitlines():
        problem, _, remedy = line.partition(": ")[2].partition(". ")
        if len(problem.split()) < 3 or len(remedy.split()) < 2:
            return Cell(WRONG, shorten(f"the refusal names no problem or no way out: {line}"))
    return Cell(REFUSED, message)


def _train_and_judge(
    case: ZooCase, kind: str, plan: Any, trainings: dict[str, Any], train: Callable[..., Any]
) -> None:
    from tests.zoo import judge

    trainings[kind] = training = train(case, kind, plan)
    judge.judge_losses(training, kind)
    if kind == "full":
        judge.judge_full(case, training)
    else:
        judge.judge_frozen(case, training)


def _list_checks(
    case: ZooCase, plans: dict[str, Any], trainings: dict[str, Any], judge: Any
) -> list[tuple[str, str, Callable[[], None]]]:
    """Return the columns beside the kinds, with the training that each of them looks at."""

    def check_names() -> None:
        with tempfile.TemporaryDirectory(prefix="zoo-stock-") as scratch:
            judge.judge_names(case, trainings["full"], Path(scratch))

    def check_reload() -> None:
        for kind, training in trainings.items():
            _prefix(kind, lambda t=training, k=kind: judge.judge_reload(case, t, k))

    def check_peft() -> None:
        for kind in ("lora", "slora"):
            if kind in trainings:
                _prefix(kind, lambda k=kind: judge.judge_peft(case, trainings[k]))

    checks: list[tuple[str, str, Callable[[], None]]] = [
        ("plan", "lora", lambda: judge.judge_plan(case, plans["lora"], trainings["lora"])),
        ("names", "full", check_names),
        ("reload", "lora", check_reload),
        ("peft", "lora", check_peft),
    ]
    if case.task == "causal-lm":
        checks.append(("pack", "lora", lambda: judge.judge_packing(case, trainings["lora"])))
    else:
        checks.append(("pack", "", lambda: None))
    return checks


def _prefix(kind: str, check: Callable[[], None]) -> None:
    """Run a check; its reason begins with the kind of run."""
    try:
        check()
    except WrongError as error:
        raise WrongError(f"{kind}: {error}") from error


def run_check(check: Callable[..., None], *args: Any) -> Cell:
    """Return the cell of a check, whatever it raises."""
    try:
        check(*args)
    except WrongError as error:
        return Cell(WRONG, shorten(error))
    except Exception as error:
        return Cell(WRONG, shorten(f"{type(error).__name__}: {error}"))
    return Cell(OK)


def judge_sharded(rank: int, group: str, name: str, folder: str) -> Cell:
    """Return the cell of a sharded base on this rank, beside a replicated one. A collective."""
    from tests.zoo import judge
    from tests.zoo.trainings import train

    case = ZooCase(name, group, Path(folder))
    options: dict[str, Any] = {"rank": rank, "world_size": 2}
    replicated = train(case, "slora", {}, sharding="replicate", **options)
    sharded = train(case, "slora", {}, sharding="node", **options)
    if rank:
        return Cell(OK)
    return run_check(judge.judge_shards, [replicated], [sharded])
