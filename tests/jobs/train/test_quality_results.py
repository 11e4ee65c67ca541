"""What the benchmark of quality makes of its trainings: files, tables, charts and claims."""

from __future__ import annotations

import json
import xml.etree.ElementTree as Xml

import pytest

from tests.benchmarks.quality import __main__ as quality
from tests.benchmarks.quality.claims import (
    ABOVE,
    BEYOND_SPREAD,
    HANDOFF,
    WITHIN_NOISE,
    Claim,
    check_claim,
)
from tests.benchmarks.quality.corpora import CORPORA
from tests.benchmarks.quality.report import format_report, write_charts
from tests.benchmarks.quality.results_file import append_result, read_results
from tests.benchmarks.quality.summary import compute_handoff_loss, count_tokens_to
from tests.benchmarks.quality.training import extract_curve, summarize_stages
from tests.benchmarks.quality.variants import (
    VARIANTS,
    WIDE_SLORA,
)
from tests.jobs.train.quality_lines import run_plan, score_setting

NEWS, CHAT = CORPORA["newsgroups"], CORPORA["chat"]


# Files


def test_a_line_that_was_cut_short_is_dropped_and_the_next_starts_anew(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, {"key": "a", "test": 1})
    with path.open("a") as file:
        file.write('{"key": "b", "te')
    append_result(path, {"key": "c", "test": 2})
    assert read_results(path).keys() == {"a", "c"}


def test_a_table_has_eighty_columns_and_charts_are_well_formed(tmp_path):
    results, _ = run_plan(NEWS, ["lora r4", "sparse", "factors r32"], score_setting)
    text = format_report([NEWS], VARIANTS, results, markdown=False)
    assert max(map(len, text.splitlines())) <= 80
    assert "a machine" in text and "lora r4" in text and "0.600" in text
    assert "| sparse | 2e-2 1e-2 | 3 | 0.600 |" in format_report(
        [NEWS], VARIANTS, results, markdown=True
    )
    paths = write_charts([NEWS], results, tmp_path)
    assert {path.name for path in paths} == {
        f"quality-newsgroups-{axis}.svg" for axis in ("tokens", "bytes", "trained")
    }
    for path in paths:
        Xml.parse(path)


def test_the_file_is_shown_as_json_and_the_plan_without_a_training(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    for line in run_plan(CHAT, ["lora r4"], score_setting)[0].values():
        append_result(path, line)
    shown = ["--results", str(path), "--data", "chat", "--methods", "lora r4", "sparse"]
    assert quality.main(["report", *shown, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["method"], row["seeds"], row["megabytes"]) == ("lora r4", 3, 1.6)
    assert quality.main(["plan", *shown]) == 0
    assert "at least 6 trainings" in capsys.readouterr().out


# What follows from a training


def test_tokens_to_a_target_are_read_between_evaluations():
    line = {"curve": [[0, 0, 0.1], [10, 100, 0.3], [20, 200, 0.5]]}
    assert count_tokens_to(line, 0.4, 1) == pytest.approx(150)
    assert count_tokens_to(line, 0.6, 1) is None
    assert count_tokens_to({"curve": [[0, 0, 3.0], [10, 100, 2.0]]}, 2.5, -1) == pytest.approx(50)


def test_a_curve_has_the_tokens_of_each_evaluation_and_the_start_at_none():
    metrics = [
        {"step": 1, "tokens": 10.0, "stage": "sparse"},
        {"evaluation": "before", "loss": 3.0},
        {"step": 2, "tokens": 20.0, "stage": "sparse"},
        {"evaluation": "handoff", "loss": 2.5},
        {"step": 3, "tokens": 30.0, "stage": "low-rank"},
        {"evaluation": "end", "loss": 2.0},
    ]
    assert extract_curve(metrics, "loss") == [[0, 0, 3.0], [2, 20, 2.5], [3, 30, 2.0]]
    stages = summarize_stages(metrics, {"sparse": 5, "low-rank": 7})
    assert [(s["stage"], s["steps"], s["bytes_a_step"]) for s in stages] == [
        ("sparse", 2, 20), ("low-rank", 1, 28)
    ]  # fmt: skip


def test_the_loss_at_the_hand_off_is_a_share_of_the_sparse_stages_gain():
    losses = {"before": {"loss": 3.0}, "sparse": {"loss": 2.0}, "handoff": {"loss": 2.1}}
    assert compute_handoff_loss({"evaluations": losses}) == pytest.approx(0.1)
    assert compute_handoff_loss({"evaluations": {"before": {"loss": 3.0}}}) is None


# Claims


@pytest.mark.parametrize(
    ("kind", "data", "ours", "theirs", "margin", "held"),
    [
        (ABOVE, "newsgroups", [0.6, 0.62], [0.5, 0.6], 0.05, True),
        (ABOVE, "newsgroups", [0.6, 0.62], [0.5, 0.6], 0.08, False),
        (ABOVE, "chat", [2.0], [2.1], 0.05, True),
        (ABOVE, "chat", [2.1], [2.0], -0.02, False),
        (BEYOND_SPREAD, "newsgroups", [0.6, 0.62], [0.5, 0.59], 0.0, True),
        (BEYOND_SPREAD, "newsgroups", [0.6, 0.62], [0.5, 0.61], 0.0, False),
        (BEYOND_SPREAD, "chat", [2.0, 2.1], [2.11, 2.3], 0.0, True),
        (WITHIN_NOISE, "newsgroups", [0.6, 0.62], [0.59, 0.6], 0.0, True),
        (WITHIN_NOISE, "newsgroups", [0.6, 0.62], [0.5, 0.51], 0.0, False),
        (ABOVE, "newsgroups", [0.6], [], 0.0, None),
    ],
)
def test_a_claim_holds_or_not_by_its_kind(kind, data, ours, theirs, margin, held):
    claim = Claim("c", "quality", data, kind, "sparse", "peft shira r4", margin)
    samples = {(data, "sparse"): ours, (data, "peft shira r4"): theirs}
    assert check_claim(claim, samples, {}).held is held


def test_a_hand_off_is_judged_by_the_share_that_it_lost():
    claim = Claim("c", "quality", "chat", HANDOFF, WIDE_SLORA, margin=0.1)
    results, _ = run_plan(CHAT, [WIDE_SLORA], score_setting)
    for handed_over, held in ((2.05, True), (2.2, False)):
        for line in results.values():
            line["evaluations"] = {"before": {"loss": 3.0}, "sparse": {"loss": 2.0},
                                   "handoff": {"loss": handed_over}}  # fmt: skip
        checked = check_claim(claim, {}, results)
        assert checked.held is held and checked.figure == pytest.approx(handed_over - 2)


def test_a_page_whose_claim_has_fallen_ends_the_command_with_1(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert quality.main(["--claims", "--json"]) == 0
    assert not any(claim["made"] for claim in json.loads(capsys.readouterr().out))
    (tmp_path / "docs/results").mkdir(parents=True)
    words = "13 points\nabove LoRA, but SLoRA with a random mask is the **worst** of all"
    (tmp_path / "docs/results/results.md").write_text(words)
    assert quality.main(["--claims"]) == 1
    first = tmp_path / "docs/measured/quality.jsonl"
    news, chat = (("sparse random", 0.6), ("lora", 0.4)), (("lora", 0.6), ("slora random", 0.5))
    for part, sign, figures in (("newsgroups", 1, news), ("chat", -1, chat)):
        for rival, figure in figures:
            append_result(first, {"key": part + rival, "part": part, "rival": rival, "seed": 0,
                                  "rates": [None, 1.0], "validation": figure,
                                  "test": sign * figure})  # fmt: skip
    assert quality.main(["--claims", "--json"]) == 0
    capsys.readouterr()
    # The worse of the two on chat is now the one that the page praises.
    append_result(first, {"key": "chatslora random", "part": "chat", "rival": "slora random",
                          "seed": 0, "rates": [None, 1.0], "validation": 0.1,
                          "test": -0.9})  # fmt: skip
    assert quality.main(["--claims"]) == 1
    assert "FALLEN" in capsys.readouterr().out


def test_every_claim_of_the_pages_holds():
    assert quality.main(["--claims"]) == 0
