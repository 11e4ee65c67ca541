"""Every command and job that takes an adapter refuses an unsigned one under a policy."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs import evaluate, merge
from jobs.errors import Untrusted
from jobs.retrain.detect import snapshot_state
from jobs.retrain.pipeline import Retraining
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from jobs.tools import chat, diff, export
from jobs.tools.hub import push
from orchestrator.cli.command_table import COMMANDS
from orchestrator.cli.main import app
from orchestrator.cli.tree import load_command
from tests.jobs.retrain.builders import committed, lora_files
from tests.jobs.retrain.specs import a_retrain, raw_retrain
from tests.jobs.trust.keys import Keys
from tests.test_codebase import list_modules, parse_module
from tests.tiny import chat_rows, hollow_model, write_spec

ROOT = Path(__file__).parents[3]
REFUSED: dict[str, tuple[str, ...]] = {
    "adapters show": ("tiny",),
    "adapters pull": ("tiny", "{to}"),
    "adapters verify": ("tiny",),
    "adapters promote": ("tiny@v1",),
    "adapters rollback": ("tiny",),
    "reproduce": ("tiny",),
    "deploy": ("tiny", "--to", "http://127.0.0.1:9"),
}
"""Commands that read an adapter themselves, with their arguments."""
BY_JOB: dict[str, tuple[Callable[..., int], tuple[str, ...]]] = {
    "chat": (chat.main, ("--adapter", "tiny", "--prompt", "hi")),
    "evaluate": (evaluate.main, ("--adapter", "tiny", "--data", "{eval}")),
    "adapters merge": (merge.main, ("--adapter", "tiny", "--to", "{to}")),
    "adapters export": (export.main, ("--adapter", "tiny", "--to", "{to}", "--rank", "2")),
    "adapters push": (push.main, ("--adapter", "tiny", "--to", "hf://org/repo")),
    "adapters diff": (diff.main, ("--adapter", "tiny", "--other", "tiny@v1")),
}
"""Commands that start a job in another process, with the job and its arguments."""
WITHOUT_READING = {"adapters delete", "adapters sign"}
"""Commands that remove a version, or sign it after a check of its files."""


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    return Keys(tmp_path, monkeypatch)


@pytest.fixture
def workspace(tmp_path: Path, keys: Keys) -> Path:
    """A workspace with tiny@v1, which nobody signed, under a policy."""
    hollow_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 8)
    chat_rows(tmp_path / "eval.jsonl", 4)
    committed(tmp_path, lora_files(tmp_path / "one"))
    chat_rows(tmp_path / "train.jsonl", 9)
    keys.trust()
    return tmp_path


def iter_commands() -> Iterator[tuple[str, Any]]:
    """Yield every command of the tree with its words."""
    for name in COMMANDS:
        command: Any = load_command(name)
        children = getattr(command, "commands", None)
        if children is None:
            yield name, command
        else:
            yield from ((f"{name} {word}", child) for word, child in children.items())


def takes_adapter(command: Any) -> bool:
    return any("dapter" in (getattr(parameter, "help", None) or "") and parameter.name
               in ("name", "adapter", "first") for parameter in command.params)  # fmt: skip


def test_every_command_that_takes_an_adapter_is_in_a_table():
    commands = {words for words, command in iter_commands() if takes_adapter(command)}
    assert commands == REFUSED.keys() | BY_JOB.keys() | WITHOUT_READING


def fill(arguments: tuple[str, ...], folder: Path) -> list[str]:
    values = {"to": folder / "to", "eval": folder / "eval.jsonl"}
    return [argument.format(**values) for argument in arguments]


@pytest.mark.parametrize("words", REFUSED)
def test_a_command_refuses_an_unsigned_adapter(words: str, workspace: Path, keys: Keys):
    if words == "adapters rollback":
        keys.distrust()
        CliRunner().invoke(app, ["adapters", "promote", "tiny@v1", *in_store(workspace)])
        keys.trust()
    arguments = [*words.split(), *fill(REFUSED[words], workspace), *in_store(workspace)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert "not signed" in result.stderr
    assert not (workspace / "to").exists()


@pytest.mark.parametrize("words", BY_JOB)
def test_a_job_refuses_an_unsigned_adapter(words: str, workspace: Path, capsys):
    main, arguments = BY_JOB[words]
    assert main([*fill(arguments, workspace), *in_store(workspace)]) == 1
    assert "tiny@v1: it is not signed" in capsys.readouterr().err
    assert not (workspace / "to").exists()


def in_store(folder: Path) -> tuple[str, ...]:
    return "--store", f"file://{folder / 'store'}"


def test_a_list_shows_an_unsigned_adapter_as_unreadable(workspace: Path):
    result = CliRunner().invoke(app, ["adapters", "list", *in_store(workspace)])
    assert "it is not signed" in result.stderr and "tiny@v1" not in result.stdout


def test_a_signed_adapter_is_accepted(workspace: Path, keys: Keys):
    sign = ["adapters", "sign", "tiny@v1", "--key", str(keys.private), *in_store(workspace)]
    assert CliRunner().invoke(app, sign).exit_code == 0
    for words in ("show", "verify"):
        result = CliRunner().invoke(app, ["adapters", words, "tiny", *in_store(workspace)])
        assert result.exit_code == 0, result.output


def test_a_file_that_was_changed_is_not_signed(workspace: Path, keys: Keys):
    store = DirectoryStore(workspace / "store")
    store.put("adapters/tiny/v1/adapter_config.json", b"{}")
    sign = ["adapters", "sign", "tiny@v1", "--key", str(keys.private), *in_store(workspace)]
    result = CliRunner().invoke(app, sign)
    assert result.exit_code == 1 and "tiny@v1 is not signed: adapters/tiny/v1" in result.stderr


@pytest.mark.parametrize("start", ["current", "v1"])
def test_a_plan_of_a_retraining_refuses_its_start(start: str, workspace: Path):
    spec = write_spec(workspace / "retrain.yaml", raw_retrain(workspace, {"start": start}))
    result = CliRunner().invoke(app, ["plan", str(spec)])
    assert result.exit_code == 1 and "tiny@v1: it is not signed" in result.stderr


def test_a_retraining_refuses_its_start_and_its_baseline(workspace: Path):
    store, spec = DirectoryStore(workspace / "store"), a_retrain(workspace)
    with pytest.raises(Untrusted):
        snapshot_state(store, spec, "current", "0" * 64)
    with pytest.raises(Untrusted):
        Retraining(spec, RunStore(store, "r2"), 1).run()


EXEMPT = {
    "jobs.retrain.pipeline",
    "jobs.store.adapters.commit",
    "jobs.store.adapters.listing",
    "jobs.store.adapters.pointer",
    "jobs.store.adapters.pull",
    "jobs.store.adapters.removal",
    "jobs.train.evaluate_adapters",
    "jobs.store.trust.version_trust",
    "jobs.store.adapters.verify",
    "orchestrator.cli.adapter_maintenance",
    "orchestrator.cli.reproduce",
    "orchestrator.control.outcome",
    "orchestrator.deployments.version_copies",
}
"""Modules that may read what is not signed yet: a run its own commit, a deletion, the signing. The
last one compares a copy's manifest with a verified one.
"""
UNGUARDED = {"parse_manifest", "load_pointer", "read_manifest_bytes"}


def test_no_other_module_reads_a_manifest_or_a_pointer_past_the_policy():
    readers = set()
    for name, path in list_modules("slora", "jobs", "orchestrator").items():
        for node in ast.walk(parse_module(path)):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                options = {keyword.arg for keyword in node.keywords}
                if called in UNGUARDED or options & {"trusts_all", "own_run"}:
                    readers.add(name)
    assert readers == EXEMPT
