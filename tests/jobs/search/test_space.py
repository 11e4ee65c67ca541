"""Proposals: within their domains, none twice, and the same again for the same seed and past."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.search.space import count_trials, list_precomputed_configs, propose_tpe
from jobs.search.trial_record import TrialRecord
from jobs.spec.sections.search import SearchSection

WIDE: dict[str, Any] = {
    "method.rank": {"choice": [2, 4, 8]},
    "train.learning_rate": {"loguniform": [1e-4, 1e-2]},
    "train.warmup": {"uniform": [0.0, 0.5]},
    "train.batch_size": {"randint": [4, 9]},
    "method.targets": {"choice": ["all-linear", ["q_proj", "v_proj"]]},
}


def _section(**options: Any) -> SearchSection:
    return SearchSection.model_validate({"space": WIDE, **options})


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31 - 1))
def test_draws_are_within_their_domains(seed: int):
    for config in list_precomputed_configs(_section(samples=6, seed=seed)) or ():
        assert config["method.rank"] in (2, 4, 8)
        assert 1e-4 <= config["train.learning_rate"] <= 1e-2
        assert 0.0 <= config["train.warmup"] <= 0.5
        assert 4 <= config["train.batch_size"] <= 9


def test_draws_depend_on_the_seed():
    assert list_precomputed_configs(_section(seed=3)) == list_precomputed_configs(_section(seed=3))
    assert list_precomputed_configs(_section(seed=3)) != list_precomputed_configs(_section(seed=4))


def test_more_samples_begin_with_the_same_ones():
    few, more = (
        list_precomputed_configs(_section(samples=4)),
        list_precomputed_configs(_section(samples=9)),
    )
    assert few is not None and more is not None
    assert more[:4] == few


def test_no_config_is_proposed_twice_even_in_a_small_space():
    section = SearchSection.model_validate(
        {"space": {"method.rank": {"choice": [2, 4, 8]}}, "samples": 12}
    )
    configs = list_precomputed_configs(section)
    assert configs is not None
    assert sorted(config["method.rank"] for config in configs) == [2, 4, 8]
    assert count_trials(section) == 3


def test_a_grid_is_crossed_completely_and_limited_by_samples():
    space = {"method.rank": {"choice": [2, 4]}, "train.batch_size": {"randint": [1, 3]}}
    section = SearchSection.model_validate({"space": space, "algorithm": "grid"})
    assert len(list_precomputed_configs(section) or ()) == 6
    cut = SearchSection.model_validate({"space": space, "algorithm": "grid", "samples": 4})
    assert list_precomputed_configs(cut) == (list_precomputed_configs(section) or [])[:4]


def test_grid_domains_are_crossed_and_the_others_are_drawn_for_each_crossing():
    space = {"method.rank": {"grid": [2, 4]}, "train.learning_rate": {"uniform": [0.1, 0.2]}}
    section = SearchSection.model_validate({"space": space, "samples": 3})
    configs = list_precomputed_configs(section) or []
    assert [config["method.rank"] for config in configs] == [2, 4, 2, 4, 2, 4]
    assert len({config["train.learning_rate"] for config in configs}) == 6


def _past(section: SearchSection, numbers: int) -> list[TrialRecord]:
    rows: list[TrialRecord] = []
    for number in range(numbers):
        config = propose_tpe(section, number, rows)
        assert config is not None
        # Better the nearer the rate is to 2e-3.
        metric = abs(config["train.learning_rate"] - 2e-3)
        rows.append(TrialRecord(number, config, status="done", metric=metric, adapter_bytes=1e6))
    return rows


def test_tpe_proposes_the_same_after_the_same_results():
    section = _section(algorithm="tpe", samples=8)
    once, again = _past(section, 6), _past(section, 6)
    assert once == again
    assert propose_tpe(section, 6, once) == propose_tpe(
        section, 6, [TrialRecord.from_dict(row.to_dict()) for row in once]
    )


def test_tpe_learns_from_its_results():
    section = SearchSection.model_validate({
        "space": {"train.learning_rate": {"uniform": [1e-4, 1e-1]}}, "algorithm": "tpe",
        "samples": 40,
    })  # fmt: skip
    rows = _past(section, 40)
    early = sum(row.metric or 0 for row in rows[:10])
    late = sum(row.metric or 0 for row in rows[-10:])
    assert late < early / 2


def test_tpe_weighs_several_objectives():
    section = _section(algorithm="tpe", samples=8, also_minimise=["adapter_bytes"])
    assert len(_past(section, 6)) == 6


def test_tpe_proposes_nothing_twice_and_ends_with_a_small_space():
    section = SearchSection.model_validate(
        {"space": {"method.rank": {"choice": [2, 4]}}, "algorithm": "tpe", "samples": 5}
    )
    rows = [TrialRecord(n, {"method.rank": rank}, status="failed") for n, rank in enumerate((2, 4))]
    assert propose_tpe(section, 1, rows[:1]) == {"method.rank": 4}
    assert propose_tpe(section, 2, rows) is None


def test_tpe_continues_if_all_trials_failed_or_have_no_finite_metric():
    section = _section(algorithm="tpe", samples=8)
    past = _past(section, 5)
    failed = [replace(row, status="failed", metric=None) for row in past]
    unmeasured = [replace(row, metric=float("nan")) for row in past]
    assert propose_tpe(section, 5, failed) == propose_tpe(section, 5, unmeasured)
    assert propose_tpe(section, 5, failed) is not None
