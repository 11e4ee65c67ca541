"""Which sharding `auto` takes, what is refused and why, and what is warned of: a table."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.predict.choice import Choice, Way, choose, warnings, ways
from jobs.predict.question import Question
from tests.jobs.predict.asked import SIZES, base, question

BIG = {name: size * 10**8 for name, size in SIZES.items()}
"""400 GB whole in float32, 200 GB on each of 2 workers, 100 GB on each of 4; the largest weight is
160 GB more where the base is dealt out."""
GB = 10**9


def asked(memory_gb: float | None, **changes: Any) -> Question:
    place = {"memory": None if memory_gb is None else round(memory_gb * GB), "cpu": False}
    return question(
        **{"base": base(sizes=BIG), **changes, "place": place | changes.get("place", {})}
    )


def choice(wanted: str, memory_gb: float | None, **changes: Any) -> Choice:
    one = asked(memory_gb, **changes)
    return choose(one, ways(one), wanted)


def way(one: Question, sharding: str) -> Way:
    return next(way for way in ways(one) if way.sharding == sharding)


AUTO: dict[str, tuple[float | None, dict[str, Any], str, str]] = {
    "all of it fits": (900, {}, "replicate", "auto: it fits"),
    "half of it fits": (430, {}, "node", "auto: the first that fits, replicate does not"),
    "a quarter fits": (320, {}, "cluster", "auto: the first that fits, replicate does not"),
    "nobody knows": (None, {}, "replicate", "auto: a GPU's memory is not known, see"),
    "one machine": (320, {"per_node": 4}, "cluster", "auto: the first that fits"),
    "a worker a machine": (320, {"per_node": 1}, "cluster", "auto: the first that fits"),
    "machines not filled alike": (430, {"workers": 5, "per_node": 2}, "cluster", "auto: the first"),
}


@pytest.mark.parametrize(("memory", "changes", "taken", "why"), AUTO.values(), ids=AUTO)
def test_auto_takes_the_first_that_fits(
    memory: float | None, changes: dict[str, Any], taken: str, why: str
):
    found = choice("auto", memory, **changes)
    assert (found.sharding, found.fault) == (taken, None)
    assert found.reason.startswith(why)


def test_where_nothing_fits_it_says_by_how_much():
    found = choice("auto", 100)
    needed = way(asked(100), "cluster").needed
    assert found.fault == (
        f"cluster needs {needed / GB:,.1f} GB a worker, {needed / GB - 100:,.1f} GB more than the "
        "100.0 GB of the test"
    )


def test_what_the_spec_names_is_taken_or_refused_and_never_replaced():
    assert choice("cluster", 900) == Choice("cluster", "as the spec says")
    refused = choice("replicate", 430)
    assert refused.sharding == "replicate"
    assert refused.fault is not None and refused.fault.endswith("; node would fit")
    assert choice("replicate", None).fault is None


def test_node_needs_machines_with_the_same_number_of_workers():
    fault = choice("node", 900, workers=5, per_node=2).fault
    assert fault == "5 workers can't be dealt to machines of 2 alike, as `node` needs"


def test_a_tenth_of_the_memory_is_left_free():
    one = asked(900)
    held = way(one, "replicate").memory.peak + GB
    assert way(one, "replicate").needed == round(held / 0.9)
    for spare, fits in ((1, True), (-1, False)):
        exactly = asked((round(held / 0.9) + spare) / GB)
        assert way(exactly, "replicate").fits is fits


def test_a_base_that_dominates_the_wire_is_warned_of():
    one = asked(320)
    [said] = warnings(one, way(one, "cluster"))
    assert said.startswith("the base dominates the wire: ") and "times what the adapter" in said
    assert warnings(one, way(one, "node")) == ()
    assert warnings(asked(900), way(asked(900), "replicate")) == ()


def test_on_one_machine_nothing_leaves_it_and_nothing_is_warned_of():
    one = asked(320, per_node=4)
    assert warnings(one, way(one, "cluster")) == ()
