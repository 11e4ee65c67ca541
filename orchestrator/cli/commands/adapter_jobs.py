"""What uses an adapter: chat, evaluate, merge, export, diff. Each is a job, started by its name."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from orchestrator.cli.options import (
    DEFAULT_STORE,
    Adapter,
    AdapterName,
    Base,
    Json,
    Store,
    TargetFolder,
)

app = typer.Typer()


@app.command()
def evaluate(
    adapter: Adapter,
    data: Annotated[str, typer.Option(help="Rows, named as data.eval in a spec.")],
    max_length: Annotated[int, typer.Option(help="Tokens in a sequence.")] = 128,
    store: Store = DEFAULT_STORE,
    base: Base = None,
    json: Json = False,
) -> None:
    """Measure an adapter on held-out rows."""
    arguments = ["--adapter", adapter, "--data", data, "--max-length", str(max_length)]
    arguments += [
        "--store",
        store,
        *(["--base", base] if base else []),
        *(["--json"] if json else []),
    ]
    _run_job("jobs.evaluate", arguments)


@app.command("chat")
def run_chat(
    adapter: Adapter,
    prompt: Annotated[str | None, typer.Option(help="Ask once and end.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Of one answer.")] = 128,
    store: Store = DEFAULT_STORE,
    base: Base = None,
) -> None:
    """Talk to a base model with its adapter; the answers stream."""
    arguments = ["--adapter", adapter, "--store", store, "--max-tokens", str(max_tokens)]
    arguments += [*(["--prompt", prompt] if prompt else []), *(["--base", base] if base else [])]
    _run_job("jobs.tools.chat", arguments)


def add_commands(adapters: typer.Typer) -> None:
    """Puts what works on one adapter beside what reads the store."""
    adapters.command("merge")(merge_command)
    adapters.command("export")(export_command)
    adapters.command("diff")(diff_command)


def merge_command(
    name: AdapterName,
    to: TargetFolder,
    store: Store = DEFAULT_STORE,
    base: Base = None,
) -> None:
    """Base and adapter as one plain model in a folder."""
    arguments = ["--adapter", name, "--to", str(to), "--store", store]
    _run_job("jobs.merge", [*arguments, *(["--base", base] if base else [])])


def export_command(
    name: AdapterName,
    to: TargetFolder,
    form: Annotated[str, typer.Option("--as", help="peft | merged | sparse")] = "peft",
    rank: Annotated[int | None, typer.Option(help="Of the LoRA folder.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Instead: the smallest rank that keeps this share.")
    ] = None,
    density: Annotated[float | None, typer.Option(help="Of a sparse file.")] = None,
    store: Store = DEFAULT_STORE,
    base: Base = None,
    json: Json = False,
) -> None:
    """An adapter in another form: a LoRA of a rank, a plain model, a sparse file."""
    arguments = ["--adapter", name, "--to", str(to), "--store", store, "--as", form]
    for option, value in (("rank", rank), ("energy", energy), ("density", density)):
        arguments += [f"--{option}", str(value)] if value is not None else []
    arguments += [*(["--base", base] if base else []), *(["--json"] if json else [])]
    _run_job("jobs.tools.export", arguments)


def diff_command(
    first: Annotated[str, typer.Argument(metavar="A", help="NAME, or NAME@v2.")],
    second: Annotated[str, typer.Argument(metavar="B", help="NAME, or NAME@v2.")],
    every: Annotated[bool, typer.Option("--all", help="Every layer.")] = False,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """How far apart two adapters are, layer by layer, and what made them differ."""
    arguments = ["--adapter", first, "--other", second, "--store", store]
    _run_job(
        "jobs.tools.diff",
        [*arguments, *(["--all"] if every else []), *(["--json"] if json else [])],
    )


def _run_job(module: str, arguments: list[str]) -> None:
    """Runs a job by name in a process of its own: this one never loads torch."""
    try:
        code = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)
