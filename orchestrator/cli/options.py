"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    Path, typer.Argument(metavar="TO", help="Target folder; it must be absent or empty.")
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

DEFAULT_STORE = "file://.cache/store"
