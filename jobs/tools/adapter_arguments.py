"""The arguments of every job on a committed adapter."""

from __future__ import annotations

import argparse


def make_adapter_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of `--adapter NAME [--store URL] [--base FOLDER]`."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    parser.add_argument("--adapter", required=True, help="NAME, or NAME@v2 for a version")
    parser.add_argument("--store", default="file://.cache/store", help="file:// or s3://")
    parser.add_argument("--base", help="folder of the base model, if it has moved")
    return parser
