"""`slora adapters` and its terminal output: exit codes, messages, tables, untrusted text."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from jobs.errors import Fault, InputError, NotInStore, Unreachable
from jobs.store.adapters.manifest import BaseRecord
from jobs.store.adapters.operations import commit
from jobs.store.local import DirectoryStore
from orchestrator.cli import adapters_local, console
from orchestrator.cli.adapters_local import app
from tests.jobs.store.builders import make_adapter_folder, make_draft

MODEL = "adapters/chat/v1/adapter_model.safetensors"
EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m[red]bold[/red]\r\u202e"


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_adapter_folder(tmp_path / "exported")


@pytest.fixture
def full(store: DirectoryStore, folder: Path) -> DirectoryStore:
    base = BaseRecord(path="/no/such/smollm2-135m-instruct", digest="a" * 64)
    commit(store, folder, make_draft(run="r1", base=base))
    commit(store, folder, make_draft(run="r2", base=base, evaluation={}, kind="lora", mask=None))
    return store


def ask(store: DirectoryStore, *args: str) -> Result:
    return CliRunner().invoke(app, [*args, "--store", store.url("")], env={"COLUMNS": "80"})


def test_a_list_fits_eighty_columns_and_names_every_version(full: DirectoryStore):
    result = ask(full, "list")
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    head, first, second = (line.split() for line in result.stdout.splitlines())
    assert head[:2] == ["adapter", "kind"]
    assert first[:6] == ["chat@v1", "slora", *first[2:4], "loss", "2.125"]
    assert first[-1] == "smollm2-135m-instruct"
    assert second[:2] == ["chat@v2", "lora"]


def test_a_long_name_is_folded_and_never_cut(store: DirectoryStore, folder: Path):
    commit(store, folder, make_draft(name="n" * 63))
    result = ask(store, "list")
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    column = "".join(line.split(" ")[0] for line in result.stdout.splitlines()[1:])
    assert column == "n" * 63 + "@v1"


def test_an_empty_store_is_reported_on_stderr_and_is_not_an_error(store: DirectoryStore):
    result = ask(store, "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No adapters" in result.stderr
    assert json.loads(ask(store, "list", "--json").stdout) == {"adapters": [], "broken": []}


def test_a_corrupt_manifest_is_listed_as_unreadable(full: DirectoryStore):
    full.put("adapters/chat/v2/manifest.json", b"nonsense")
    result = ask(full, "list")
    assert result.exit_code == 0
    assert "chat@v1" in result.stdout
    assert "unreadable: adapters/chat/v2/manifest.json" in result.stderr
    [broken] = json.loads(ask(full, "list", "--json").stdout)["broken"]
    assert broken["key"] == "adapters/chat/v2/manifest.json"


def test_show_prints_the_origin_of_an_adapter(full: DirectoryStore):
    result = ask(full, "show", "chat@v1")
    assert result.exit_code == 0
    for words in ("chat@v1", "density 0.01", "12,345", "3 min 12 s", "eval_loss 2.125", "seed 0"):
        assert words in result.stdout
    text = json.loads(ask(full, "show", "chat", "--json").stdout)
    assert (text["label"], text["kind"], text["mask"]) == ("chat@v2", "lora", None)


def test_show_says_what_can_serve_an_adapter(store: DirectoryStore, folder: Path):
    config = {"task_type": "CAUSAL_LM", "r": 20}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    commit(store, folder, make_draft(base=BaseRecord(path="BASE", digest="a" * 64)))
    command = "vllm serve BASE --enable-lora --max-lora-rank 32 --lora-modules chat=FOLDER"
    pull = "slora adapters pull chat@v1 FOLDER"
    assert f"served by vLLM:\n    {pull}\n    {command}\n" in ask(store, "show", "chat").stdout
    [option, *_] = json.loads(ask(store, "show", "chat", "--json").stdout)["served_by"]
    assert option == {"server": "vLLM", "prepare": pull, "command": command, "note": ""}


@pytest.mark.parametrize(
    ("federation", "words"),
    [
        ({"clients_per_round": 5, "rounds": 30, "local_steps": 4, "partition": "dirichlet"},
         "5 clients per round, 30 rounds of 4 steps, dirichlet"),
        ({"rounds": 3}, "? clients per round, 3 rounds of ? steps, ?"),
    ],
    ids=["complete", "hostile"],
)  # fmt: skip
def test_show_prints_the_settings_of_a_federation(store, folder, federation, words):
    commit(store, folder, make_draft(federation=federation))
    text = ask(store, "show", "chat")
    assert text.exit_code == 0 and words in " ".join(text.stdout.split())


def test_pull_writes_a_complete_folder(full: DirectoryStore, tmp_path: Path):
    result = ask(full, "pull", "chat", str(tmp_path / "pulled"))
    assert result.exit_code == 0
    assert "chat@v2" in result.stdout
    assert (tmp_path / "pulled" / "adapter_config.json").exists()
    again = ask(full, "pull", "chat", str(tmp_path / "pulled"))
    assert (again.exit_code, again.stdout) == (2, "")
    assert "already exists" in again.stderr


def test_verify_reports_intact_or_every_error(full: DirectoryStore):
    intact = ask(full, "verify", "chat@v1")
    assert intact.exit_code == 0
    assert "is intact: 2 files" in intact.stdout
    full.put(MODEL, b"rot")
    corrupt = ask(full, "verify", "chat@v1")
    assert (corrupt.exit_code, corrupt.stdout) == (1, "")
    assert MODEL in corrupt.stderr
    output = ask(full, "verify", "chat@v1", "--json")
    assert output.exit_code == 1
    assert json.loads(output.stdout)["intact"] is False
    assert json.loads(output.stdout)["errors"][0]["key"] == MODEL


@pytest.mark.parametrize(
    "args",
    [
        ("show", "nope"),
        ("verify", "nope"),
        ("pull", "nope", "/tmp/never"),
        ("show", "chat@v9"),
        ("show", "../chat"),
        ("show", EVIL),
        ("list", "--nonsense"),
        ("show",),
    ],
    ids=lambda args: ascii(" ".join(args)),
)
def test_invalid_input_exits_with_two_and_a_message_on_stderr(args, full: DirectoryStore):
    result = ask(full, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr
    assert "\x1b" not in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("url", ["s3://key:x@bucket", "gs://bucket", "", "file://"])
def test_a_store_that_can_not_be_opened_exits_with_two(url: str):
    result = CliRunner().invoke(app, ["list", "--store", url])
    assert result.exit_code == 2
    assert result.stderr.startswith("store: ")


@pytest.mark.parametrize("args", [("list",), ("show", "chat"), ("verify", "chat")])
def test_control_characters_of_a_hostile_manifest_never_reach_the_terminal(
    args: tuple[str, ...], store: DirectoryStore, folder: Path
):
    hostile: dict[str, Any] = {
        "base": BaseRecord(path=EVIL + "/" + EVIL, digest="a" * 64),
        "code_version": EVIL,
        "parent": EVIL,
        "evaluation": {EVIL: {EVIL: 1.0}},
        "ledger": {EVIL: 1},
    }
    commit(store, folder, make_draft(**hostile))
    store.put(f"adapters/{'x' * 5}[red]/v1/manifest.json", EVIL.encode())
    for more in ((), ("--json",)):
        result = ask(store, *args, *more)
        text = result.stdout + result.stderr
        assert not [c for c in text if not c.isprintable() and c != "\n"]
        assert result.exit_code == 0
    if args == ("show", "chat"):
        assert "[red]bold[/red]" in ask(store, *args).stdout.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize(
    ("evaluation", "figure"),
    [
        ({}, "-"),
        ({"before": {}}, "-"),
        ({"before": {"eval_loss": 3.0}, "after": {"eval_loss": 2.0}}, "loss 2"),
        ({"before": {"eval_loss": 3.0}, "after": {}}, "loss 3"),
        ({"after": {"accuracy": 0.91234, "f1": 0.5}}, "accuracy 0.9123"),
        ({"after": {"f1": 0.5}}, "f1 0.5"),
        ({"after": {"accuracy": 0.9, "eval_loss": 12345.6}}, "loss 1.235e+04"),
    ],
)
def test_a_list_shows_the_main_metric_of_an_evaluation(evaluation, figure, store, folder):
    assert (
        adapters_local.format_main_metric(commit(store, folder, make_draft(evaluation=evaluation)))
        == figure
    )


def test_the_command_line_imports_nothing_heavy():
    heavy = {"torch", "numpy", "ray", "transformers", "safetensors", "deepspeed", "pandas"}
    code = f"import sys, orchestrator.cli.adapters_local; print({heavy!r} & set(sys.modules) or '')"
    root = Path(adapters_local.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_900_000, "1.9 MB"),
        (999_949, "999.9 kB"), (999_960, "1.0 MB"), (538_000_000, "538.0 MB"),
        (12_300_000_000, "12.3 GB"), (5 * 10**15, "5000.0 TB"),
    ],
)  # fmt: skip
def test_sizes_are_formatted_with_units(count: int, text: str):
    assert console.format_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (0.44, "0.4 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"),
        (192, "3 min 12 s"), (3599.6, "1 h"), (7500, "2 h 5 min"), (97_200, "1 d 3 h"),
    ],
)  # fmt: skip
def test_durations_are_formatted_with_units(seconds: float, text: str):
    assert console.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (
            InputError([Fault("a", "one", "Do."), Fault("b", "two")]),
            2,
            ["a: one. Do.", "b: two."],
        ),
        (NotInStore("x", ["y"]), 2, ["x is not in the store. Available: y."]),
        (Unreachable("no Ray at\x1b[2J there"), 3, ["no Ray at\\x1b[2J there"]),
    ],
    ids=["input", "not found", "unreachable"],
)
def test_a_jobs_error_becomes_its_message_and_exit_code(error, code, lines):
    inner, root = typer.Typer(), typer.Typer(cls=console.CommandGroup)
    root.add_typer(inner, name="inner")

    @inner.command()
    def first() -> None:
        raise error

    @inner.command()
    def second() -> None: ...

    result = CliRunner().invoke(root, ["inner", "first"])
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.splitlines() == lines


def test_an_unexpected_error_is_raised_unchanged():
    root = typer.Typer(cls=console.CommandGroup)

    @root.command()
    def first() -> None:
        raise KeyError("a mistake of ours")

    @root.command()
    def second() -> None: ...

    assert isinstance(CliRunner().invoke(root, ["first"]).exception, KeyError)


class Ticking:
    """A clock that advances by a fixed step at each call."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.mark.parametrize(
    ("step", "terminal", "appears"),
    [(0.1, True, False), (1.5, True, True), (1.5, False, False)],
    ids=["quick work", "long work", "long work into a pipe"],
)
def test_a_bar_appears_only_for_long_work_on_a_terminal(
    step, terminal, appears, monkeypatch, capsys
):
    monkeypatch.setattr(console, "err_console", Console(stderr=True, force_terminal=terminal))
    bar = console.LazyProgressBar("Pulling chat@v1", 1000, clock=Ticking(step))
    with closing(bar) as work:
        for _ in range(10):
            work.advance(100)
    written = capsys.readouterr().err
    assert "Pulling chat@v1" in written if appears else written == ""


@pytest.mark.parametrize("width", [30, 40, 60, 80])
@pytest.mark.parametrize("why", ["", "quota", "project lab uses 1 of its 1 runs at once"])
@pytest.mark.parametrize("single_line", [True, False], ids=["single line", "folded"])
def test_a_table_loses_nothing_but_the_end_of_its_last_column(
    width, why, single_line, monkeypatch, capsys
):
    monkeypatch.setattr(console, "out_console", Console(width=width))
    name = "newsgroups-20261125-033800-dbc7d33e678b"
    console.show_table(
        [(name, "done", why)], headers=("run", "status", "why"), single_line=single_line
    )
    text = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in text) and " done " in text[1]
    # The first column is complete, folded or not.
    first = text[0].index("status")
    assert "".join(line[:first].strip() for line in text[1:]) == name
    assert not single_line or width < 60 or len(text) == 2


def test_a_column_that_is_not_the_first_can_be_folded_too(monkeypatch, capsys):
    monkeypatch.setattr(console, "out_console", Console(width=24))
    name = "newsgroups-20261125-033800"
    console.show_table([("at three", name)], headers=("due", "run"), folded=("run",))
    lines = capsys.readouterr().out.splitlines()
    start = lines[0].index("run")
    assert "".join(line[start:].strip() for line in lines[1:]) == name


def test_a_tables_cells_are_texts_and_no_markup(capsys):
    console.show_table([("[red]a[/red]", "1", "b\x1b")], headers=("one", "two", "three"))
    assert "[red]a[/red]  1    b\\x1b" in capsys.readouterr().out
