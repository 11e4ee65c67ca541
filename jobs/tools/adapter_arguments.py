"""The arguments that every job on a committed adapter takes."""

from __future__ import annotations

import argparse


def make_adapter_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """`--adapter NAME [--store URL] [--base FOLDER]`."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    parser.add_argument("--adapter", required=True, help="NAME, or NAME@v2 for one version")
    parser.add_argument("--store", default="file://.cache/store", help="file:// or s3://")
    parser.add_argument("--base", help="where the base model is, if it has moved")
    return parser
