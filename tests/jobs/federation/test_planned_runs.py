"""Rounds of tiny models beside their plan: the bytes sent are those that were predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.federation.check import ValidatedFederation, check_federation
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from tests.jobs.federation.runs import RUN, folder_with_rows, run_request
from tests.jobs.federation.specs import a_federation

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "int8 of B alone": ({"compress": "int8", "freeze_a": True}, {}),
    "topk and scored masks": (
        {"compress": "topk", "topk": 0.1}, {"mask": "gradient", "handoff": {"norm": "loss"}}),
    "rows, a residual, drop-outs": (
        {"compress": "bf16", "drop_out": 0.4}, {"mask": "rows", "handoff": {"residual": "keep"}}),
    "masks of factors": ({}, {"factor_density": 0.25}),
    "lora under masks": ({"freeze_a": True}, {"kind": "lora", "factor_density": 0.25}),
    "sparse alone": ({"average": "nesterov"}, {"kind": "sparse", "mask": "columns"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with_rows(tmp_path_factory.mktemp("planned"))


def check(folder: Path, store: str, section: dict[str, Any], method: Any) -> ValidatedFederation:
    spec = {
        "model": {"task": "sequence-classification"},
        "data": {"format": "classification"},
        "train": {"eval_every": 2, "checkpoint_every": None},
        "store": f"file://{folder / store}",
    }
    section = {"rounds": 4, "local_steps": 1, **section}
    method = {"targets": ["query", "key", "intermediate.dense"], **method}
    return check_federation(a_federation(folder, section, method=method, **spec))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_federation_sends_what_its_plan_says(folder, name):
    validated = check(folder, name.replace(" ", "-").replace(",", ""), *CASES[name])
    runs = RunStore(open_store(validated.federated_spec.store), RUN)
    request = validated.extend_request(validated.validated_run.make_request(RUN), runs)
    run_request(request)
    traffic = runs.read_json("ledger.json")["wire"]
    causes = {(stage, cause) for stage in traffic for cause in traffic[stage]}
    assert causes == {(flow.stage, flow.cause) for flow in validated.plan.flows}
    for flow in validated.plan.flows:
        sent = traffic[flow.stage][flow.cause]
        if flow.exact or flow.cause in ("install", "evaluation", "calibration"):
            assert (sent["bytes"], sent["calls"]) == (flow.total, flow.times), flow
        elif flow.cause == "up":
            assert sent["bytes"] == flow.sent * sent["calls"], flow
        elif flow.cause in ("masks", "hand-off"):
            # The number of clients is an expectation, and the files have headers.
            planned = [
                other.total
                for other in validated.plan.flows
                if (other.stage, other.cause) == (flow.stage, flow.cause)
            ]
            assert sent["bytes"] == pytest.approx(sum(planned), rel=0.5), flow
