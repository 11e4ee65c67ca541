"""The choice of the sharding: what `auto` takes, what is refused and why, and the warnings."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.plan.estimate.inputs import EstimateInput
from jobs.plan.estimate.sharding_choice import (
    ShardingChoice,
    ShardingOption,
    choose_sharding,
    list_options,
    list_warnings,
)
from tests.jobs.plan.estimate.inputs import SIZES, make_base, make_inputs

BIG = {name: size * 10**8 for name, size in SIZES.items()}
"""400 GB whole in float32, 200 GB on each of 2 workers, 100 GB on each of 4; the largest weight is
160 GB more where the base is dealt out."""
GB = 10**9


def make_big_inputs(memory_gb: float | None, **changes: Any) -> EstimateInput:
    resources = {"memory": None if memory_gb is None else round(memory_gb * GB), "cpu": False}
    return make_inputs(
        **{
            "base": make_base(sizes=BIG),
            **changes,
            "resources": resources | changes.get("resources", {}),
        }
    )


def choose_for(requested: str, memory_gb: float | None, **changes: Any) -> ShardingChoice:
    inputs = make_big_inputs(memory_gb, **changes)
    return choose_sharding(inputs, list_options(inputs), requested)


def find_option(inputs: EstimateInput, sharding: str) -> ShardingOption:
    return next(option for option in list_options(inputs) if option.sharding == sharding)


AUTO: dict[str, tuple[float | None, dict[str, Any], str, str]] = {
    "all of it fits": (900, {}, "replicate", "auto: it fits"),
    "half of it fits": (430, {}, "node", "auto: the first option that fits; replicate does not"),
    "a quarter fits": (320, {}, "cluster", "auto: the first option that fits; replicate does not"),
    "nobody knows": (None, {}, "replicate", "auto: the GPU's memory is unknown, set"),
    "one machine": (320, {"per_node": 4}, "cluster", "auto: the first option that fits"),
    "a worker a machine": (320, {"per_node": 1}, "cluster", "auto: the first option that fits"),
    "machines not filled alike": (430, {"workers": 5, "per_node": 2}, "cluster", "auto: the first"),
}


@pytest.mark.parametrize(("memory", "changes", "sharding", "reason"), AUTO.values(), ids=AUTO)
def test_auto_takes_the_first_that_fits(
    memory: float | None, changes: dict[str, Any], sharding: str, reason: str
):
    choice = choose_for("auto", memory, **changes)
    assert (choice.sharding, choice.fault) == (sharding, None)
    assert choice.reason.startswith(reason)


def test_where_nothing_fits_it_says_by_how_much():
    choice = choose_for("auto", 100)
    needed = find_option(make_big_inputs(100), "cluster").needed
    assert choice.fault == (
        f"cluster needs {needed / GB:,.1f} GB per worker, {needed / GB - 100:,.1f} GB more than "
        "the 100.0 GB of the test"
    )


def test_the_sharding_of_the_spec_is_used_or_refused_but_never_replaced():
    assert choose_for("cluster", 900) == ShardingChoice("cluster", "set in the spec")
    refused = choose_for("replicate", 430)
    assert refused.sharding == "replicate"
    assert refused.fault is not None and refused.fault.endswith("; node would fit")
    assert choose_for("replicate", None).fault is None


def test_node_needs_machines_with_the_same_number_of_workers():
    fault = choose_for("node", 900, workers=5, per_node=2).fault
    assert fault == "5 workers do not fill machines of 2 evenly, which `node` requires"


def test_a_tenth_of_the_memory_stays_free():
    inputs = make_big_inputs(900)
    held = find_option(inputs, "replicate").memory.peak + GB
    assert find_option(inputs, "replicate").needed == round(held / 0.9)
    for spare, fits in ((1, True), (-1, False)):
        exactly = make_big_inputs((round(held / 0.9) + spare) / GB)
        assert find_option(exactly, "replicate").fits is fits


def test_a_base_that_dominates_the_wire_is_warned_of():
    inputs = make_big_inputs(320)
    [message] = list_warnings(inputs, find_option(inputs, "cluster"))
    assert (
        message.startswith("the base dominates the traffic: ")
        and "times the bytes of the adapter" in message
    )
    assert list_warnings(inputs, find_option(inputs, "node")) == ()
    assert list_warnings(make_big_inputs(900), find_option(make_big_inputs(900), "replicate")) == ()


def test_a_single_machine_sends_nothing_and_gets_no_warning():
    inputs = make_big_inputs(320, per_node=4)
    assert list_warnings(inputs, find_option(inputs, "cluster")) == ()
