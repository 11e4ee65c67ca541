"""The federation section: invalid federations are refused by their keys, and rounds fill stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.plan.plan import split_steps
from jobs.spec.load import dump_spec, load_spec, validate_spec
from jobs.spec.schema import make_site_spec
from tests.jobs.federation.specs import a_federation, raw_federated
from tests.tiny import write_spec

HERE = Path("/made/up")
Bad = tuple[dict[str, Any], dict[str, Any], str, str]
LORA = {"method": {"kind": "lora"}}
BAD: dict[str, Bad] = {
    "an unknown key": ({"client": 3}, {}, "federation.client", "unknown key"),
    "a text for a number": ({"rounds": "9"}, {}, "federation.rounds", "'9' is not allowed"),
    "no rounds": ({"rounds": 0}, {}, "federation.rounds", "0 is not allowed"),
    "an unknown partition": (
        {"partition": "zipf"}, {}, "federation.partition", "'zipf' is not allowed"),
    "all clients lost": ({"drop_out": 1.0}, {}, "federation.drop_out", "1.0 is not allowed"),
    "steps": ({}, {"train": {"steps": 5}}, "train.steps", "counts rounds"),
    "epochs": ({}, {"train": {"epochs": 5}}, "train.epochs", "counts rounds"),
    "local steps of the cluster": (
        {}, {"cluster": {"sync_every": 4}}, "cluster.sync_every", "clients train alone"),
    "an outer step of the cluster": (
        {}, {"cluster": {"outer": "nesterov"}}, "cluster.outer", "clients train alone"),
    "an average of the cluster": (
        {}, {"cluster": {"average": "product"}}, "cluster.average", "clients train alone"),
    "a type of the cluster's exchange": (
        {}, {"cluster": {"exchange_dtype": "bfloat16"}}, "cluster.exchange_dtype", "train alone"),
    "a base that is cut": ({}, {"cluster": {"sharding": "node"}}, "cluster.sharding", "every site"),
    "elastic sites": (
        {}, {"cluster": {"workers": {"min": 1, "max": 2}}}, "cluster.workers", "fixed number"),
    "a start of its own": (
        {}, {"method": {"kind": "lora", "init": "pissa"}}, "method.init", "pissa starts from"),
    "gates": (
        {}, {"method": {"factor_pruning": "gates", "factor_density": 0.5}},
        "method.factor_pruning", "gates need"),
    "rows of the embedding": (
        {}, {"method": {"train_tokens": ["<tool>"]}}, "method.train_tokens", "exchange no rows"),
    "the product of no factors": (
        {"average": "product"}, {"method": {"kind": "sparse"}},
        "federation.average", "no factors"),
    "the product with a fixed A": (
        {"average": "product", "freeze_a": True}, {}, "federation.average", "already"),
    "the product of sparse factors": (
        {"average": "product"}, {"method": {"factor_density": 0.5}},
        "federation.average", "do not keep their masks"),
    "a fixed A of no factors": (
        {"freeze_a": True}, {"method": {"kind": "full"}}, "federation.freeze_a", "no factors"),
    "sparse rounds of one stage": ({"sparse_rounds": 2}, LORA, "federation.sparse_rounds", "one"),
    "more sparse rounds than rounds": (
        {"sparse_rounds": 11}, {}, "federation.sparse_rounds", "11 exceeds the 10"),
    "a partition by nothing": (
        {"partition": "by", "clients": None}, {}, "federation.column", "missing"),
    "a column for nothing": ({"column": "who"}, {}, "federation.column", "with partition: iid"),
    "no clients": ({"clients": None}, {}, "federation.clients", "missing"),
    "more in a round than there are": (
        {"clients_per_round": 5}, {}, "federation.clients_per_round", "5 of 4"),
    "a Dirichlet without labels": (
        {"partition": "dirichlet"}, {}, "federation.partition", "causal-lm rows have none"),
    "an alpha for nothing": (
        {"dirichlet_alpha": 0.5}, {}, "federation.dirichlet_alpha", "with partition: iid"),
    "a share that nobody sends": ({"topk": 0.5}, {}, "federation.topk", "with compress: none"),
    "an early end": (
        {}, {"train": {"stop": {"tokens": 5}}}, "train.stop", "ends after its rounds"),
    "a retraining beside it": ({}, {"retrain": {}}, "retrain", "cannot be combined"),
    "a search of nothing beside it": ({}, {"search": {}}, "search.space", "missing"),
    "a fault of the spec": ({}, {"method": {"rank": 0}}, "method.rank", "0 is not allowed"),
}  # fmt: skip


def test_a_bad_federation_is_refused_by_its_key():
    for case, (section, spec, key, problem) in BAD.items():
        with pytest.raises(InputError) as refused:
            a_federation(HERE, section, **spec)
        [fault] = refused.value.faults
        assert fault.key == key and problem in fault.problem and fault.remedy, case


def test_all_faults_are_reported_together():
    with pytest.raises(InputError) as refused:
        a_federation(HERE, {"rounds": 0}, method={"rank": 0}, train={"epochs": 2})
    keys = {fault.key for fault in refused.value.faults}
    assert keys == {"federation.rounds", "method.rank", "train.epochs"}


def test_an_unknown_key_names_the_nearest_known_key():
    with pytest.raises(InputError, match=r"nearest known key is federation\.local_steps"):
        a_federation(HERE, {"localsteps": 2})


@pytest.mark.parametrize("value", [3, "iid", [1]])
def test_a_value_instead_of_the_section_is_refused(value):
    with pytest.raises(InputError, match=r"federation: .* a section with keys"):
        validate_spec({**raw_federated(HERE), "federation": value})


def test_the_bare_key_means_the_defaults_and_requires_the_rest():
    with pytest.raises(InputError) as refused:
        validate_spec({**raw_federated(HERE), "federation": None})
    assert [fault.key for fault in refused.value.faults] == ["federation.clients"]


@pytest.mark.parametrize(
    ("method", "section", "stages", "sparse"),
    [
        ({}, {}, (3, 7), 3),
        ({"sparse_share": 0.24}, {}, (2, 8), 2),
        ({}, {"sparse_rounds": 0}, (0, 10), 0),
        ({}, {"sparse_rounds": 10}, (10, 0), 10),
        ({}, {"sparse_rounds": 4, "rounds": 7, "local_steps": 11}, (4, 3), 4),
        ({"kind": "sparse"}, {}, (10,), 10),
        ({"kind": "lora"}, {}, (10,), 0),
        ({"kind": "full"}, {}, (10,), 0),
    ],
)
def test_stages_end_between_rounds(method, section, stages, sparse):
    federated = a_federation(HERE, section, method=method)
    assert (federated.stage_rounds, federated.sparse_rounds) == (stages, sparse)
    local = federated.section.local_steps
    assert federated.train.steps == federated.section.rounds * local
    assert split_steps(federated, federated.train.steps) == tuple(n * local for n in stages)


@pytest.mark.parametrize("section", [{"sparse_rounds": 1}, {"partition": "files", "clients": None}])
def test_a_dumped_federation_loads_as_the_same(tmp_path, section):
    federated = a_federation(tmp_path, section)
    path = tmp_path / "federation.yaml"
    path.write_text(dump_spec(federated))
    assert load_spec(path) == federated
    assert dump_spec(load_spec(path)) == dump_spec(federated)


def test_overrides_reach_the_section(tmp_path):
    path = write_spec(tmp_path / "spec.yaml", raw_federated(tmp_path))
    federated = load_spec(path, ["federation.rounds=7", "train.seed=3"])
    assert (federated.section.rounds, federated.train.steps, federated.train.seed) == (
        7,
        21,
        3,
    )


def test_a_site_is_a_single_worker_with_the_unsharded_base():
    site_spec = make_site_spec(a_federation(HERE, {}, cluster={"workers": 3}))
    assert (site_spec.workers, site_spec.cluster.sharding) == (1, "replicate")
