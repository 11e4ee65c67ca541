"""`python -m tests.benchmarks.wire [--json]`: the true bytes between two hosts, step by step.

Two Ray hosts on this machine (network namespaces; root), two workers each, a random Llama of 10.7 M
parameters. Each method under each sharding: bytes out of the busiest host per step, headers
included, beside the plan's figure and the least that a ring can send of the trained numbers'
gradients, 2 (W - 1) / W x 4 bytes each. Medians over a stage's steps.

It learns to classify: a language model would answer sample prompts before and after, for which
sharded weights travel a hundred times more.

`--sync-every 20` is the same with local steps, for what trains adapters. `--rate 100mbit` limits
the links: seconds per step, full fine-tuning against slora.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.two_hosts.byte_counters import StageTraffic
from infra.two_hosts.hosts import HostCluster, end_on_sigterm, start_ray_hosts
from infra.two_hosts.measure import measure_idle_traffic, run_spec
from infra.two_hosts.namespaces import JUMBO, Link, NamespacesUnavailable, parse_rate
from tests.tiny import label_rows, merge_spec, tiny_chat_model, tiny_spec, write_spec

HOSTS, WORKERS = 2, 4
SIZES = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
         "num_attention_heads": 6, "num_key_value_heads": 6}  # fmt: skip
STEPS, LARGE_STEPS, WINDOWS = 16, 6, 3
"""Of a stage: as a rule, where all weights travel in each, and exchanges where they are rare."""
METHODS = {"full": 1, "lora": 1, "slora": 2}
"""With their numbers of stages."""
SHARDINGS = ("replicate", "node", "cluster")
ABOVE_RING, OF_THE_RATIO, PLAN_OFF = 1.10, 0.9, 0.05
"""To reach: adapters at most so much above the ring; full fine-tuning at least so much of (all
parameters / trained ones) above an adapter; and the plan at most so far from the wire."""
Row = dict[str, Any]


def main() -> int:
    """Exit code 1 where a limit is missed or a run failed; 0 where no hosts can be made."""
    asked = _parser().parse_args()
    end_on_sigterm()
    try:
        rows, failed = _measured(asked)
    except NamespacesUnavailable as refused:
        print(f"wire: skipped, {refused}", file=sys.stderr)
        return 0
    if asked.json:
        print(json.dumps(rows))
    else:
        Console(width=100).print(_table(rows))
        for line in _slowdowns(rows):
            print(line)
    missed = [*failed, *_missed(rows)]
    for line in missed:
        print(line, file=sys.stderr)
    return int(bool(missed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sync-every", type=int, default=1, metavar="K")
    parser.add_argument("--rate", type=parse_rate, help="of every link, e.g. 100mbit")
    parser.add_argument("--mtu", type=int, default=JUMBO)
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--shardings", nargs="+", choices=SHARDINGS)
    return parser


def _measured(asked: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """The rows, and a line for each run that failed."""
    rows, failed = list[Row](), list[str]()
    link = Link(rate=asked.rate, mtu=asked.mtu)
    with (
        tempfile.TemporaryDirectory() as folder,
        start_ray_hosts(HOSTS, cpus=WORKERS // HOSTS, link=link) as cluster,
    ):
        made = Path(folder)
        # What transformers says while it saves is not this table's.
        with redirect_stdout(sys.stderr):
            tiny_chat_model(made / "model", **SIZES)
        label_rows(made / "train.jsonl", 400)
        told = f"Ray alone sends {measure_idle_traffic(cluster):,.0f} bytes/s out of a host"
        print(told, file=sys.stderr, flush=True)
        for method, sharding in _wanted(asked):
            found, why = _one(cluster, made, method, sharding, asked)
            rows += found
            failed += [f"{method}, {sharding}: {why}"] if why else []
    return rows, failed


def _wanted(asked: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Methods and shardings; where the question is another, only those that it is about."""
    if asked.rate:
        methods, shardings = ["full", "slora"], ["replicate"]
    elif asked.sync_every > 1:
        methods, shardings = ["lora", "slora"], ["replicate"]
    else:
        methods, shardings = list(METHODS), list(SHARDINGS)
    for method in asked.methods or methods:
        for sharding in asked.shardings or shardings:
            yield method, sharding


def _one(
    cluster: HostCluster, folder: Path, method: str, sharding: str, asked: argparse.Namespace
) -> tuple[list[Row], str | None]:
    """The rows of one run, or why there are none."""
    path = write_spec(folder / "spec.yaml", _spec(folder, method, sharding, asked))
    found = run_spec(cluster, path)
    print(f"{method}, {sharding}: {found.seconds:.0f} s", file=sys.stderr, flush=True)
    if found.exit_code:
        said = found.log.read_text(errors="replace").strip().splitlines()
        return [], said[-1] if said else f"exit code {found.exit_code}"
    plan = found.runs.read_json("plan.json")
    rows = [_row(method, sharding, stage, plan, asked) for stage in found.stages]
    return rows, None


def _spec(folder: Path, method: str, sharding: str, asked: argparse.Namespace) -> dict[str, Any]:
    steps = WINDOWS * asked.sync_every if asked.sync_every > 1 else STEPS
    if method == "full" or sharding == "cluster":
        steps = LARGE_STEPS
    cluster: dict[str, Any] = {"workers": WORKERS, "sharding": sharding}
    # The plan sees no cluster; that there are two machines, it has to be told.
    cluster["machine"] = {"workers_per_node": WORKERS // HOSTS}
    if asked.sync_every > 1:
        cluster["sync_every"] = asked.sync_every
    changes = {
        "name": f"{method}-{sharding}",
        "model": {"task": "sequence-classification"},
        "data": {"format": "classification", "packing": False},
        "method": {"kind": method, "density": 0.01, "rank": 8, "sparse_share": 0.5},
        "train": {
            "steps": steps * METHODS[method],
            "batch_size": 2 * WORKERS,
            "micro_batch_size": 2,
            "learning_rate": 1e-3,
            "checkpoint_every": 10_000,
        },
        "cluster": cluster,
    }
    return merge_spec(tiny_spec(folder), changes)


def _row(
    method: str,
    sharding: str,
    traffic: StageTraffic,
    plan: Mapping[str, Any],
    asked: argparse.Namespace,
) -> Row:
    stage = next(one for one in plan["stages"] if one["name"] == traffic.stage)
    trained = stage["trainable"] + plan["head"]
    row = {
        "method": method,
        "stage": traffic.stage,
        "sharding": sharding,
        "bytes_per_step": round(traffic.bytes_per_step),
        "plan": _planned(plan, traffic.stage),
        "lower_bound": round(2 * (WORKERS - 1) / WORKERS * 4 * trained / asked.sync_every),
    }
    return {**row, "seconds_per_step": traffic.seconds_per_step} if asked.rate else row


def _planned(plan: Mapping[str, Any], stage: str) -> int | None:
    """What the plan says leaves a host per step of the stage; None where it predicts nothing."""
    told = plan.get("estimate")
    way = (
        next((w for w in told["options"] if w["sharding"] == plan["sharding"]), None)
        if told
        else {}
    )
    if not way:
        return None
    return sum(int(flow["egress_per_step"]) for flow in way["wire"] if flow["stage"] == stage)


def _table(rows: Sequence[Row]) -> Table:
    table = Table("method", "stage", "sharding")
    seconds = any("seconds_per_step" in row for row in rows)
    for header in ("bytes a step", "plan", "ring's least", "x least", *["s a step"] * seconds):
        table.add_column(header, justify="right")
    for row in rows:
        sent, least, plan = row["bytes_per_step"], row["lower_bound"], row["plan"]
        cells = [f"{sent:,}", "" if plan is None else f"{plan:,.0f}", f"{least:,}"]
        cells.append(f"{sent / least:.2f}")
        cells += [f"{row['seconds_per_step']:.2f}"] if seconds else []
        table.add_row(row["method"], row["stage"], row["sharding"], *cells)
    return table


def _slowdowns(rows: Sequence[Row]) -> Iterator[str]:
    """On slow links: how much longer a step of full fine-tuning takes than one of slora."""
    whole = [row for row in rows if row["method"] == "full" and "seconds_per_step" in row]
    for full in whole:
        for row in rows:
            if row["method"] == "slora" and row["sharding"] == full["sharding"]:
                ratio = full["seconds_per_step"] / row["seconds_per_step"]
                yield f"a step of full fine-tuning takes {ratio:.1f} x the {row['stage']} stage's"


def _missed(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each limit that is not reached."""
    whole = next((r for r in rows if r["method"] == "full" and r["sharding"] == "replicate"), None)
    for row in rows:
        told = f"{row['method']}, {row['stage']} stage, {row['sharding']}"
        sent, least, plan = row["bytes_per_step"], row["lower_bound"], row["plan"]
        adapter = row["method"] != "full" and row["sharding"] != "cluster"
        if adapter and sent > ABOVE_RING * least:
            yield f"{told}: {sent / least:.2f} x the ring's least, at most {ABOVE_RING} is allowed"
        if adapter and whole is not None:
            # What each trains stands in its lower bound.
            wanted = OF_THE_RATIO * whole["lower_bound"] / least
            if (ratio := whole["bytes_per_step"] / sent) < wanted:
                yield f"{told}: {ratio:.1f} x below full fine-tuning, {wanted:.1f} is to reach"
        if plan is not None and abs(plan - sent) > PLAN_OFF * sent:
            yield f"{told}: the plan says {plan:,.0f}, the wire {sent:,}"


if __name__ == "__main__":
    sys.exit(main())
