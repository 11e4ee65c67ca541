"""The paper's benchmark: which trainings it wants, what it makes of their rounds, its files."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as Xml
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.spec.load import validate_spec
from tests.benchmarks.paper import __main__ as paper
from tests.benchmarks.paper.data import NoData, prepared
from tests.benchmarks.paper.derive import at_cost, cost_to, curve, mean_curve, saved
from tests.benchmarks.paper.order import chosen, grid, results, wanted
from tests.benchmarks.paper.plan import (
    CORE,
    HARDEST,
    OWN_HEAD,
    RIVALS,
    SIZES,
    find_unknown,
    rates_of,
)
from tests.benchmarks.paper.svg import line_chart
from tests.benchmarks.paper.table import goals, rows
from tests.benchmarks.paper.training import train_one
from tests.tiny import label_rows, tiny_encoder, tiny_relative

NEWS, SPEECHES = SIZES["small"]["newsgroups"], SIZES["small"]["addresses"]
BY_NAME = {rival.name: rival for rival in RIVALS}
MB = 10**6


def result(*figures: float, mb: float, seconds: float = 5.0, **more: Any) -> dict[str, Any]:
    """A training of one client a round, evaluated before and after each round."""
    return {
        "validation": figures[-1],
        "test": figures[-1],
        "points": [{"round": at, "test": figure} for at, figure in enumerate(figures)],
        "rounds": [
            {"round": at, "stage": "low-rank", "clients": 1, "answered": 1,
             "client_seconds": seconds,
             "down": mb * MB / 2, "up": mb * MB / 2, "tokens": 0}
            for at in range(1, len(figures))
        ],
        "handoff": None,
        "trained": {"low-rank": 1000},
        "parameters": 10**6,
        **more,
    }  # fmt: skip


def done_with(figures: dict[str, float]) -> dict[str, Any]:
    """The whole grid of the core methods and of every other that is named, the middle rate best."""
    found = dict[str, Any]()
    for name, last in figures.items():
        for at, one in enumerate(grid(NEWS, BY_NAME[name])):
            best = last if at == 1 else last - 0.1
            found[one.key] = result(0.05, best, mb=100.0 if name == "full" else 1.0)
    return found


# What is wanted


def test_the_goals_methods_come_first_and_their_grids_before_all():
    first = list(wanted(NEWS, RIVALS, NEWS.partitions, {}))
    core = sum(len(rates_of(NEWS, BY_NAME[name])) for name in CORE)
    assert {one.rival for one in first[:core]} == set(CORE)
    assert {(one.partition, one.seed) for one in first} == {(HARDEST, 0)}


def test_other_seeds_and_partitions_follow_at_the_chosen_rates():
    done = done_with({"full": 0.6, "lora": 0.5})
    due = [one for one in wanted(NEWS, RIVALS, NEWS.partitions, done) if one.rival == "lora"]
    assert {(one.partition, one.seed) for one in due if one.key not in done} == {
        (partition, seed) for partition in NEWS.partitions for seed in NEWS.seeds
    } - {(HARDEST, 0)}
    assert {one.rates for one in due if one.key not in done} == {(None, 5e-3)}


def test_a_grid_counts_when_it_is_whole_and_a_rate_that_diverged_is_not_chosen():
    first, second, third = grid(NEWS, BY_NAME["lora"])
    done = {first.key: result(0.1, 0.3, mb=1), third.key: {"unavailable": "diverged"}}
    assert chosen(NEWS, BY_NAME["lora"], done) is None
    done[second.key] = result(0.1, 0.2, mb=1)
    assert chosen(NEWS, BY_NAME["lora"], done) == first.rates


def test_variants_run_at_the_rates_of_what_they_vary_and_only_where_clients_differ_most():
    done = done_with({"slora random": 0.5})
    due = [one for one in wanted(NEWS, RIVALS, NEWS.partitions, done) if "keep" in one.rival]
    assert {one.rates for one in due} == {(1e-2, 5e-3)}
    assert {one.partition for one in due} == {HARDEST}


def test_the_addresses_run_at_one_rate_and_without_what_needs_biases():
    due = list(wanted(SPEECHES, RIVALS, SPEECHES.partitions, {}))
    assert len(due) == len({one.rival for one in due})
    assert "bitfit" not in {one.rival for one in due}
    assert {one.partition for one in due} == {"president"}


def test_a_method_with_a_head_rate_is_searched_by_axes_and_then_repeated():
    rival = BY_NAME[f"lora, {OWN_HEAD}"]
    assert chosen(NEWS, rival, {}) is None
    done, rates = dict[str, Any](), list[Any]()
    while due := [one for one in wanted(NEWS, [rival], [HARDEST], done) if one.key not in done]:
        one = due[0]
        rates.append((one.rates, one.seed))
        _, adapter, head = one.rates
        figure = 0.5 - abs(math.log(adapter / 5e-3)) / 10 - abs(math.log(head / 1e-2)) / 10
        done[one.key] = result(0.1, figure, mb=1)
    assert [(r[1], r[2]) for r, _ in rates[:4]] == [(a, 5e-3) for a in (1e-3, 2e-3, 5e-3, 1e-2)]
    assert chosen(NEWS, rival, done) == (None, 5e-3, 1e-2)
    assert rates[-2:] == [((None, 5e-3, 1e-2), 1), ((None, 5e-3, 1e-2), 2)]
    assert len(rates) < 4 * 4


def test_a_method_is_known_or_has_keys_that_the_product_does_not_know_yet():
    for rival in RIVALS:
        unknown = find_unknown(NEWS, rival)
        assert unknown is None or (rival.grids and "unknown key" in unknown)


def test_a_key_tells_settings_apart_and_survives_another_number_of_seeds():
    due = list(wanted(NEWS, RIVALS, NEWS.partitions, {}))
    assert len({one.key for one in due}) == len(due)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("part", ["newsgroups", "addresses"])
def test_every_setting_is_a_spec_that_the_door_takes(size, part):
    data = {"train": "train.jsonl"}
    for rival in RIVALS:
        for one in grid(SIZES[size][part], rival):
            validate_spec(one.spec(data, "file:///store", "held.jsonl"))


# What follows from rounds


def test_a_curve_adds_up_one_clients_bytes_and_its_typical_seconds():
    found = result(0.1, 0.2, 0.4, mb=2.0)
    found["rounds"][0] |= {"clients": 4, "down": 4 * MB, "up": 4 * MB}
    first, second, third = curve(found)
    assert (first.client_mb, first.all_mb, first.compute_s) == (0, 0, 0)
    assert (second.client_mb, second.all_mb, second.compute_s) == (2, 8, 5)
    assert (third.client_mb, third.all_mb, third.compute_s) == (4, 10, 10)
    assert third.seconds(1) == 10 + 32
    assert third.cost("10 Mbit/s") == 10 + 3.2


def test_figures_between_evaluations_lie_on_the_line_and_stay_after_the_last():
    points = curve(result(0.1, 0.2, 0.4, mb=2.0))
    assert at_cost(points, "MB", 3) == pytest.approx(0.3)
    assert at_cost(points, "MB", 400) == 0.4
    assert at_cost(points[1:], "MB", 1) is None


def test_the_figure_after_a_switch_counts_from_there_on():
    found = result(0.1, 0.3, 0.4, mb=2.0)
    found["points"].insert(2, {"round": 1, "test": 0.2})
    assert at_cost(curve(found), "MB", 2) == 0.2
    assert at_cost(curve(found), "MB", 3) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("figure", "higher", "expected"),
    [(0.3, True, 3.0), (0.1, True, 0.0), (0.5, True, None), (0.1, False, 0.0), (0.0, False, None)],
)
def test_the_cost_to_a_figure_is_where_the_line_meets_it(figure, higher, expected):
    found = cost_to(curve(result(0.1, 0.2, 0.4, mb=2.0)), "MB", figure, higher=higher)
    assert found == (None if expected is None else pytest.approx(expected))


def test_time_saved_is_counted_to_the_figure_that_both_reach():
    full = curve(result(0.1, 0.5, mb=100.0, seconds=10))
    small = curve(result(0.1, 0.3, mb=1.0, seconds=10))
    target, share = saved(small, full, "1 Mbit/s", higher=True)
    assert target == 0.3
    assert share == pytest.approx(1 - 18 / 405)


def test_a_mean_over_seeds_is_taken_evaluation_by_evaluation():
    lines = [curve(result(0.1, 0.2, mb=2.0)), curve(result(0.3, 0.4, mb=2.0))]
    assert [point.figure for point in mean_curve(lines)] == pytest.approx([0.2, 0.3])


def test_a_row_has_lora_beside_it_at_equal_bytes_and_the_goals_are_said():
    done = done_with({"full": 0.6, "lora": 0.5, "slora random": 0.55})
    found = {row["method"]: row for row in rows(NEWS, HARDEST, RIVALS, done)}
    assert set(found) == {"full", "lora", "slora random"}
    assert found["slora random"]["against_lora"]["difference"] == pytest.approx(0.05)
    assert found["full"]["saved"] == {}
    (said,) = goals(NEWS, list(found.values()))
    assert said.startswith("slora random: 5.0 points under full fine-tuning")
    assert "+5.0 against lora" in said
    assert len(results(NEWS, HARDEST, BY_NAME["lora"], done)) == 1


def test_a_slora_that_is_above_full_fine_tuning_is_said_to_be():
    done = done_with({"full": 0.6, "slora random": 0.65})
    (said,) = goals(NEWS, rows(NEWS, HARDEST, RIVALS, done))
    assert said.startswith("slora random: 5.0 points above full fine-tuning")


# A whole training, on the product's own federation


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for one another cost seconds where tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("kind", "method", "trained"),
    [
        pytest.param("bert", "slora gradient", {"sparse", "low-rank"}, id="bert, two stages"),
        pytest.param("distilbert", "ffa-lora", {"low-rank"}, id="distilbert, A frozen"),
        pytest.param("distilbert", "bitfit", {"full"}, id="distilbert, biases"),
        pytest.param("albert", "slora rows", {"sparse", "low-rank"}, id="albert, whole rows"),
    ],
)
def test_a_tiny_training_leaves_curves_bytes_and_what_was_trained(tmp_path, kind, method, trained):
    model = tmp_path / "model"
    tiny_encoder(model) if kind == "bert" else tiny_relative(model, kind)
    label_rows(tmp_path / "train.jsonl", 220, "abcd")
    label_rows(tmp_path / "test.jsonl", 44, "abcd")
    data = {kind: str(tmp_path / f"{kind}.jsonl") for kind in ("train", "test")}
    part = replace(SIZES["tiny"]["newsgroups"], model=str(model), data=data)
    one = next(grid(part, BY_NAME[method]))
    found = train_one(one, prepared(part, tmp_path / "rows"), "cpu")
    assert "unavailable" not in found
    assert set(found["trained"]) == trained
    points = curve(found)
    assert [point.round for point in points] == sorted(point.round for point in points)
    assert points[0].client_mb == 0 < points[1].client_mb < points[-1].client_mb
    assert 0 <= found["validation"] <= 1
    assert found["test"] == points[-1].figure
    assert (found["handoff"] is not None) == (len(trained) == 2)
    if method == "bitfit":
        assert found["trained"]["full"] < 0.1 * found["parameters"]
    # Weights go down as float32 and come back so; what else went down, were chosen masks.
    for line in found["rounds"]:
        assert line["down"] >= 4 * found["trained"][line["stage"]] * line["clients"]


# Files


def test_a_results_file_is_shown_drawn_and_told_as_json(tmp_path, capsys):
    done = done_with({"full": 0.6, "lora": 0.5, "slora random": 0.55})
    path = tmp_path / "results.jsonl"
    lines = [json.dumps({"key": key, **found}) + "\n" for key, found in done.items()]
    path.write_text("".join(lines) + '{"key": "cut sho')
    shown = ["--table", "--results", str(path), "--part", "newsgroups"]
    assert paper.main([*shown, "--markdown", "--plots", str(tmp_path / "plots")]) == 0
    told = capsys.readouterr().out
    assert "| slora random | 0.01 / 0.005 | 1 | 0.550 |" in told
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    stem = f"newsgroups-{HARDEST}"
    assert names == {f"{stem}.html", *(f"{stem}-{a}.svg" for a in ("mb", "1mbit", "10mbit",
                                                                 "100mbit"))}  # fmt: skip
    page = (tmp_path / "plots" / f"{stem}.html").read_text()
    assert "<script src=" not in page
    assert paper.main([*shown, "--json"]) == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)] == [
        "full", "lora", "slora random"
    ]  # fmt: skip


def test_a_chart_is_well_formed_and_keeps_its_lines_inside():
    lines = {"a < b": [(0.0, 0.1), (1.0, 0.2), (900.0, 0.7)], "c": [(5.0, 0.5)]}
    root = Xml.fromstring(line_chart(lines, title="t & u", x="MB", y="accuracy"))
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == 3
    assert all(62 <= float(e.get("cx", math.nan)) <= 580 for e in circles)
    with pytest.raises(ValueError, match="no line has a point"):
        line_chart({"a": [(0.0, 1.0)]}, title="t", x="x", y="y")


def test_rows_are_dealt_so_that_the_first_few_have_every_label(tmp_path):
    part = _part_of(tmp_path, rows=60)
    found = prepared(part, tmp_path / "made")
    validation = [json.loads(line) for line in Path(found["validation"]).read_text().splitlines()]
    assert sorted(row["label"] for row in validation) == sorted("abcd" * 3)
    train = Path(found["train"]).read_text()
    assert not any(row["text"] in train for row in validation)


def test_a_part_without_its_data_says_how_to_get_them(tmp_path):
    part = _part_of(tmp_path, rows=8)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(NoData, match=r"test\.jsonl is missing: python infra/demo/prepare\.py"):
        prepared(part, tmp_path / "made")


def _part_of(folder: Path, *, rows: int) -> Any:
    for kind in ("train", "test"):
        lines = [
            json.dumps({"text": f"{kind} text number {at:03}", "label": "abcd"[min(at % 10, 3)]})
            for at in range(rows)
        ]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")
    data = {kind: str(folder / f"{kind}.jsonl") for kind in ("train", "test")}
    return replace(NEWS, data=data, model=str(folder), validation_rows=12, train_rows=None)
