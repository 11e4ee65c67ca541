"""Commands that use an adapter: chat, evaluate, merge, export, diff. Each runs a job module."""

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
    data: Annotated[
        str | None, typer.Option(help="Rows to evaluate on, in the form of data.eval in a spec.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="A task of lm-eval-harness instead of rows: its name, or its YAML file.",
        ),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Format of the rows, if not that of the run.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=COLUMN", help="Column of a field, if not that of the run."),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Maximum number of tokens of a sequence, if not that of the run."),
    ] = None,
    on_bad_row: Annotated[
        str | None, typer.Option(help="fail or skip, if not as the run does.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible server that answers with the adapter: the loss is the one of "
            "its log-probabilities. Its key is read from OPENAI_API_KEY.",
        ),
    ] = None,
    served_as: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The server's name of the adapter, if it is another."),
    ] = None,
    store: Store = DEFAULT_STORE,
    base: Base = None,
    json: Json = False,
) -> None:
    """Evaluate an adapter on held-out rows, read and packed as in its run."""
    arguments = ["--adapter", adapter, "--store", store]
    arguments += [
        *(["--data", data] if data else []),
        *(["--suite", suite] if suite else []),
        *(["--format", format] if format else []),
        *(["--columns", *columns] if columns else []),
        *([] if max_length is None else ["--max-length", str(max_length)]),
        *(["--on-bad-row", on_bad_row] if on_bad_row else []),
        *(["--endpoint", endpoint] if endpoint else []),
        *(["--served-as", served_as] if served_as else []),
        *(["--base", base] if base else []),
        *(["--json"] if json else []),
    ]
    run_job_module("jobs.evaluate", arguments)


@app.command("chat")
def run_chat(
    adapter: Adapter,
    prompt: Annotated[str | None, typer.Option(help="Answer this prompt and exit.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.")] = 128,
    store: Store = DEFAULT_STORE,
    base: Base = None,
) -> None:
    """Chat with a base model and its adapter; answers are streamed."""
    arguments = ["--adapter", adapter, "--store", store, "--max-tokens", str(max_tokens)]
    arguments += [*(["--prompt", prompt] if prompt else []), *(["--base", base] if base else [])]
    run_job_module("jobs.tools.chat", arguments)


def add_commands(adapters: typer.Typer) -> None:
    """Add the commands that run a job on an adapter."""
    adapters.command("merge")(merge_command)
    adapters.command("export")(export_command)
    adapters.command("push")(push_command)
    adapters.command("diff")(diff_command)


def merge_command(
    name: AdapterName,
    to: TargetFolder,
    store: Store = DEFAULT_STORE,
    base: Base = None,
) -> None:
    """Merge base and adapter into one model in a folder."""
    arguments = ["--adapter", name, "--to", str(to), "--store", store]
    run_job_module("jobs.merge", [*arguments, *(["--base", base] if base else [])])


def export_command(
    name: AdapterName,
    to: TargetFolder,
    form: Annotated[
        str,
        typer.Option(
            "--as",
            help="Form of the export: peft, merged or sparse; for llama.cpp gguf-lora or gguf.",
        ),
    ] = "peft",
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA folder.")] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            help="Use the smallest rank that retains this share of the energy, instead of --rank."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Rows, in the form of data.train: the LoRA keeps what counts for the layers' "
            "outputs on them, instead of for the weights."
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens per sequence of --data, where the run's files are gone."),
    ] = None,
    density: Annotated[float | None, typer.Option(help="Density of a sparse file.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Type of the matrices in a GGUF file: float16 (models) or float32 (a LoRA)."
        ),
    ] = None,
    store: Store = DEFAULT_STORE,
    base: Base = None,
    json: Json = False,
) -> None:
    """Export an adapter: a LoRA of a rank, a merged model, a sparse file, or one for llama.cpp."""
    arguments = ["--adapter", name, "--to", str(to), "--store", store, "--as", form]
    options = {"rank": rank, "energy": energy, "data": data, "max-length": max_length,
               "density": density, "dtype": dtype}  # fmt: skip
    for option, value in options.items():
        arguments += [f"--{option}", str(value)] if value is not None else []
    arguments += [*(["--base", base] if base else []), *(["--json"] if json else [])]
    run_job_module("jobs.tools.export", arguments)


def push_command(
    name: AdapterName,
    to: Annotated[
        str, typer.Argument(metavar="hf://ORG/REPO", help="Repository of the hub; made if absent.")
    ],
    license: Annotated[
        str | None, typer.Option(help="The hub's identifier of its licence: apache-2.0 ...")
    ] = None,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Push an adapter with a model card to the hub of HF_ENDPOINT; a new repository is private."""
    arguments = ["--adapter", name, "--to", to, "--store", store]
    arguments += [*(["--license", license] if license else []), *(["--json"] if json else [])]
    run_job_module("jobs.tools.hub.push", arguments)


def diff_command(
    first: Annotated[str, typer.Argument(metavar="A", help="First adapter: NAME or NAME@v2.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Second adapter: NAME or NAME@v2.")],
    every: Annotated[bool, typer.Option("--all", help="Show all layers.")] = False,
    store: Store = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Show the distance between two adapters by layer, and the causes of their difference."""
    arguments = ["--adapter", first, "--other", second, "--store", store]
    run_job_module(
        "jobs.tools.diff",
        [*arguments, *(["--all"] if every else []), *(["--json"] if json else [])],
    )


def run_job_module(module: str, arguments: list[str]) -> None:
    """Run a job module in its own process: this process never loads torch."""
    try:
        code = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)
