"""The command line. Every command is a thin door: it reads its options, calls, and shows."""

from __future__ import annotations

import subprocess
import sys
from math import inf
from pathlib import Path
from typing import Annotated

import typer

from jobs.any_spec import AnySpec
from jobs.ended import not_installed
from jobs.preflight import Checked, absolute, check
from jobs.report import outcome, summary
from jobs.search.door import load_search
from jobs.spec import Spec
from jobs.spec_file import load_spec
from jobs.store.objects import open_store
from jobs.store.runs import LEDGER, PLAN, RunStore
from orchestrator import adapters, audit_table, plan_table, upkeep
from orchestrator.audit import audit as compared
from orchestrator.audit import broken
from orchestrator.console import Commands, LongWork, notes, print_json, results
from orchestrator.registry import commands as registry
from orchestrator.reproduce import reproduce as reproduce_again

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Fine-tune transformers with SLoRA on Ray.",
    pretty_exceptions_enable=False,
)
upkeep.add_to(adapters.app)
app.add_typer(adapters.app, name="adapters")
app.add_typer(registry.app, name="registry")

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML spec.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of it.")
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Store = adapters.Store
Adapter = Annotated[str, typer.Option(help="NAME, or NAME@v2 for one version.")]
Base = Annotated[str | None, typer.Option(help="Where the base is, if it has moved.")]


def main() -> None:
    """The console script."""
    app()


@app.command()
def plan(
    spec: SpecFile,
    set: Overrides = None,
    workers: Annotated[int | None, typer.Option(help="Instead of the spec's.")] = None,
    json: Json = False,
) -> None:
    """What a run would train, hold, send, take and cost; nothing is started."""
    asked = [*(set or ()), *([f"cluster.workers={workers}"] if workers is not None else [])]
    checked = check(absolute(load_spec(spec, asked)), quick=True)
    if json:
        print_json(checked.plan.to_json())
    else:
        plan_table.show(checked)


@app.command()
def train(spec: SpecFile, set: Overrides = None, json: Json = False) -> None:
    """Run a fine-tune here: on a local Ray that is joined, or started and ended."""
    checked = _checked(absolute(load_spec(spec, set or [])))
    # Here, because Ray takes half a second to import and most commands need none.
    try:
        from orchestrator.train import train as run
    except ModuleNotFoundError as missing:
        raise not_installed(missing) from missing
    raise typer.Exit(run(checked, json=json))


@app.command()
def search(
    spec: SpecFile,
    set: Overrides = None,
    resume: Annotated[str | None, typer.Option(help="A search that was interrupted.")] = None,
    json: Json = False,
) -> None:
    """Search for the best adapter here: a spec with a search: section, on a local Ray."""
    asked = load_search(spec, set or [])
    _checked(asked.spec)
    # Here, because Ray takes half a second to import and most commands need none.
    try:
        from orchestrator.search import search as run
    except ModuleNotFoundError as missing:
        raise not_installed(missing) from missing
    raise typer.Exit(run(asked, resume=resume, json=json))


@app.command()
def reproduce(
    name: adapters.Wanted, store: Store = adapters.DEFAULT_STORE, json: Json = False
) -> None:
    """Run an adapter's run again from its own papers, and compare what comes out."""
    # Here, because Ray takes half a second to import and most commands need none.
    try:
        from orchestrator.train import INTERRUPTED, run_to_end
    except ModuleNotFoundError as missing:
        raise not_installed(missing) from missing
    found = reproduce_again(open_store(store), name, lambda spec: run_to_end(spec) is not None)
    if found is None:
        raise typer.Exit(INTERRUPTED)
    different = {name: None if apart == inf else apart for name, apart in found.different.items()}
    if json:
        plain = {"adapter": found.adapter, "same": found.same, "equal": found.equal}
        limits = {"tolerance": found.tolerance, "code": found.code}
        print_json({**plain, "different": different, **limits})
    else:
        upkeep.show_reproduced(found)
    if not found.same:
        raise typer.Exit(1)


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    store: Store = adapters.DEFAULT_STORE,
    json: Json = False,
) -> None:
    """What a run came to, from its own papers."""
    runs = RunStore(open_store(store), run)
    runs.read_text("spec.yaml")
    if json:
        print_json(outcome(runs))
    else:
        results.print(summary(runs))


@app.command()
def audit(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    store: Store = adapters.DEFAULT_STORE,
    json: Json = False,
) -> None:
    """A run's plan beside its ledger, line by line; exit code 1 where a promise is broken."""
    runs = RunStore(open_store(store), run)
    lines = compared(run, runs.read_json(PLAN), runs.read_json(LEDGER))
    if json:
        print_json(audit_table.described(run, lines))
    else:
        audit_table.show(run, lines)
    if broken(lines):
        raise typer.Exit(1)


@app.command()
def evaluate(
    adapter: Adapter,
    data: Annotated[str, typer.Option(help="Rows, named as data.eval in a spec.")],
    max_length: Annotated[int, typer.Option(help="Tokens in a sequence.")] = 128,
    store: Store = adapters.DEFAULT_STORE,
    base: Base = None,
    json: Json = False,
) -> None:
    """Measure an adapter on held-out rows."""
    words = ["--adapter", adapter, "--data", data, "--max-length", str(max_length)]
    words += ["--store", store, *(["--base", base] if base else []), *(["--json"] if json else [])]
    _job("jobs.evaluate", words)


@app.command()
def chat(
    adapter: Adapter,
    prompt: Annotated[str | None, typer.Option(help="Ask once and end.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Of one answer.")] = 128,
    store: Store = adapters.DEFAULT_STORE,
    base: Base = None,
) -> None:
    """Talk to a base model with its adapter; the answers stream."""
    words = ["--adapter", adapter, "--store", store, "--max-tokens", str(max_tokens)]
    words += [*(["--prompt", prompt] if prompt else []), *(["--base", base] if base else [])]
    _job("jobs.chat", words)


@app.command()
def schema() -> None:
    """The spec's JSON Schema, for editors and programs; a search's section with it."""
    print_json(AnySpec.model_json_schema())


@adapters.app.command("merge")
def merge(
    name: adapters.Wanted,
    to: adapters.To,
    store: Store = adapters.DEFAULT_STORE,
    base: Base = None,
) -> None:
    """Base and adapter as one plain model in a folder."""
    words = ["--adapter", name, "--to", str(to), "--store", store]
    _job("jobs.merge", [*words, *(["--base", base] if base else [])])


@adapters.app.command("export")
def export(
    name: adapters.Wanted,
    to: adapters.To,
    form: Annotated[str, typer.Option("--as", help="peft | merged | sparse")] = "peft",
    rank: Annotated[int | None, typer.Option(help="Of the LoRA folder.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Instead: the smallest rank that keeps this share.")
    ] = None,
    density: Annotated[float | None, typer.Option(help="Of a sparse file.")] = None,
    store: Store = adapters.DEFAULT_STORE,
    base: Base = None,
    json: Json = False,
) -> None:
    """An adapter in another form: a LoRA of a rank, a plain model, a sparse file."""
    words = ["--adapter", name, "--to", str(to), "--store", store, "--as", form]
    for option, value in (("rank", rank), ("energy", energy), ("density", density)):
        words += [f"--{option}", str(value)] if value is not None else []
    words += [*(["--base", base] if base else []), *(["--json"] if json else [])]
    _job("jobs.export", words)


@adapters.app.command("diff")
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="NAME, or NAME@v2.")],
    second: Annotated[str, typer.Argument(metavar="B", help="NAME, or NAME@v2.")],
    every: Annotated[bool, typer.Option("--all", help="Every layer.")] = False,
    store: Store = adapters.DEFAULT_STORE,
    json: Json = False,
) -> None:
    """How far apart two adapters are, layer by layer, and what made them differ."""
    words = ["--adapter", first, "--other", second, "--store", store]
    _job("jobs.diff", [*words, *(["--all"] if every else []), *(["--json"] if json else [])])


def _checked(loaded: Spec) -> Checked:
    """The check before a run, with a bar where the data take long."""
    work: LongWork | None = None
    seen = 0

    def progress(_: int, done: int, total: int) -> None:
        nonlocal work, seen
        if work is None or done < seen:
            work, seen = LongWork("Checking the data", total), 0
        work.advance(done - seen)
        seen = done

    try:
        return check(loaded, progress=progress if notes.is_terminal else None)
    finally:
        if work is not None:
            work.__exit__(None, None, None)


def _job(module: str, words: list[str]) -> None:
    """Runs a job by name in a process of its own: this one never loads torch."""
    try:
        code = subprocess.run([sys.executable, "-m", module, *words], check=False).returncode
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)
