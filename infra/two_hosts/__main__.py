"""`python -m infra.two_hosts SPEC`: execute a run on several hosts, and measure its traffic."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infra.two_hosts.hosts import RayDidNotStart, end_on_sigterm, start_ray_hosts
from infra.two_hosts.measure import TrafficMeasurement, measure_idle_traffic, run_spec
from infra.two_hosts.namespaces import JUMBO, Link, NamespacesUnavailable, parse_rate
from jobs.errors import InputError
from jobs.spec.load import load_spec


def main() -> int:
    """Exit with the code of the run, 3 if this machine can't create hosts, 130 on Ctrl-C."""
    options = _make_parser().parse_args()
    end_on_sigterm()
    try:
        return _measure(options)
    except (NamespacesUnavailable, RayDidNotStart) as error:
        print(f"two_hosts: {error}", file=sys.stderr)
        return 3
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("two_hosts: interrupted; removed all hosts and processes", file=sys.stderr)
        return 130


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.two_hosts", description=main.__doc__)
    parser.add_argument("spec", type=Path, help="YAML spec, with a store in a folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--hosts", type=int, choices=range(1, 33), metavar="N", default=2)
    parser.add_argument("--cpus", type=int, default=2, help="CPUs of Ray on each host")
    parser.add_argument(
        "--rate", type=parse_rate, help="rate of every link, such as 100mbit; default: unlimited"
    )
    parser.add_argument(
        "--mtu", type=int, default=JUMBO, help=f"MTU of every link; default: {JUMBO}"
    )
    parser.add_argument("--json", action="store_true")
    return parser


def _measure(options: argparse.Namespace) -> int:
    # Validated before any host is created, so that invalid input fails within a second.
    load_spec(options.spec, options.set)
    link = Link(rate=options.rate, mtu=options.mtu)
    with start_ray_hosts(options.hosts, cpus=options.cpus, link=link) as cluster:
        idle = measure_idle_traffic(cluster)
        measurement = run_spec(cluster, options.spec, options.set)
        if measurement.exit_code:
            print(measurement.log.read_text(errors="replace").strip(), file=sys.stderr)
    if options.json:
        print(json.dumps({**measurement.to_json(), "idle_bytes_per_second": idle}))
    else:
        _print_table(measurement, idle)
    return measurement.exit_code


def _print_table(measurement: TrafficMeasurement, idle: float) -> None:
    table = Table(
        "stage", title=f"{measurement.run}: bytes sent by the busiest host, headers included"
    )
    for header in ("steps", "bytes a step", "least", "most", "s a step"):
        table.add_column(header, justify="right")
    for stage in measurement.stages:
        figures = (f"{stage.steps}", f"{stage.bytes_per_step:,.0f}", f"{stage.least:,.0f}",
                   f"{stage.most:,.0f}", f"{stage.seconds_per_step:.2f}")  # fmt: skip
        table.add_row(stage.stage, *figures)
    console = Console(width=80)
    console.print(table)
    console.print(
        f"Before the first step: {measurement.before_steps:,} bytes; evaluations, "
        f"hand-off and end: {measurement.between:,} bytes; the run in total: "
        f"{measurement.total:,} bytes in {measurement.seconds:.0f} s. "
        f"Ray alone, while nothing runs: {idle:,.0f} bytes/s."
    )


if __name__ == "__main__":
    sys.exit(main())
