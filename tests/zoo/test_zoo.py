"""The zoo's judge: no cell is wrong, and a judge that misses a fault fails here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from jobs.errors import Fault, InputError
from tests.zoo.cells import ABSENT, COLUMNS, OK, REFUSED, WRONG, Cell, Row, WrongError
from tests.zoo.judge import judge_losses, judge_shards
from tests.zoo.judge_model import judge_refusal, run_check
from tests.zoo.load_models import OWN
from tests.zoo.plan_command import PlanAnswer
from tests.zoo.pool import Crashed, run_group
from tests.zoo.results import update_results
from tests.zoo.row_expectations import RowsReading, all_of, any_of, learn, note, refuse
from tests.zoo.row_files import CASES
from tests.zoo.row_table import judge_rows
from tests.zoo.table import format_head, format_row, format_totals, judge_all, select_models
from tests.zoo.trainings import Training, observe_forwards

SHORT = ("llama-tied", "mistral", "qwen3-moe", "qwen3.5-text", "bloom", "gpt2", "bert",
         "gemma3-vision", "paligemma")  # fmt: skip
"""Models of different kinds, for every run of the suite: windows, experts, linear attention, an own
kind of mask, transposed layers, a new head, a tower, and one that is refused."""
SHORT_COLUMNS = ("plan", "lora", "pack", "peft")
LEAST_TRAINABLE = 95 / 101
"""Share of the architectures that must train; the others are refused."""


@pytest.mark.ranks
def test_models_of_different_kinds_train_or_are_refused():
    selection = select_models(OWN, SHORT)
    rows = list(judge_all(OWN, selection, columns=SHORT_COLUMNS))
    assert list_wrong(rows) == {}


@pytest.mark.ranks
def test_a_sharded_base_trains_like_a_replicated_one_where_weights_are_read_past_their_module():
    selection = select_models(OWN, ["qwen3.5-text"])
    rows = list(judge_all(OWN, selection, columns=("slora", "shard")))
    assert list_wrong(rows) == {}


@pytest.mark.long
@pytest.mark.ranks
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("group", ["CAUSAL", "CLASSIFY", "SEQ2SEQ", "VLM"])
def test_every_model_trains_in_every_way_or_is_refused(group: str):
    rows = list(judge_all(OWN, select_models(OWN, [group])))
    assert list_wrong(rows) == {}
    assert sum(row.is_trainable for row in rows) >= LEAST_TRAINABLE * len(rows)


def test_results_of_some_models_are_written_beside_those_of_others(tmp_path: Path):
    path, order = tmp_path / "zoo.json", [("CAUSAL", "a"), ("CAUSAL", "b")]
    update_results(path, iter([Row("b", "CAUSAL", {"plan": Cell(OK), "full": Cell(OK)})]), order)
    rows = [Row("a", "CAUSAL", {"plan": Cell(OK)}), Row("b", "CAUSAL", {"full": Cell(WRONG, "x")})]
    assert update_results(path, iter(rows), order) == rows
    document = json.loads(path.read_text("utf-8"))
    assert document["columns"] == COLUMNS
    assert [(model["name"], model["cells"]) for model in document["models"]] == [
        ("a", {"plan": OK}),
        ("b", {"plan": OK, "full": [WRONG, "x"]}),
    ]
    update_results(path, iter([Row("b", "CAUSAL", {"plan": Cell(REFUSED, "y")})]), order)
    assert json.loads(path.read_text("utf-8"))["models"][1]["cells"] == {"plan": [REFUSED, "y"]}


def list_wrong(rows: list[Row]) -> dict[str, str]:
    """Reason by model and column."""
    return {
        f"{row.name} {column}": cell.reason
        for row in rows
        for column, cell in row.cells.items()
        if cell.status == WRONG
    }


def test_every_file_of_rows_is_read_right_or_refused():
    results = list(judge_rows())
    assert {result.name: result.reason for result in results if result.status == WRONG} == {}


def test_the_zoo_has_more_than_a_hundred_models_under_names_of_their_own():
    selection = select_models(OWN)
    names = [name for _, name in selection]
    assert len(names) > 101
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(len(name) <= 18 for name in names)


def test_the_measured_results_are_of_the_models_and_rows_of_the_zoo():
    measured = Path(__file__).parents[2] / "docs" / "measured"
    models = json.loads((measured / "zoo.json").read_text("utf-8"))
    rows = json.loads((measured / "zoo_rows.json").read_text("utf-8"))
    assert [(model["group"], model["name"]) for model in models["models"]] == select_models(OWN)
    assert models["columns"] == COLUMNS
    assert [row["name"] for row in rows["rows"]] == [case.name for case in CASES]


def test_a_refusal_counts_only_with_exit_code_2_a_problem_and_a_way_out():
    good = "model.path: rwkv has no layer that can be adapted. Use another model."
    assert judge_refusal(PlanAnswer(2, {}, good)).status == REFUSED
    for exit_code, message in (
        (1, good),
        (3, good),
        (2, "model.path: not supported."),
        (2, "model.path: rwkv has no layer that can be adapted."),
        (2, f"{good}\nmodel.path: rwkv has no layer that can be adapted."),
    ):
        assert judge_refusal(PlanAnswer(exit_code, {}, message)).status == WRONG


def test_an_error_after_the_plan_is_wrong_even_if_it_is_a_refusal():
    def fail() -> None:
        raise InputError([Fault("model.path", "this comes too late", "Use another model.")])

    assert run_check(fail).status == WRONG


def make_training(*losses: float, before: float, end: float) -> Training:
    evaluations = {"before": {"loss": before}, "end": {"loss": end}}
    return Training(list(losses), evaluations, [], {}, {"stages": [{"steps": 1}]})


def test_a_loss_that_is_not_finite_or_does_not_fall_is_wrong():
    judge_losses(make_training(5.0, 4.0, before=5.0, end=4.0), "lora")
    for training in (
        make_training(5.0, float("nan"), before=5.0, end=4.0),
        make_training(5.0, 5.0, before=5.0, end=5.0),
        make_training(before=5.0, end=4.0),
    ):
        with pytest.raises(WrongError):
            judge_losses(training, "lora")


def test_losses_of_a_sharded_base_are_compared_step_by_step():
    replicated = make_training(5.0, 4.0, before=5, end=4)
    judge_shards([replicated], [make_training(5.0, 4.0, before=5, end=4)])
    # Of the stages: the sparse one is exact, and what follows the hand-off nearly so.
    judge_shards([replicated], [make_training(5.0, 4.001, before=5, end=4)])
    with pytest.raises(WrongError, match="step 2"):
        judge_shards([replicated], [make_training(5.0, 4.01, before=5, end=4)])
    with pytest.raises(WrongError, match="step 1"):
        judge_shards([replicated], [make_training(5.001, 4.0, before=5, end=4)])


def test_a_rank_that_dies_or_hangs_is_a_reason_and_not_the_end():
    assert run_group(double, 1, 21) == [42]
    with pytest.raises(Crashed, match="ended with -9"):
        run_group(die, 1)
    with pytest.raises(Crashed, match="ValueError: no such thing"):
        run_group(fail_on_second, 2)
    with pytest.raises(Crashed, match="no end after 1 s"):
        run_group(hang, 1, limit=1)


def double(rank: int, number: int) -> int:
    return 2 * number


def die(rank: int) -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def fail_on_second(rank: int) -> None:
    if rank:
        raise ValueError("no such thing")
    hang(rank)


def hang(rank: int) -> None:
    import threading

    threading.Event().wait()


def test_a_row_fits_in_80_columns_and_a_refused_one_has_its_status_once():
    cells = {column: Cell(WRONG, "a reason") for column in COLUMNS}
    assert len(format_row(Row("x" * 18, "CAUSAL", cells), list(COLUMNS))) <= 80
    refused = Row("rwkv", "CAUSAL", {"plan": Cell(REFUSED, "why")})
    assert format_row(refused, list(COLUMNS)).split() == ["rwkv", "refused"]
    assert len(format_head(list(COLUMNS))) <= 80


def test_totals_count_a_row_as_wrong_for_one_wrong_cell():
    rows = [
        Row("a", "CAUSAL", {"plan": Cell(OK), "full": Cell(WRONG, "x")}),
        Row("b", "CAUSAL", {"plan": Cell(OK), "pack": Cell(ABSENT)}),
        Row("c", "CAUSAL", {"plan": Cell(REFUSED, "x")}),
    ]
    assert format_totals(rows)[0].split(": ")[1] == "1 train, 1 refused, 1 wrong"


def test_the_observer_records_the_calls_of_transformers_models_only():
    from tests.zoo.models import CAUSAL

    model = CAUSAL["llama"]().eval()
    with observe_forwards() as forwards, torch.no_grad():
        nn.Linear(2, 2)(torch.zeros(1, 2))
        model(input_ids=torch.tensor([[1, 2]]))
    model(input_ids=torch.tensor([[1, 2]]))
    assert [(forward.inputs["input_ids"].tolist(), forward.trains) for forward in forwards] == [
        ([[1, 2]], False)
    ]


def test_expectations_of_rows_tell_a_late_refusal_from_one_of_the_plan():
    early, late = (
        RowsReading(refusal="rows.jsonl:2: bad"),
        RowsReading(late_refusal="rows.jsonl:2: bad"),
    )
    learned = RowsReading(learned=["yes<|im_end|>"], plan="an end token is added")
    assert refuse("rows.jsonl:2")(early) is None
    assert refuse("rows.jsonl:2")(late)
    assert refuse("rows.jsonl:3")(early)
    assert learn("yes<|im_end|>")(learned) is None
    assert learn("no")(learned)
    assert all_of(learn("yes<|im_end|>"), note("end token"))(learned) is None
    assert any_of(refuse("x"), note("end token"))(learned) is None
    assert all_of(note("end token"), refuse("x"))(learned)
