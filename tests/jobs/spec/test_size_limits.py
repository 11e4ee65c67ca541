"""Reporting the faults of a hostile spec costs no more than finding them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import Fault, InputError
from jobs.spec.checks.search import MAX_LISTED_VALUES, _freeze, check_search
from jobs.spec.load import validate_spec
from jobs.spec.schema import SearchSpec
from jobs.spec.size_limits import MAX_DEPTH, MAX_FAULTS, MAX_VALUES, check_size
from jobs.spec.yaml_text import parse_mapping


def read_faults(values: Any) -> list[Fault]:
    with pytest.raises(InputError) as error:
        validate_spec(values)
    return list(error.value.faults)


def make_values(**changes: Any) -> dict[str, Any]:
    return {
        "name": "chat",
        "model": {"path": "/models/tiny"},
        "data": {"train": "/data/train.jsonl", "eval": "/data/eval.jsonl"},
        "train": {"steps": 10},
        "store": "file:///store",
        **changes,
    }


@contextmanager
def count_comparisons(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Count the searches for a similar key, each of which takes longer than finding the fault."""
    compared: list[str] = []
    compare = difflib.get_close_matches

    def count(word: str, *arguments: Any, **options: Any) -> list[str]:
        compared.append(word)
        return compare(word, *arguments, **options)

    monkeypatch.setattr(difflib, "get_close_matches", count)
    yield compared


@pytest.mark.parametrize("section", ["", "train", "method", "federation", "retrain"])
def test_the_first_unknown_keys_are_explained_and_the_others_counted(
    section: str, monkeypatch: pytest.MonkeyPatch
):
    unknown = {f"key{number}": 1 for number in range(5000)}
    values = make_values(**({section: {"steps": 1, **unknown}} if section else unknown))
    with count_comparisons(monkeypatch) as compared:
        faults = read_faults(values)
    assert len(compared) <= MAX_FAULTS and all(len(word) <= 200 for word in compared)
    assert len(faults) == MAX_FAULTS + 1
    assert any("The nearest known key is" in fault.remedy for fault in faults)
    number = int(faults[-1].problem.split()[0].replace(",", ""))
    assert faults[-1].problem.endswith("more errors are not listed") and number >= 4900


def test_a_hundred_thousand_unknown_keys_are_one_fault(monkeypatch: pytest.MonkeyPatch):
    unknown = {f"key{number}": 1 for number in range(100_000)}
    with count_comparisons(monkeypatch) as compared:
        (fault,) = read_faults(make_values(**unknown))
    assert compared == []
    assert fault.problem == "it holds more than 10,000 keys and values"


def test_long_keys_are_shortened(monkeypatch: pytest.MonkeyPatch):
    with count_comparisons(monkeypatch) as compared:
        faults = read_faults(make_values(**{"x" * 500_000: 1}, train={"steps": 1, "y" * 9999: 1}))
    assert len(faults) == 2 and all(len(str(fault)) < 500 for fault in faults)
    assert all(len(word) <= 200 for word in compared)


class CountingList(list[Any]):
    """A list that counts how many of its values were read."""

    reads = 0

    def __iter__(self) -> Iterator[Any]:
        for value in super().__iter__():
            self.reads += 1
            yield value


def test_the_size_is_known_without_reading_what_is_too_large():
    values = CountingList([[]] * (MAX_VALUES + 1))
    with pytest.raises(InputError, match="more than 10,000 keys and values"):
        check_size({"a": values})
    assert values.reads == 0


def test_a_value_is_counted_wherever_an_alias_stands():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    with pytest.raises(InputError, match="more than 10,000 keys and values"):
        parse_mapping("\n".join(lines), "spec.yaml")
    with pytest.raises(InputError, match="more than 50 levels deep"):
        parse_mapping("a: &a [*a]", "spec.yaml")


def test_values_within_the_limits_are_accepted():
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    check_size(value)
    check_size(list(range(MAX_VALUES)))
    with pytest.raises(InputError):
        check_size([value])


def test_lists_of_a_space_are_bounded_in_all():
    half = [1e-4 + number * 1e-9 for number in range(MAX_LISTED_VALUES // 2 + 1)]
    space = {"train.learning_rate": {"choice": half}, "train.weight_decay": {"choice": half}}
    faults = read_faults(make_values(search={"space": space, "scheduler": "none"}))
    assert [fault.key for fault in faults] == ["search.space"]
    assert faults[0].problem == "its domains list 1,002 values, more than 1,000"


def test_a_list_of_wrong_values_is_refused_at_the_first():
    space = {"train.learning_rate": {"choice": [1e-4 + n * 1e-9 for n in range(900)]}}
    search = validate_spec(make_values(search={"space": space, "scheduler": "none"}))
    assert isinstance(search, SearchSpec)
    trials = []

    def refuse_trial(config: Mapping[str, Any]) -> None:
        trials.append(config)
        raise InputError([Fault("train.learning_rate", "not allowed")])

    (fault,) = check_search(search, refuse_trial)
    assert fault.key == "search.space.train.learning_rate" and len(trials) == 1


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0, 0.5, "a", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=6,
)


@given(PLAIN, PLAIN)
def test_frozen_values_are_equal_exactly_if_the_values_are(left: Any, right: Any):
    assert (_freeze(left) == _freeze(right)) == (left == right)
