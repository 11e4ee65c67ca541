"""A small model whose plan can be counted by hand, and plans of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.errors import Fault
from jobs.plan.plan import ModelShape, Plan, make_plan
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from tests.tiny import tiny_spec

SHAPE = ModelShape(
    parameters=1000,
    linears={
        "model.layers.0.attn.q_proj": (8, 8),
        "model.layers.0.attn.k_proj": (4, 8),
        "model.layers.0.mlp.up_proj": (16, 8),
        "model.layers.1.attn.q_proj": (8, 8),
    },
    head=20,
)
"""Linear weights: 64 + 32 + 128 + 64 = 288."""


def make_spec(**overrides: Any) -> RunSpec:
    return validate_spec(tiny_spec(Path("/made/up"), **overrides))


def make_test_plan(shape: ModelShape = SHAPE, **overrides: Any) -> Plan:
    plan, faults = make_plan(make_spec(**overrides), shape)
    assert plan is not None and not faults
    return plan


def list_faults(shape: ModelShape = SHAPE, **overrides: Any) -> list[Fault]:
    plan, faults = make_plan(make_spec(**overrides), shape)
    assert plan is None
    return faults
