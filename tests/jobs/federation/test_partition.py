"""The partition: every row belongs to one client, equal seeds give equal partitions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import InputError
from jobs.federation.partition import Partition, _round_to_total, make_partition
from jobs.inspect.datasets.heldout import is_held_out
from jobs.spec.sections.federation import FederationSection
from tests.jobs.data.conftest import write_jsonl

LABELS = "abcde"


def partition_rows(files: list[Path], section: dict[str, Any], **more: Any) -> Partition:
    classifies = more.pop("classifies", True)
    options: dict[str, Any] = {"eval_fraction": None, "seed": 0, **more}
    return make_partition(
        files,
        FederationSection.model_validate({"clients_per_round": 1, **section}),
        fmt="classification" if classifies else "text",
        task="sequence-classification" if classifies else "causal-lm",
        **options,
    )


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("rows")
    rows: list[dict[str, object]] = [
        {"text": f"row {number}", "label": LABELS[number % 5], "who": number % 7}
        for number in range(600)
    ]
    return [
        write_jsonl(folder / "a.jsonl", rows[:250]),
        write_jsonl(folder / "b.jsonl", rows[250:]),
    ]


def write_authors(path: Path, rows: list[Any]) -> list[Path]:
    return [write_jsonl(path, [{"text": "x", "who": who} for who in rows])]


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["iid", "dirichlet", "by", "files"]),
    clients=st.integers(1, 300),
    alpha=st.floats(1e-300, 1e15),
    fraction=st.none() | st.floats(0.01, 0.45),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_row_that_is_not_held_out_belongs_to_one_client(
    labelled, kind, clients, alpha, fraction, seed
):
    section = {"partition": kind, "dirichlet_alpha": alpha, "column": "who"}
    if kind in ("iid", "dirichlet"):
        section["clients"] = clients
    options = {"eval_fraction": fraction, "seed": seed}
    partition = partition_rows(labelled, section, **options)
    rows = [(0, row) for row in range(250)] + [(1, row) for row in range(350)]
    held_out = [fraction and is_held_out(*row, fraction=fraction, seed=seed) for row in rows]
    expected = [number for number, is_out in enumerate(held_out) if not is_out]
    assert sorted(np.concatenate(partition.rows)) == expected
    assert min(partition.sizes) > 0
    assert all((np.diff(numbers) > 0).all() for numbers in partition.rows)
    assert len(set(partition.names)) == partition.count == section.get("clients", partition.count)
    assert partition_rows(labelled, section, **options).digest == partition.digest


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_another_seed_gives_another_partition(labelled, kind):
    first, second = (
        partition_rows(labelled, {"partition": kind, "clients": 9}, seed=n) for n in (0, 1)
    )
    assert first.digest != second.digest


def measure_skew(partition: Partition) -> float:
    """Return the share of a client's most frequent label, averaged over the clients."""
    shares = []
    for rows in partition.rows:
        counts = Counter(int(row) % 5 for row in rows)
        shares.append(max(counts.values()) / len(rows))
    return sum(shares) / len(shares)


def test_the_lower_alpha_the_more_the_clients_differ(labelled):
    section = {"partition": "dirichlet", "clients": 20}
    low, middle, high = (
        measure_skew(partition_rows(labelled, {**section, "dirichlet_alpha": alpha}))
        for alpha in (0.05, 1.0, 100.0)
    )
    assert low > middle + 0.1 > high + 0.2


def test_a_class_of_a_table_is_one_however_its_number_is_written(tmp_path):
    section = {"partition": "dirichlet", "clients": 4, "dirichlet_alpha": 0.3}
    partitions = []
    for name, labels in (("plain", ("0", "1")), ("mixed", ("0", "1", "0.0", "1.0"))):
        path = tmp_path / f"{name}.csv"
        lines = [f"x,{labels[number % len(labels)]}" for number in range(200)]
        path.write_text("\n".join(["text,label", *lines, ""]))
        partitions.append([rows.tolist() for rows in partition_rows([path], section).rows])
    assert partitions[0] == partitions[1]


def test_random_clients_have_equally_many_rows(labelled):
    partition = partition_rows(labelled, {"clients": 7})
    assert set(partition.sizes) == {85, 86}
    assert partition.names == ("0", "1", "2", "3", "4", "5", "6")
    assert partition_rows(labelled, {"clients": 101}).names[:2] == ("000", "001")


def test_a_column_names_the_clients(labelled, tmp_path):
    partition = partition_rows(labelled, {"partition": "by", "column": "who"})
    assert partition.names == tuple("0123456")
    assert list(partition.rows[3][:3]) == [3, 10, 17]
    files = write_authors(tmp_path / "x.jsonl", ["Zoë", "ann", "Zoë", 4])
    partition = partition_rows(files, {"partition": "by", "column": "who"}, classifies=False)
    assert (partition.names, partition.sizes) == (("4", "Zoë", "ann"), (1, 2, 1))


def test_clients_of_files_have_the_shortest_unique_names(tmp_path):
    for folder in ("north", "south"):
        (tmp_path / folder).mkdir()
    files = [tmp_path / name for name in ("north/a.jsonl", "south/a.jsonl", "south/b.jsonl")]
    for path in files:
        write_jsonl(path, [{"text": "x"}])
    partition = partition_rows(files, {"partition": "files"}, classifies=False)
    assert partition.names == ("north/a.jsonl", "south/a.jsonl", "b.jsonl")
    assert [list(rows) for rows in partition.rows] == [[0], [1], [2]]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 500))
def test_rounded_shares_have_the_right_sum(shares, total):
    sum_of_shares = sum(shares)
    exact = np.full(len(shares), 1 / len(shares))
    if sum_of_shares > 1e-6:
        exact = np.array(shares) / sum_of_shares
    sizes = _round_to_total(exact, total)
    assert sizes.sum() == total
    assert (abs(sizes - exact * total) < 1 + 1e-9).all()


BAD_AUTHORS = {
    "a truth": (True, "who is True"),
    "nothing": (None, "who is None"),
    "a fraction": (1.5, "who is 1.5"),
    "a list": (["x"], r"who is \['x'\]"),
    "blanks": (" ", "who is empty"),
    "a novel": ("x" * 201, "can't be a client's name"),
    "two lines": ("a\nb", "can't be a client's name"),
    "half a character": ("\ud800", "can't be a client's name"),
}


@pytest.mark.parametrize(("value", "problem"), BAD_AUTHORS.values(), ids=BAD_AUTHORS)
def test_a_value_that_is_no_name_is_refused_with_its_row(tmp_path, value, problem):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": "x", "who": who}) + "\n" for who in ("a", value)))
    with pytest.raises(InputError, match=rf"x\.jsonl:2: .*{problem}"):
        partition_rows([path], {"partition": "by", "column": "who"}, classifies=False)


def test_a_missing_column_is_refused_with_the_rows_fields(tmp_path):
    files = [write_jsonl(tmp_path / "x.jsonl", [{"text": "x", "author": "ann"}] * 30)]
    with pytest.raises(InputError, match=r"x.jsonl:1: no field 'who'.*'text', 'author'") as error:
        partition_rows(files, {"partition": "by", "column": "who"}, classifies=False)
    assert len(error.value.faults) == 20


def test_a_file_without_rows_is_refused(tmp_path):
    files = [write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}]), tmp_path / "b.jsonl"]
    files[1].write_text("\n")
    with pytest.raises(InputError, match=r"b.jsonl: the file has no training row"):
        partition_rows(files, {"partition": "files"}, classifies=False)


REFUSED = {
    "more clients than rows": ({"clients": 601}, "federation.clients", "601 clients .* 600 rows"),
    "a count that the data contradict": (
        {"partition": "by", "column": "who", "clients": 8}, "federation.clients", "8 is not .*who"),
    "a count that the files contradict": (
        {"partition": "files", "clients": 3}, "federation.clients", "3 is not .*data.train .2"),
    "more in a round than there are": (
        {"partition": "files", "clients_per_round": 3}, "federation.clients_per_round", "3 of 2"),
}  # fmt: skip


@pytest.mark.parametrize(("section", "key", "problem"), REFUSED.values(), ids=REFUSED)
def test_counts_that_contradict_the_rows_are_refused(labelled, section, key, problem):
    with pytest.raises(InputError, match=problem) as error:
        partition_rows(labelled, section)
    assert [fault.key for fault in error.value.faults] == [key]


def test_rows_without_labels_cannot_be_partitioned_by_label(tmp_path):
    files = write_authors(tmp_path / "x.jsonl", ["a", "b"])
    with pytest.raises(InputError, match=r"causal-lm rows have none\. Use iid"):
        partition_rows(files, {"partition": "dirichlet", "clients": 2}, classifies=False)
