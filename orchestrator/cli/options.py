"""Options and arguments that several commands share, in one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML spec.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of it.")
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Store = Annotated[
    str, typer.Option(help="file:// and a folder, or s3://bucket/prefix.", metavar="URL")
]
AdapterName = Annotated[
    str, typer.Argument(metavar="NAME", help="NAME, or NAME@v2 for one version.")
]
TargetFolder = Annotated[
    Path, typer.Argument(metavar="TO", help="A folder that is absent or empty.")
]
RunId = Annotated[str, typer.Argument(metavar="RUN")]
Adapter = Annotated[str, typer.Option(help="NAME, or NAME@v2 for one version.")]
Base = Annotated[str | None, typer.Option(help="Where the base is, if it has moved.")]
Service = Annotated[
    str | None,
    typer.Option("--service", metavar="URL", help="Instead of SLORA_SERVICE, or this machine's."),
]

DEFAULT_STORE = "file://.cache/store"
