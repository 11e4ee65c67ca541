"""Options and arguments that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import Fault, InputError

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="Path of the YAML spec.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the spec.")
]
Json = Annotated[bool, typer.Option("--json", help="Output JSON.")]
Store = Annotated[
    str, typer.Option(help="URL of the store: file://FOLDER or s3://BUCKET/PREFIX.", metavar="URL")
]
AdapterName = Annotated[
    str, typer.Argument(metavar="NAME", help="Adapter: NAME, or NAME@v2 for one version.")
]
TargetFolder = Annotated[
    Path,
    typer.Argument(
        metavar="TO",
        help="Target folder; it must be absent or empty.",
        callback=lambda folder: _check_folder(folder),  # defined below
    ),
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Run id.")]
Adapter = Annotated[str, typer.Option(help="Adapter: NAME, or NAME@v2 for one version.")]
Base = Annotated[str | None, typer.Option(help="Location of the base model, if it has moved.")]
Service = Annotated[
    str | None,
    typer.Option(
        "--service",
        metavar="URL",
        help="URL of the service. Default: SLORA_SERVICE, or the one on this machine.",
    ),
]


def _check_folder(folder: Path) -> Path:
    """Return the folder of this machine. Raise InputError for a URL."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
        problem = f"{folder} is a URL, not a folder of this machine"
        raise InputError([Fault("TO", problem, "Use a folder, and copy it from there.")])
    return folder


DEFAULT_STORE = "file://.cache/store"
