"""Who has which rows: every row once, the same again from the same seed, nobody without."""

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


def dealt(files: list[Path], section: dict[str, Any], **more: Any) -> Partition:
    classifies = more.pop("classifies", True)
    told: dict[str, Any] = {"eval_fraction": None, "seed": 0, **more}
    return make_partition(
        files,
        FederationSection.model_validate({"clients_per_round": 1, **section}),
        fmt="classification" if classifies else "text",
        task="sequence-classification" if classifies else "causal-lm",
        **told,
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


def by_author(path: Path, rows: list[Any]) -> list[Path]:
    return [write_jsonl(path, [{"text": "x", "who": who} for who in rows])]


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["iid", "dirichlet", "by", "files"]),
    clients=st.integers(1, 300),
    alpha=st.floats(1e-300, 1e300),
    fraction=st.none() | st.floats(0.01, 0.45),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_row_that_is_not_held_out_belongs_to_one_client(
    labelled, kind, clients, alpha, fraction, seed
):
    section = {"partition": kind, "dirichlet_alpha": alpha, "column": "who"}
    if kind in ("iid", "dirichlet"):
        section["clients"] = clients
    made = dealt(labelled, section, eval_fraction=fraction, seed=seed)
    places = [(0, row) for row in range(250)] + [(1, row) for row in range(350)]
    held = [fraction and is_held_out(*at, fraction=fraction, seed=seed) for at in places]
    everyone = np.concatenate(made.rows)
    assert sorted(everyone) == [number for number, out in enumerate(held) if not out]
    assert min(made.sizes) > 0
    assert all((np.diff(rows) > 0).all() for rows in made.rows)
    assert len(set(made.names)) == made.count == section.get("clients", made.count)
    assert dealt(labelled, section, eval_fraction=fraction, seed=seed).digest == made.digest


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_another_seed_deals_otherwise(labelled, kind):
    first, second = (dealt(labelled, {"partition": kind, "clients": 9}, seed=n) for n in (0, 1))
    assert first.digest != second.digest


def skew(made: Partition) -> float:
    """The share of a client's rows that its commonest label has, on average."""
    shares = []
    for rows in made.rows:
        counts = Counter(int(row) % 5 for row in rows)
        shares.append(max(counts.values()) / len(rows))
    return sum(shares) / len(shares)


def test_the_lower_alpha_the_more_the_clients_differ(labelled):
    made = [
        dealt(labelled, {"partition": "dirichlet", "clients": 20, "dirichlet_alpha": alpha})
        for alpha in (0.05, 1.0, 100.0)
    ]
    low, middle, high = map(skew, made)
    assert low > middle + 0.1 > high + 0.2


def test_at_random_all_have_the_same_count(labelled):
    made = dealt(labelled, {"clients": 7})
    assert set(made.sizes) == {85, 86}
    assert made.names == ("0", "1", "2", "3", "4", "5", "6")
    assert dealt(labelled, {"clients": 101}).names[:2] == ("000", "001")


def test_a_column_names_the_clients(labelled, tmp_path):
    made = dealt(labelled, {"partition": "by", "column": "who"})
    assert made.names == tuple("0123456")
    assert list(made.rows[3][:3]) == [3, 10, 17]
    files = by_author(tmp_path / "x.jsonl", ["Zoë", "ann", "Zoë", 4])
    made = dealt(files, {"partition": "by", "column": "who"}, classifies=False)
    assert (made.names, made.sizes) == (("4", "Zoë", "ann"), (1, 2, 1))


def test_files_are_clients_by_the_shortest_names_that_tell_them_apart(tmp_path):
    for folder in ("north", "south"):
        (tmp_path / folder).mkdir()
    files = [tmp_path / name for name in ("north/a.jsonl", "south/a.jsonl", "south/b.jsonl")]
    for path in files:
        write_jsonl(path, [{"text": "x"}])
    made = dealt(files, {"partition": "files"}, classifies=False)
    assert made.names == ("north/a.jsonl", "south/a.jsonl", "b.jsonl")
    assert [list(rows) for rows in made.rows] == [[0], [1], [2]]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 500))
def test_the_largest_remainders_make_the_sum(shares, whole):
    total = sum(shares)
    made = np.array(shares) / total if total > 1e-6 else np.full(len(shares), 1 / len(shares))
    sizes = _round_to_total(made, whole)
    assert sizes.sum() == whole
    assert (abs(sizes - made * whole) < 1 + 1e-9).all()


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


@pytest.mark.parametrize(("value", "said"), BAD_AUTHORS.values(), ids=BAD_AUTHORS)
def test_a_value_that_names_nobody_is_refused_with_its_row(tmp_path, value, said):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": "x", "who": who}) + "\n" for who in ("a", value)))
    with pytest.raises(InputError, match=rf"x\.jsonl:2: .*{said}"):
        dealt([path], {"partition": "by", "column": "who"}, classifies=False)


def test_a_column_that_rows_lack_is_refused_with_the_fields_there_are(tmp_path):
    files = [write_jsonl(tmp_path / "x.jsonl", [{"text": "x", "author": "ann"}] * 30)]
    with pytest.raises(InputError, match=r"x.jsonl:1: no field 'who'.*'text', 'author'") as wrong:
        dealt(files, {"partition": "by", "column": "who"}, classifies=False)
    assert len(wrong.value.faults) == 20


def test_a_file_without_rows_is_nobodys(tmp_path):
    files = [write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}]), tmp_path / "b.jsonl"]
    files[1].write_text("\n")
    with pytest.raises(InputError, match=r"b.jsonl: a client without a row"):
        dealt(files, {"partition": "files"}, classifies=False)


REFUSED = {
    "more clients than rows": ({"clients": 601}, "federation.clients", "601.* 600 rows"),
    "a count that the data contradict": (
        {"partition": "by", "column": "who", "clients": 8}, "federation.clients", "makes 7"),
    "a count that the files contradict": (
        {"partition": "files", "clients": 3}, "federation.clients", "data.train makes 2"),
    "more in a round than there are": (
        {"partition": "files", "clients_per_round": 3}, "federation.clients_per_round", "3 of 2"),
}  # fmt: skip


@pytest.mark.parametrize(("section", "key", "said"), REFUSED.values(), ids=REFUSED)
def test_what_the_rows_do_not_allow_is_refused(labelled, section, key, said):
    with pytest.raises(InputError, match=said) as wrong:
        dealt(labelled, section)
    assert [fault.key for fault in wrong.value.faults] == [key]


def test_rows_without_labels_have_no_dirichlet(tmp_path):
    files = by_author(tmp_path / "x.jsonl", ["a", "b"])
    with pytest.raises(InputError, match=r"causal-lm rows have none\. Use iid"):
        dealt(files, {"partition": "dirichlet", "clients": 2}, classifies=False)
