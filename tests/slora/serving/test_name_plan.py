"""Which changes of a name are possible, and which of them swap the weights."""

from __future__ import annotations

import pytest

from slora.serving.name_plan import LoadedAdapter, ServedNames, plan_name
from slora.serving.refusals import ServingRefused

LOADED = {
    name: LoadedAdapter("sparse" if name[0] == "s" else "lora", name)
    for name in ("l@v1", "l@v2", "s@v1", "s@v2")
}


@pytest.mark.parametrize(
    ("names", "name", "to", "names_after", "active_after"),
    [
        ({}, "a", "l@v1", {"a": "l@v1"}, None),
        ({"a": "l@v1"}, "a", "l@v2", {"a": "l@v2"}, None),
        ({"a": "l@v1"}, "b", "l@v2", {"a": "l@v1", "b": "l@v2"}, None),
        ({"a": "l@v1"}, "a", None, {}, None),
        ({}, "a", None, {}, None),
        ({}, "a", "s@v1", {"a": "s@v1"}, "s@v1"),
        ({"a": "s@v1"}, "a", "s@v2", {"a": "s@v2"}, "s@v2"),
        ({"a": "s@v1"}, "b", "s@v1", {"a": "s@v1", "b": "s@v1"}, "s@v1"),
        ({"a": "s@v1"}, "a", "l@v1", {"a": "l@v1"}, None),
        ({"a": "l@v1"}, "a", "s@v1", {"a": "s@v1"}, "s@v1"),
        ({"a": "s@v1"}, "a", None, {}, None),
        ({"a": "s@v1", "b": "s@v1"}, "a", None, {"b": "s@v1"}, "s@v1"),
        # Refused: names that answer from other weights would have to answer from these.
        ({"a": "s@v1"}, "b", "s@v2", "a sparse adapter changes the weights", None),
        ({"a": "s@v1"}, "b", "l@v1", "s@v1 answers too", None),
        ({"a": "l@v1"}, "b", "s@v1", "l@v1 answers too", None),
        ({}, "a", "x@v9", "not loaded", None),
        ({}, "l@v1", "l@v1", "name of a loaded version", None),
    ],
)
def test_a_name_moves_or_says_why_not(names, name, to, names_after, active_after):
    active = next((target for target in names.values() if target[0] == "s"), None)
    state = ServedNames(LOADED, names, active)
    if isinstance(names_after, str):
        with pytest.raises(ServingRefused, match=names_after):
            plan_name(state, name, to)
        return
    after = plan_name(state, name, to)
    assert (after.names, after.active_sparse) == (names_after, active_after)


def test_a_version_in_use_is_not_forgotten():
    state = ServedNames(LOADED, {"a": "s@v1"}, "s@v1")
    with pytest.raises(ServingRefused, match="answers as a"):
        state.without_adapter("s@v1")
    assert "s@v2" not in state.without_adapter("s@v2").adapters
