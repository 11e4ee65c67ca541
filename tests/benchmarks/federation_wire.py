"""`python -m tests.benchmarks.federation_wire [--json]`: a federation's true bytes, round by round.

Two Ray hosts on this machine (network namespaces; root). The server is on one, both sites are on
the other, so that every client's weights and updates cross the link between them. For each method
and way of compressing: bytes out of the server's host and out of the sites' in a round, headers
included, beside the ledger's figures of the same round and the plan's. What Ray sends by itself
while nothing runs is measured first, told, and taken off: it belongs to no round.

`--rate 10mbit` limits the links: seconds a round, full fine-tuning beside slora.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.two_hosts.hosts import HostCluster, end_on_sigterm, start_ray_hosts
from infra.two_hosts.measure import WatchedJob, diff_samples, measure_idle_traffic, run_job
from infra.two_hosts.namespaces import JUMBO, Link, NamespacesUnavailable, parse_rate
from jobs.federation.round_log import open_round_log
from jobs.spec.load import load_spec
from tests.tiny import label_rows, merge_spec, tiny_chat_model, tiny_spec, write_spec

SITES = 2
SIZES = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
         "num_attention_heads": 6, "num_key_value_heads": 6}  # fmt: skip
ROUNDS, CLIENTS = 4, 6
"""Of a stage, and in each of its rounds."""
WAYS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("full", {"kind": "full"}, {}),
    ("lora", {"kind": "lora"}, {}),
    ("slora", {"kind": "slora"}, {}),
    ("slora, int8", {"kind": "slora"}, {"compress": "int8"}),
    ("slora, topk", {"kind": "slora"}, {"compress": "topk"}),
)
ALLOWED = 0.03
"""How far the wire, the ledger and the plan of a round may be apart, both ways together.

One way alone may be further: what acknowledges the weights that come down goes up, beside an update
that may be a tenth of them, and Ray says about 5 kB of each task.
"""
Row = dict[str, Any]


def main() -> int:
    """Exit code 1 where a limit is missed or a run failed; 0 where no hosts can be made."""
    asked = _parser().parse_args()
    end_on_sigterm()
    try:
        rows, failed = _measured(asked)
    except NamespacesUnavailable as refused:
        print(f"federation_wire: skipped, {refused}", file=sys.stderr)
        return 0
    if asked.json:
        print(json.dumps(rows))
    else:
        Console(width=140).print(_table(rows))
    missed = [*failed, *([] if asked.rate else _missed(rows))]
    for line in missed:
        print(line, file=sys.stderr)
    return int(bool(missed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rate", type=parse_rate, help="of every link, e.g. 10mbit")
    parser.add_argument("--mtu", type=int, default=JUMBO)
    parser.add_argument("--ways", nargs="+", choices=[name for name, _, _ in WAYS])
    return parser


def _measured(asked: argparse.Namespace) -> tuple[list[Row], list[str]]:
    rows, failed = list[Row](), list[str]()
    link = Link(rate=asked.rate, mtu=asked.mtu)
    with (
        tempfile.TemporaryDirectory() as folder,
        start_ray_hosts(2, cpus=SITES, head_cpus=0, link=link) as cluster,
    ):
        made = Path(folder)
        # What transformers says while it saves is not this table's.
        with redirect_stdout(sys.stderr):
            tiny_chat_model(made / "model", **SIZES)
        label_rows(made / "train.jsonl", 400)
        idle = measure_idle_traffic(cluster)
        print(f"Ray alone sends {idle:,.0f} bytes/s out of a host", file=sys.stderr, flush=True)
        for name, method, federation in WAYS:
            if asked.ways is None or name in asked.ways:
                found, why = _one(cluster, made, name, method, federation, idle)
                rows += found
                failed += [f"{name}: {why}"] if why else []
    return rows, failed


def _one(
    cluster: HostCluster,
    folder: Path,
    name: str,
    method: dict[str, Any],
    federation: dict[str, Any],
    idle: float,
) -> tuple[list[Row], str | None]:
    changes = {
        "name": "wire",
        "model": {"task": "sequence-classification"},
        "data": {"format": "classification", "packing": False},
        "method": {"density": 0.01, "rank": 8, **method},
        "train": {"steps": None, "checkpoint_every": None, "learning_rate": 1e-3},
        "cluster": {"workers": SITES},
    }
    stages = 2 if method["kind"] == "slora" else 1
    section = {"clients": 12, "clients_per_round": CLIENTS, "rounds": ROUNDS * stages,
               "local_steps": 1, **federation}  # fmt: skip
    if stages == 2:
        section["sparse_rounds"] = ROUNDS
    spec = {**merge_spec(tiny_spec(folder), changes), "federation": section}
    path = write_spec(folder / "spec.yaml", spec)
    watched = run_job(cluster, path, load_spec(path).training, "jobs.federate")
    print(
        f"{name}: {watched.samples[-1].at - watched.samples[0].at:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    if watched.exit_code:
        said = watched.log.read_text(errors="replace").strip().splitlines()[-12:]
        return [], "\n".join([f"exit code {watched.exit_code}", *said])
    return _rows(name, watched, idle), None


def _rows(name: str, watched: WatchedJob, idle: float) -> list[Row]:
    plan, ledger = watched.runs.read_json("plan.json"), open_round_log(watched.runs).tail(0)[0]
    planned = {stage["name"]: stage for stage in plan["federation"]["stages"]}
    rows = list[Row]()
    for stage in dict.fromkeys(line["stage"] for line in ledger):
        clients = [line["clients"] for line in ledger if line["stage"] == stage]
        down, up, seconds = _wire(watched, stage, idle)
        rows.append({
            "way": name, "stage": stage, "seconds": seconds,
            "down": down, "up": up,
            "ledger_down": statistics.median(sum(c["down"] + c["payload"] for c in one)
                                             for one in clients),
            "ledger_up": statistics.median(sum(c["up"] for c in one) for one in clients),
            "plan_down": planned[stage]["down"] * CLIENTS,
            "plan_up": planned[stage]["up"] * CLIENTS,
        })  # fmt: skip
    return rows


def _wire(watched: WatchedJob, stage: str, idle: float) -> tuple[float, float, float]:
    """Medians over a stage's rounds: bytes of the server's host, of the sites', and seconds.

    A stage's first round is none of them: the sites are installing it.
    """
    found = [
        (*(sent - idle * (after.at - before.at) for sent in diff_samples(before, after)),
         after.at - before.at)
        for before, after in pairwise(watched.samples)
        if after.is_step and after.line["stage"] == stage
    ][1:]  # fmt: skip
    down, up, seconds = (statistics.median(column) for column in zip(*found, strict=True))
    return down, up, seconds


def _missed(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row['way']}, {row['stage']}: {_both(row, ''):,.0f} B a round on the wire, {beside} "
        f"{_both(row, f'{beside}_'):,.0f} B"
        for row in rows
        for beside in ("ledger", "plan")
        if abs(_both(row, "") / _both(row, f"{beside}_") - 1) > ALLOWED
    ]


def _both(row: Row, prefix: str) -> float:
    """Down and up together, bytes."""
    return float(row[f"{prefix}down"] + row[f"{prefix}up"])


def _beside(row: Row, way: str) -> tuple[str, str, str]:
    """Bytes on the wire, and their ratios to the ledger's and to the plan's."""
    sent, ledger, plan = (
        _both(row, prefix) if way == "both" else row[f"{prefix}{way}"]
        for prefix in ("", "ledger_", "plan_")
    )
    return f"{sent:,.0f}", f"{sent / ledger:.3f}", f"{sent / plan:.3f}"


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="bytes a round between a server and its sites", title_justify="left")
    ways = [cell for way in ("down", "up", "both") for cell in (way, "/ ledger", "/ plan")]
    for column in ("way", "stage", *ways, "s"):
        table.add_column(column, justify="left" if column in ("way", "stage") else "right")
    for row in rows:
        cells = [cell for way in ("down", "up", "both") for cell in _beside(row, way)]
        table.add_row(row["way"], row["stage"], *cells, f"{row['seconds']:.2f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
