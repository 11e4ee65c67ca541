"""What trials share: the same key where nothing that matters differs, another one where it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import NotInStore
from jobs.inspect.base_digest import digest_base
from jobs.plan.preflight import validate_run
from jobs.search.shared_cache import (
    SharedCache,
    SharingKeys,
    compute_sharing_keys,
    count_reused_tokens,
)
from jobs.spec.load import make_trial_spec
from jobs.spec.paths import make_paths_absolute
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import CHECKPOINT_STATE, CHECKPOINT_TENSORS, MASKS, RunStore
from tests.jobs.search.specs import a_search


def _keys(folder: Path, **config: Any) -> SharingKeys:
    search = a_search(folder, method={"mask": "fisher"})
    dotted = {key.replace("__", "."): value for key, value in config.items()}
    validated = validate_run(make_paths_absolute(make_trial_spec(search, dotted)))
    base = digest_base(validated.model.folder)
    return compute_sharing_keys(validated.make_request("run", base=base))


AFTER = {
    "rank": {"method__rank": 4},
    "alpha": {"method__alpha": 3.0},
    "the hand-off": {"method__handoff__residual": "fold"},
    "how often it is measured": {"train__eval_every": 2},
    "the other stage's rate": {
        "train__learning_rate": 1e-3, "train__sparse_learning_rate": 1e-2},
    "more steps after it": {"train__steps": 20, "method__sparse_share": 0.2},
}  # fmt: skip
BEFORE = {
    "density": {"method__density": 0.1},
    "the rate": {"train__learning_rate": 1e-3},
    "the seed": {"train__seed": 1},
    "the mask": {"method__mask": "snip"},
    "a mask that is sized by the rank": {"method__mask": "rows"},
    "its steps": {"method__sparse_share": 0.5},
    "the batch": {"train__batch_size": 2},
    "the workers": {"cluster__workers": 2},
    "the length": {"data__max_length": 32},
    "the targets": {"method__targets": ["q_proj"]},
}


@pytest.mark.parametrize("config", AFTER.values(), ids=AFTER)
def test_keys_that_act_after_the_sparse_stage_share_it(folder: Path, config: dict[str, Any]):
    assert _keys(folder, **config).sparse_stage == _keys(folder).sparse_stage


@pytest.mark.parametrize("config", BEFORE.values(), ids=BEFORE)
def test_keys_that_act_in_the_sparse_stage_share_none(folder: Path, config: dict[str, Any]):
    assert _keys(folder, **config).sparse_stage != _keys(folder).sparse_stage


def test_scores_are_shared_over_densities_and_ranks_and_not_over_strategies(folder: Path):
    here = _keys(folder).scores
    assert here is not None
    assert _keys(folder, method__density=0.2, method__rank=4).scores == here
    assert _keys(folder, method__mask="snip").scores != here
    assert _keys(folder, train__seed=1).scores != here
    assert _keys(folder, method__mask="random").scores is None


def test_row_masks_by_fisher_share_the_scores_of_fisher(folder: Path):
    keys = _keys(folder, method__mask="rows", method__score="fisher")
    assert keys.scores == _keys(folder).scores


def test_the_first_evaluation_depends_on_the_base_only(folder: Path):
    here = _keys(folder).first_evaluation
    assert _keys(folder, method__kind="lora", train__learning_rate=1.0).first_evaluation == here
    assert _keys(folder, train__seed=1).first_evaluation != here


def test_a_shared_stage_is_restored_completely_and_the_first_one_stays(tmp_path: Path):
    store = DirectoryStore(tmp_path)
    search, donor, taker = (RunStore(store, name) for name in ("search", "donor", "taker"))
    for name, value in ((CHECKPOINT_TENSORS, b"tensors"), (CHECKPOINT_STATE, b"state")):
        store.put(donor.checkpoint_key(3, name), value)
    store.put(donor.key(MASKS), b"masks")
    cache = SharedCache(search)
    assert not cache.has("sparse_stage", "k")
    cache.put_stage("k", donor, 3, 70)
    store.put(donor.checkpoint_key(3, CHECKPOINT_STATE), b"other")
    cache.put_stage("k", donor, 3, 70)
    assert cache.has("sparse_stage", "k")
    assert cache.restore_stage("k", taker) == 3
    assert store.get(taker.checkpoint_key(3, CHECKPOINT_STATE)) == b"state"
    assert store.get(taker.checkpoint_key(3, CHECKPOINT_TENSORS)) == b"tensors"
    assert store.get(taker.key(MASKS)) == b"masks"
    assert (count_reused_tokens(donor), count_reused_tokens(taker)) == (0, 70)


def test_the_parts_of_two_stages_that_end_at_once_are_not_mixed(tmp_path: Path):
    store = DirectoryStore(tmp_path)
    search, first, second, taker = (RunStore(store, n) for n in ("s", "first", "second", "taker"))
    store.put(first.checkpoint_key(3, CHECKPOINT_TENSORS), b"first")
    for name in (CHECKPOINT_TENSORS, CHECKPOINT_STATE):
        store.put(second.checkpoint_key(3, name), b"second")
    cache = SharedCache(search)
    with pytest.raises(NotInStore):  # it dies between its parts
        cache.put_stage("k", first, 3, 70)
    cache.put_stage("k", second, 3, 70)
    cache.restore_stage("k", taker)
    parts = {
        store.get(taker.checkpoint_key(3, name)) for name in (CHECKPOINT_TENSORS, CHECKPOINT_STATE)
    }
    assert parts == {b"second"}


def test_with_sync_every_above_one_only_equal_evaluation_steps_share_a_stage(folder: Path):
    alone = {"cluster__workers": 2, "cluster__sync_every": 3}
    often = {**alone, "train__eval_every": 2}
    assert _keys(folder, **often).sparse_stage != _keys(folder, **alone).sparse_stage
