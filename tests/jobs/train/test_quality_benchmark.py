"""The benchmark of quality: what it runs next, how it resumes, what it trains, what it claims."""

from __future__ import annotations

import itertools
import json
import math
import xml.etree.ElementTree as Xml
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.quality import __main__ as quality
from tests.benchmarks.quality.campaign import Campaign
from tests.benchmarks.quality.claims import (
    ABOVE,
    BEYOND_SPREAD,
    HANDOFF,
    WITHIN_NOISE,
    Claim,
    check_claim,
    list_pairs,
)
from tests.benchmarks.quality.corpora import CORPORA, Corpus, MissingData, write_rows
from tests.benchmarks.quality.peft_training import MasterWeights
from tests.benchmarks.quality.rate_search import SearchState, search_rates
from tests.benchmarks.quality.report import format_report, write_charts
from tests.benchmarks.quality.results_file import append_result, read_results
from tests.benchmarks.quality.schedule import (
    FIRST_GRID,
    OVERLAP,
    REPEAT,
    SEARCH,
    find_state,
    forecast_runs,
    list_due,
)
from tests.benchmarks.quality.setting import Setting, find_refusal
from tests.benchmarks.quality.shared_base import ChangedBase, SharedBases, digest_weights
from tests.benchmarks.quality.summary import compute_handoff_loss, count_tokens_to
from tests.benchmarks.quality.trainers import Bench
from tests.benchmarks.quality.training import describe_setting, extract_curve, summarize_stages
from tests.benchmarks.quality.variants import (
    BY_NAME,
    DEFAULT_SLORA,
    HEAD,
    LADDER,
    LORA,
    VARIANTS,
    Point,
)
from tests.tiny import chat_rows, tiny_chat_model

NEWS, CHAT = CORPORA["newsgroups"], CORPORA["chat"]
LORA_R4, SPARSE = BY_NAME["lora r4"], BY_NAME["sparse"]


def make_bowl(best: Point) -> Callable[[Point], float]:
    """A figure that falls with the distance from the best point on the ladder."""

    def score(point: Point) -> float:
        return -sum(abs(LADDER.index(point[axis]) - LADDER.index(best[axis])) for axis in best)

    return score


def run_search(
    grids: Mapping[str, tuple[float, ...]], score: Callable[[Point], float]
) -> tuple[SearchState, list[Point], list[bool]]:
    """The end of a search, every point that it ran, and which steps were the first grid."""
    known, order, firsts = dict[tuple[float, ...], float](), list[Point](), list[bool]()
    while True:
        state = search_rates(grids, lambda point: known.get(tuple(point.values())))
        if state.is_over:
            return state, order, firsts
        firsts.append(state.is_first_grid)
        for point in state.due:
            assert tuple(point.values()) not in known
            known[tuple(point.values())] = score(point)
            order.append(point)


# The search of rates


def test_a_grid_whose_best_lies_inside_is_not_extended():
    state, order, firsts = run_search({"adapter": LORA}, make_bowl({"adapter": 2e-3}))
    assert (state.point, len(order), firsts) == ({"adapter": 2e-3}, 4, [True])


@pytest.mark.parametrize("best", [1e-4, 5e-2])
def test_a_grid_is_extended_until_the_best_lies_inside(best):
    state, order, firsts = run_search({"adapter": LORA}, make_bowl({"adapter": best}))
    tried = sorted(point["adapter"] for point in order)
    assert state.point == {"adapter": best}
    assert tried[0] < best < tried[-1]
    assert firsts == [True, *[False] * (len(firsts) - 1)]


def test_axes_are_searched_one_after_the_other_and_no_product_is_run():
    grids = {"adapter": LORA, "head": HEAD}
    state, order, _ = run_search(grids, make_bowl({"adapter": 5e-3, "head": 1e-2}))
    assert state.point == {"adapter": 5e-3, "head": 1e-2}
    assert [point["head"] for point in order[:4]] == [HEAD[1]] * 4
    assert len(order) < 4 * 4


def test_an_axis_is_searched_again_where_the_other_has_moved_its_best():
    def score(point: Point) -> float:
        """With a high rate of the head a lower one of the adapter is better."""
        adapter = 1e-3 if point["head"] >= 2e-2 else 5e-3
        return make_bowl({"adapter": adapter})(point) + 5 * make_bowl({"head": 2e-2})(point)

    state, order, _ = run_search({"adapter": LORA, "head": HEAD}, score)
    assert state.point == {"adapter": 1e-3, "head": 2e-2}
    assert {"adapter": 5e-4, "head": 2e-2} in order


def test_rates_that_diverge_are_tried_and_not_chosen():
    state, order, _ = run_search(
        {"adapter": LORA}, lambda point: -math.inf if point["adapter"] > 2e-4 else 0.0
    )
    assert state.point["adapter"] <= 2e-4
    assert {"adapter": 5e-4} in order


# What is due


def make_line(setting: Setting, figure: float, test: float | None = None) -> dict[str, Any]:
    return {
        "key": setting.key, "data": setting.corpus.name, "method": setting.variant.name,
        "rates": dict(setting.point), "seed": setting.seed, "steps": setting.corpus.steps,
        "validation": figure, "test": figure if test is None else test, "dtype": "bfloat16",
        "curve": [[0, 0, 0.1], [200, 1000, figure - 0.1], [400, 2000, figure]],
        "stages": [{"stage": "low-rank", "steps": 400, "trained": 1000, "bytes_a_step": 4000}],
        "trained": 1000, "parameters": 100_000, "bytes": 1_600_000, "tokens": 2000,
        "seconds": 10.0, "wall_seconds": 12.0, "evaluations": {"end": {"loss": 1.0}},
        "machine": "a machine", "code": "abc", "libraries": {"torch": "2"}, "handoff": {},
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


def test_first_grids_come_before_extensions_and_seeds_come_last():
    _, order = run_plan(NEWS, ["lora r4", "sparse"], score_setting)
    phases = [phase for _, phase, _ in order]
    assert phases == sorted(phases)
    assert [name for name, phase, _ in order if phase == FIRST_GRID] == (
        ["lora r4"] * 4 + ["sparse"] * 4
    )
    assert {seed for _, phase, seed in order if phase in (FIRST_GRID, SEARCH)} == {0}
    assert [seed for name, phase, seed in order if phase == REPEAT and name == "sparse"] == [1, 2]


def test_five_seeds_run_where_the_spreads_of_compared_methods_overlap():
    pair = [("newsgroups", "lora r4", "sparse")]
    _, same = run_plan(NEWS, ["lora r4", "sparse"], score_setting, pairs=pair)
    assert sorted(seed for name, phase, seed in same if phase == OVERLAP and name == "sparse") == [
        3,
        4,
    ]
    _, apart = run_plan(
        NEWS, ["lora r4", "sparse"],
        lambda s: score_setting(s) - (0.3 if s.variant.name == "sparse" else 0), pairs=pair,
    )  # fmt: skip
    assert OVERLAP not in {phase for _, phase, _ in apart}


def test_a_plan_that_was_stopped_continues_where_it_was():
    whole, order = run_plan(NEWS, ["lora r4", "sparse"], score_setting)
    half = dict(list(whole.items())[: len(whole) // 2])
    due = list_due([NEWS], [LORA_R4, SPARSE], half)
    assert due[0].setting.key == list(whole)[len(half)]
    assert not {run.setting.key for run in due} & half.keys()
    assert list_due([NEWS], [LORA_R4, SPARSE], whole) == []
    assert len(order) == len(whole)


def test_a_variant_that_is_like_another_runs_at_its_best_rates_on_all_seeds():
    results, order = run_plan(NEWS, ["lora r4", "peft lora r4"], score_setting)
    first = next(at for at, (name, _, _) in enumerate(order) if name == "peft lora r4")
    assert all(phase in (FIRST_GRID, SEARCH) for _, phase, _ in order[:first] if _ == 0)
    best = find_state(NEWS, LORA_R4, results)
    ours = [line for line in results.values() if line["method"] == "peft lora r4"]
    assert best is not None and [line["rates"] for line in ours] == [best.point] * 3


def test_a_variant_near_another_searches_around_its_best_rates():
    names = ["slora r4 weights", "slora r4 loss"]
    results, _ = run_plan(NEWS, names, score_setting)
    states = [find_state(NEWS, BY_NAME[name], results) for name in names]
    assert states[0] == states[1]
    counts = [sum(line["method"] == name for line in results.values()) for name in names]
    assert counts[1] < counts[0]


def test_the_check_of_dtypes_runs_with_the_first_grids_at_the_same_rates():
    results, order = run_plan(CHAT, ["lora r4", "lora r4 float32"], score_setting)
    assert [run for run in order if run[0] == "lora r4 float32"] == [
        ("lora r4 float32", FIRST_GRID, 0)
    ]
    (line,) = (line for line in results.values() if line["method"] == "lora r4 float32")
    assert any(
        other["rates"] == line["rates"] and other["method"] == "lora r4"
        for other in results.values()
    )


def test_a_language_model_has_no_head_rate_and_lower_grids():
    due = [run.setting.point for run in list_due([CHAT], [LORA_R4], {})]
    assert due == [{"adapter": rate} for rate in (5e-4, 1e-3, 2e-3, 5e-3)]


def test_the_forecast_counts_what_is_left_and_shrinks_by_what_was_run():
    names = ["lora r4", "sparse", "peft lora r4"]
    variants = [BY_NAME[name] for name in names]
    runs = forecast_runs([NEWS], variants, {})
    assert len({setting.key for setting in runs}) == len(runs)
    first = list_due([NEWS], variants, {})[0].setting
    results = {first.key: make_line(first, 0.5)}
    assert first.key not in {setting.key for setting in forecast_runs([NEWS], variants, results)}
    whole, _ = run_plan(NEWS, names, score_setting)
    assert forecast_runs([NEWS], variants, whole) == []


def test_a_key_depends_on_what_is_trained_and_not_on_names():
    setting = Setting(NEWS, LORA_R4, {"adapter": 1e-3, "head": 1e-2}, 0)
    renamed = replace(setting, variant=replace(LORA_R4, name="other", tier=1, grids={}))
    others = [
        replace(setting, seed=1),
        replace(setting, point={"adapter": 1e-3, "head": 2e-2}),
        replace(setting, variant=replace(LORA_R4, model={"dtype": "float32"})),
        replace(setting, variant=replace(LORA_R4, peft="lora")),
        replace(setting, corpus=replace(NEWS, steps=401)),
    ]
    assert renamed.key == setting.key
    assert len({setting.key, *(other.key for other in others)}) == 1 + len(others)


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)
def test_a_spec_is_accepted_or_has_keys_that_the_product_does_not_know_yet(corpus):
    campaign = Campaign([corpus], VARIANTS, {})
    campaign.skip_unknown()
    for reason in campaign.skipped.values():
        assert "unknown key" in reason, reason
    known = {setting.variant.name for setting in campaign.forecast()}
    assert known.isdisjoint(name for _, name in campaign.skipped)
    if not corpus.has_head:
        assert {"lora r4", "sparse", "full", "factors r128", "peft shira r4"} <= known


def test_names_are_unique_and_leaders_exist():
    assert len(BY_NAME) == len(VARIANTS)
    assert DEFAULT_SLORA in BY_NAME
    for variant in VARIANTS:
        assert (variant.like or variant.near or variant.name) in BY_NAME
        assert bool(variant.grids) == (variant.like is None and variant.near is None)
    for _, *names in list_pairs():
        assert {*names} <= BY_NAME.keys()


# Files


def test_a_line_that_was_cut_short_is_dropped_and_the_next_starts_anew(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, {"key": "a", "test": 1})
    with path.open("a") as file:
        file.write('{"key": "b", "te')
    append_result(path, {"key": "c", "test": 2})
    assert read_results(path).keys() == {"a", "c"}


def test_rows_are_split_once_and_named_by_their_content(tmp_path):
    corpus = make_tiny_corpus(tmp_path)
    (tmp_path / "model").mkdir()
    splits = write_rows(corpus, tmp_path / "rows")
    assert splits == write_rows(corpus, tmp_path / "rows")
    texts = {split: Path(path).read_text().splitlines() for split, path in splits.items()}
    assert len(texts["validation"]) == 4 and not {*texts["train"]} & {*texts["validation"]}
    with pytest.raises(MissingData, match=r"python infra/demo/prepare\.py chat"):
        write_rows(replace(corpus, test=str(tmp_path / "none.jsonl")), tmp_path / "rows")


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
    claim = Claim("c", "quality", "chat", HANDOFF, DEFAULT_SLORA, margin=0.1)
    results, _ = run_plan(CHAT, [DEFAULT_SLORA], score_setting)
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
    (tmp_path / "README.md").write_text("as good,\nand `kind: sparse` alone was better")
    assert quality.main(["--claims"]) == 1
    first = tmp_path / "docs/measured/quality.jsonl"
    for part, sign in (("newsgroups", 1), ("chat", -1)):
        for rival, figure in (("sparse random", 0.6), ("slora random", 0.5)):
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


# Trainings of a tiny model


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for one another cost seconds where tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_tiny_corpus(folder: Path) -> Corpus:
    for name, count in (("train", 24), ("test", 4)):
        chat_rows(folder / f"{name}.jsonl", count)
    return replace(
        CHAT, train=str(folder / "train.jsonl"), test=str(folder / "test.jsonl"),
        model=str(folder / "model"), validation_rows=4, test_rows=4, max_length=64, steps=4,
        batch_size=2, eval_every=2, dtype="float32", density=0.1,
    )  # fmt: skip


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # PEFT's SHiRA.
def test_a_process_trains_one_setting_after_the_other_from_the_same_bits(tmp_path):
    tiny_chat_model(tmp_path / "model")
    corpus = make_tiny_corpus(tmp_path)
    splits = write_rows(corpus, tmp_path / "rows")
    bench, stores = Bench(torch.device("cpu")), itertools.count()

    def train(name: str) -> dict[str, Any]:
        setting = Setting(corpus, BY_NAME[name], {"adapter": 1e-2}, 0)
        figures = bench.train(setting, splits, f"file://{tmp_path / f'store{next(stores)}'}")
        json.dumps({**describe_setting(setting, splits), **figures})
        return figures

    first, sparse = train("lora r4"), train("sparse")
    again, theirs, shira = train("lora r4"), train("peft lora r4"), train("peft shira r4")
    assert again["curve"] == first["curve"] and again["test"] == first["test"]
    assert [step for step, _, _ in first["curve"]] == [0, 2, 4]
    assert theirs["trained"] == first["trained"] == shira["trained"]
    assert theirs["tokens"] == first["tokens"] == sparse["tokens"]
    assert sparse["bytes"] == 4 * 4 * sparse["trained"]
    start = first["curve"][0][2]
    for figures in (first, sparse, theirs, shira):
        assert figures["validation"] < start
    # B is zero at first, so that the first step's loss is the same for both; later they differ by
    # how A was drawn.
    assert theirs["validation"] == pytest.approx(first["validation"], abs=0.2)


def test_a_base_that_a_training_has_changed_is_noticed(tmp_path, monkeypatch):
    tiny_chat_model(tmp_path / "model")
    request = make_request(tmp_path)
    bases = SharedBases()
    copy = bases.load(request, None, make_context())  # type: ignore[arg-type]
    digest = digest_weights(copy.model)
    with torch.no_grad():
        next(copy.model.parameters()).zero_()
    again = bases.load(request, None, make_context())  # type: ignore[arg-type]
    assert digest_weights(again.model) == digest != digest_weights(copy.model)
    assert again.targets.keys() == copy.targets.keys()
    assert all(again.model.get_submodule(name) is layer for name, layer in again.targets.items())
    ((original, _),) = bases._bases.values()
    with torch.no_grad():
        next(original.model.parameters()).zero_()
    with pytest.raises(ChangedBase, match="not those of the file"):
        bases.load(request, None, make_context())  # type: ignore[arg-type]


def make_request(folder: Path) -> Any:
    from jobs.plan.preflight import validate_run
    from jobs.spec.load import validate_spec

    corpus = make_tiny_corpus(folder)
    setting = Setting(corpus, LORA_R4, {"adapter": 1e-3}, 0)
    splits = write_rows(corpus, folder / "rows")
    spec = validate_spec(setting.make_spec(splits, f"file://{folder / 'store'}"))
    return validate_run(spec).make_request("quality")


def make_context() -> Any:
    from jobs.train.comm.collectives import WorkerContext

    return WorkerContext(0, 1, torch.device("cpu"))


def test_the_head_has_a_rate_of_its_own_and_is_stepped_in_float32():
    adapter = torch.nn.Parameter(torch.zeros(2))
    head = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    weights = MasterWeights([adapter, head], {id(head)}, {"adapter": 1e-3, "head": 1e-1})
    adapter.grad, head.grad = torch.ones(2), torch.ones(2, dtype=torch.bfloat16)
    weights.step(1.0, max_norm=1.0)
    assert adapter.tolist() == pytest.approx([-1e-3] * 2, rel=1e-3)
    assert head.tolist() == pytest.approx([0.9] * 2, rel=1e-2)
    assert adapter.grad is None


def test_a_refusal_names_the_key():
    variant = replace(LORA_R4, method={"kind": "lora", "rnk": 4})
    refusal = find_refusal(Setting(CHAT, variant, {"adapter": 1e-3}, 0))
    assert refusal is not None and "method.rnk: unknown key" in refusal
