"""Real rounds of tiny models beside their plan: what went up and down is what was said before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from jobs.federation.check import ValidatedFederation, check_federation
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from tests.jobs.federation.runs import RUN, federation_of, folder_with_rows
from tests.jobs.federation.specs import a_federation

Wire = dict[str, dict[str, dict[str, int]]]
"""Calls and bytes by stage and cause."""
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "int8 of B alone": ({"compress": "int8", "freeze_a": True}, {}),
    "the largest, and scored masks": ({"compress": "topk"}, {"mask": "gradient"}),
    "rows, what the hand-off leaves, drop-outs": (
        {"compress": "bf16", "drop_out": 0.4}, {"mask": "rows", "handoff": {"residual": "keep"}}),
    "sparse alone": ({"average": "nesterov"}, {"kind": "sparse", "mask": "columns"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with_rows(tmp_path_factory.mktemp("planned"))


def planned(
    folder: Path, federation: dict[str, Any], method: dict[str, Any]
) -> ValidatedFederation:
    spec = {
        "model": {"task": "sequence-classification"},
        "data": {"format": "classification"},
        "train": {"eval_every": 2, "checkpoint_every": None},
        "store": f"file://{folder / 'store'}",
    }
    asked = a_federation(folder, {"rounds": 4, "local_steps": 1, **federation}, method=method,
                         **spec)  # fmt: skip
    return check_federation(asked)


def wire_of(
    folder: Path, name: str, found: ValidatedFederation
) -> dict[str, dict[str, dict[str, int]]]:
    """What the ledger of a run says was sent."""
    store = f"file://{folder / name}"
    spec = found.validated_run.spec.model_copy(update={"store": store})
    checked = dataclasses.replace(found.validated_run, spec=spec)
    request = dataclasses.replace(
        checked.make_request(RUN), federation=found.federated_spec.section
    )
    federation_of(request).run()
    told = json.loads(json.dumps(RunStore(open_store(store), RUN).read_json("ledger.json")))
    wire: Wire = told["wire"]
    return wire


@pytest.mark.parametrize("name", CASES)
def test_a_federation_sends_what_its_plan_says(folder, name):
    found = planned(folder, *CASES[name])
    wire = wire_of(folder, name.replace(" ", "-").replace(",", ""), found)
    causes = {(stage, cause) for stage, told in wire.items() for cause in told}
    assert causes == {(flow.stage, flow.cause) for flow in found.plan.flows}
    for flow in found.plan.flows:
        sent = wire[flow.stage][flow.cause]
        if flow.exact:
            assert (sent["bytes"], sent["calls"]) == (flow.total, flow.times), flow
        elif flow.cause == "up":
            assert sent["bytes"] == flow.sent * sent["calls"], flow
        elif flow.cause in ("install", "evaluation", "calibration"):
            assert (sent["bytes"], sent["calls"]) == (flow.total, flow.times), flow
        elif flow.cause in ("masks", "hand-off"):
            # As many clients as it was to be expected, or nearly; files have headers.
            assert sent["bytes"] == pytest.approx(flow.total, rel=0.5), flow
