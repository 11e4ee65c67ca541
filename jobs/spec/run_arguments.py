"""The arguments of every job on a spec, as the service and `slora train` pass them."""

from __future__ import annotations

import argparse

LEAVE_POINTER = "--leave-pointer"
SUBMITTED, CHECKED = "--submitted", "--checked"
MAX_TIME = 1e11
"""Year 5138."""


def make_run_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `--spec SPEC [--set KEY=VALUE] [--run ID] [--attempt N] ...`."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    parser.add_argument("--spec", required=True, help="the YAML spec: a file or an s3:// URL")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the spec; repeatable",
    )
    parser.add_argument("--run", help="run id; an existing run resumes where it stopped")
    parser.add_argument("--attempt", type=int, default=0, help="number of this attempt of the run")
    parser.add_argument(
        LEAVE_POINTER,
        action="store_true",
        help="leave the move of the adapter's pointer to the service that started this job",
    )
    parser.add_argument(
        SUBMITTED,
        type=_parse_time,
        metavar="SECONDS",
        help="when the run was submitted, in seconds since 1970; its wait is measured from there",
    )
    parser.add_argument(
        CHECKED,
        type=_parse_time,
        metavar="SECONDS",
        help="when the command that submitted the run had checked its input",
    )
    return parser


def _parse_time(text: str) -> float:
    moment = float(text)
    if not 0 < moment < MAX_TIME:
        raise ValueError(f"{text} is not a time in seconds since 1970")
    return moment
