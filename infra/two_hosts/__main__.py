"""`python -m infra.two_hosts SPEC`: a run on hosts of this machine's own, and its bytes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infra.two_hosts.hosts import RayDidNotStart, end_on_sigterm, ray_hosts
from infra.two_hosts.namespaces import JUMBO, Link, NotAllowed, rate
from infra.two_hosts.run import Found, idle_bytes_per_second, run_spec
from jobs.errors import InputError
from jobs.spec_file import load_spec


def main() -> int:
    """Exit codes: the run's own (0, 1, 2), 3 where this machine makes no hosts, 130 on Ctrl-C."""
    asked = _parser().parse_args()
    end_on_sigterm()
    try:
        return _measured(asked)
    except (NotAllowed, RayDidNotStart) as refused:
        print(f"two_hosts: {refused}", file=sys.stderr)
        return 3
    except InputError as wrong:
        print(wrong, file=sys.stderr)
        return wrong.exit_code
    except KeyboardInterrupt:
        print("two_hosts: stopped; hosts and processes are gone", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.two_hosts", description=main.__doc__)
    parser.add_argument("spec", type=Path, help="the YAML spec, with a store in a folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--hosts", type=int, choices=range(1, 33), metavar="N", default=2)
    parser.add_argument("--cpus", type=int, default=2, help="that Ray has on each host")
    parser.add_argument("--rate", type=rate, help="of every link, e.g. 100mbit; default: unlimited")
    parser.add_argument("--mtu", type=int, default=JUMBO, help=f"of every link; default: {JUMBO}")
    parser.add_argument("--json", action="store_true")
    return parser


def _measured(asked: argparse.Namespace) -> int:
    # Before any host is made: bad input answers in a second.
    load_spec(asked.spec, asked.set)
    link = Link(rate=asked.rate, mtu=asked.mtu)
    with ray_hosts(asked.hosts, cpus=asked.cpus, link=link) as cluster:
        idle = idle_bytes_per_second(cluster)
        found = run_spec(cluster, asked.spec, asked.set)
        if found.exit_code:
            print(found.log.read_text(errors="replace").strip(), file=sys.stderr)
    if asked.json:
        print(json.dumps({**found.to_json(), "idle_bytes_per_second": idle}))
    else:
        _show(found, idle)
    return found.exit_code


def _show(found: Found, idle: float) -> None:
    table = Table("stage", title=f"{found.run}: bytes out of the busiest host, headers included")
    for header in ("steps", "bytes a step", "least", "most", "s a step"):
        table.add_column(header, justify="right")
    for stage in found.stages:
        figures = (f"{stage.steps}", f"{stage.bytes_per_step:,.0f}", f"{stage.least:,.0f}",
                   f"{stage.most:,.0f}", f"{stage.seconds_per_step:.2f}")  # fmt: skip
        table.add_row(stage.stage, *figures)
    console = Console(width=80)
    console.print(table)
    console.print(
        f"before the first step {found.before_steps:,} bytes; evaluations, hand-off and end "
        f"{found.between:,}; the whole run {found.whole:,} in {found.seconds:.0f} s. "
        f"Ray alone, while nothing runs: {idle:,.0f} bytes/s."
    )


if __name__ == "__main__":
    sys.exit(main())
