"""The arguments that every job on a spec takes: the service and `slora train` give these."""

from __future__ import annotations

import argparse


def make_run_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """`--spec SPEC [--set KEY=VALUE] [--run ID] [--attempt N]`."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    parser.add_argument("--spec", required=True, help="the YAML spec; s3:// too")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of it"
    )
    parser.add_argument("--run", help="the run's id; the same id goes on where it was")
    parser.add_argument("--attempt", type=int, default=0, help="number of this try of the run")
    return parser
