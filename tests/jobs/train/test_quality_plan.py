"""What the benchmark of quality runs next: rates, seeds, resumption, the time that is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import Fault, InputError
from tests.benchmarks.quality.campaign import Campaign, run_campaign
from tests.benchmarks.quality.claims import (
    list_pairs,
)
from tests.benchmarks.quality.corpora import CORPORA
from tests.benchmarks.quality.rate_search import SearchState, search_rates
from tests.benchmarks.quality.results_file import read_results
from tests.benchmarks.quality.schedule import (
    FIRST_GRID,
    OVERLAP,
    REPEAT,
    SEARCH,
    find_state,
    forecast_runs,
    list_due,
)
from tests.benchmarks.quality.setting import Setting
from tests.benchmarks.quality.variants import (
    BY_NAME,
    HEAD,
    LATE_SLORA,
    LORA,
    VARIANTS,
    WIDE_SLORA,
    Point,
)
from tests.jobs.train.quality_lines import make_bowl, make_line, run_plan, score_setting

NEWS, CHAT = CORPORA["newsgroups"], CORPORA["chat"]
LORA_R4, SPARSE = BY_NAME["lora r4"], BY_NAME["sparse"]


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


def test_equal_figures_extend_no_grid():
    state, order, _ = run_search({"adapter": LORA}, lambda point: 0.5)
    assert (state.point, len(order)) == ({"adapter": LORA[1]}, 4)


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


def run_fake_campaign(
    path: Path, train: Callable[[Setting, Any], dict[str, Any]], names: list[str], **options: Any
) -> tuple[int, list[str]]:
    """A campaign on the chat data whose trainings take no time; its count and what it said."""
    told: list[str] = []
    campaign = Campaign([CHAT], [BY_NAME[name] for name in names], read_results(path))
    with ThreadPoolExecutor(2) as pool:
        count = run_campaign(
            campaign, {"chat": {}}, path, pool, train=train, workers=2, report=told.append,
            **{"minutes": 60.0, **options},
        )  # fmt: skip
    return count, told


def test_a_campaign_that_dies_keeps_its_results_and_a_second_one_does_the_rest(tmp_path):
    path, keys = tmp_path / "results.jsonl", list[str]()

    def train(setting: Setting, rows: Any) -> dict[str, Any]:
        if len(keys) == 3:
            raise KeyboardInterrupt
        keys.append(setting.key)
        return make_line(setting, score_setting(setting))

    with pytest.raises(KeyboardInterrupt):
        run_fake_campaign(path, train, ["lora r4"])
    done = read_results(path).keys()
    assert done and done <= {*keys}
    keys.clear()
    keys.extend(["none"] * 4)
    count, told = run_fake_campaign(path, train, ["lora r4"])
    assert not done & {*keys} and count == len(keys) - 4
    assert len(read_results(path)) == len(done) + count
    assert "the plan: at least 0 trainings" in told[-1]
    assert run_fake_campaign(path, train, ["lora r4"]) == (0, [])


def test_a_campaign_starts_nothing_that_would_not_end_in_time(tmp_path):
    def train(setting: Setting, rows: Any) -> dict[str, Any]:
        raise AssertionError

    assert run_fake_campaign(tmp_path / "r.jsonl", train, ["lora r4"], minutes=0.1) == (0, [])


def test_a_variant_that_is_refused_is_reported_once_and_the_others_run(tmp_path):
    def train(setting: Setting, rows: Any) -> dict[str, Any]:
        if setting.variant.name == "sparse":
            raise InputError([Fault("method.rank", "too high", "Lower it.")])
        return make_line(setting, score_setting(setting))

    count, told = run_fake_campaign(tmp_path / "r.jsonl", train, ["sparse", "lora r4"])
    refused = [line for line in told if line.startswith("skipped")]
    assert count >= 6 and 1 <= len(refused) <= 2 and "method.rank" in refused[0]


def test_a_variant_that_is_like_another_runs_at_its_best_rates_on_all_seeds():
    results, order = run_plan(NEWS, ["lora r4", "peft lora r4"], score_setting)
    first = next(at for at, (name, _, _) in enumerate(order) if name == "peft lora r4")
    assert all(phase in (FIRST_GRID, SEARCH) for _, phase, _ in order[:first] if _ == 0)
    best = find_state(NEWS, LORA_R4, results)
    ours = [line for line in results.values() if line["method"] == "peft lora r4"]
    assert best is not None and [line["rates"] for line in ours] == [best.point] * 3


def test_the_late_hand_off_runs_at_the_best_rates_of_the_sparse_values():
    results, _ = run_plan(NEWS, ["sparse", LATE_SLORA], score_setting)
    best = find_state(NEWS, SPARSE, results)
    late = [line["rates"] for line in results.values() if line["method"] == LATE_SLORA]
    assert best is not None and len(late) == 3
    assert late[0] == {"sparse": best.point["adapter"], "head": best.point["head"]}


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
    assert WIDE_SLORA in BY_NAME
    for variant in VARIANTS:
        assert (variant.like or variant.near or variant.name) in BY_NAME
        assert bool(variant.grids) == (variant.like is None and variant.near is None)
    for _, *names in list_pairs():
        assert {*names} <= BY_NAME.keys()
