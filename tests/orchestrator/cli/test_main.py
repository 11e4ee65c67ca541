"""The command line: exit codes, results on stdout, messages on stderr, no needless start of Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from typer.testing import CliRunner, Result

from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import SPEC, RunStore
from orchestrator.cli.main import app
from tests.tiny import HOLLOW_TARGETS, chat_rows, hollow_model, merge_spec, tiny_spec, write_spec

SLORA = str(Path(sys.executable).parent / "slora")
RUN = "tiny-20260101-120000-0a1b"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hollow_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 8)
    return tmp_path


@pytest.fixture
def reported_store(tmp_path: Path) -> str:
    """Return a store with the files of one run, written by hand."""
    store = DirectoryStore(tmp_path / "store")
    runs = RunStore(store, RUN)
    runs.write_text(SPEC, "name: tiny\n")
    metrics = {"loss": 1.5, "perplexity": 4.4817}
    runs.events.append({"event": "evaluated", "at": "end", "step": 6, "metrics": metrics})
    return store.url("")


def spec_in(folder: Path, **overrides: Any) -> str:
    spec = merge_spec(tiny_spec(folder, method={"targets": HOLLOW_TARGETS}), overrides)
    return str(write_spec(folder / "spec.yaml", spec))


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})


def run_command(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=240,  # a guard, not a promise: the first plan of a model loads torch
        stdin=subprocess.DEVNULL,
    )


BAD: dict[str, tuple[dict[str, Any], Sequence[str], str]] = {
    "unknown key": ({"method": {"rnak": 2}}, (), "method.rnak: unknown key."),
    "nothing to evaluate on": (
        {"train": {"stop": {"patience": 2}}},
        (),
        "data.eval: train.stop needs held-out rows",
    ),
    "no such mask": ({"method": {"mask": "fishr"}}, (), "method.mask: 'fishr' is not a mask"),
    "not compatible": ({"method": {"init": "pissa"}}, (), "method.init: pissa initialises"),
    "no model": ({"model": {"path": "/no/such"}}, (), "model.path: /no/such: no such model"),
    "rank": ({"method": {"rank": 5}}, (), "method.rank: 5 exceeds the smallest target"),
    "--set": ({}, ("--set", "method.rank=big"), "method.rank: 'big' is not allowed"),
    "bad --set": ({}, ("--set", "rank"), "--set 'rank': not of the form"),
}


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize(("overrides", "options", "message"), BAD.values(), ids=BAD)
def test_invalid_input_exits_with_two_and_a_message_on_stderr(
    command: str, overrides: dict[str, Any], options: Sequence[str], message: str, folder: Path
):
    result = ask(command, spec_in(folder, **overrides), *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message)
    assert "Traceback" not in result.stderr and "Starting Ray" not in result.output
    assert not (folder / "store").exists()


def test_every_error_is_one_line_without_control_characters(folder: Path):
    spec = spec_in(folder, **{"a\x1b[2J": 1}, method={"targets": ["[red]x", "q_proj"]})
    lines = ask("plan", spec).stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("a\\x1b[2J: unknown key.")
    message = ask("plan", spec_in(folder, method={"targets": ["[red]x"], "rank": 99})).stderr
    assert "'[red]x' matches no linear layer" in message


def test_a_missing_spec_exits_with_two():
    result = ask("plan", "/no/such.yaml")
    assert result.exit_code == 2 and "/no/such.yaml: no such spec file" in result.stderr


def test_a_plan_is_a_table_of_stages_that_fits_eighty_columns(folder: Path):
    result = ask("plan", spec_in(folder))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    at = next(at for at, line in enumerate(lines) if line.startswith("stage "))
    heads, sparse, low_rank = (line.split() for line in lines[at : at + 3])
    assert heads == ["stage", "steps", "trainable", "share", "learning", "rate"]
    # Density 0.05 of 64, 32 and 128 weights; rank 2 of 8 x 8, 4 x 8 and 16 x 8.
    assert sparse == ["sparse", "2", "11", "0.23%", "0.01"]
    assert low_rank == ["low-rank", "4", "104", "2.18%", "0.01"]
    output = " ".join(result.stdout.split())
    assert "3 layers (self_attn.q_proj, self_attn.k_proj, mlp.up_proj)" in output
    assert "4 sequences = 1 worker x 4 micro-batches of 1" in output
    assert not (folder / "store").exists()


def test_a_plan_shows_memory_traffic_and_cost_of_each_sharding(folder: Path):
    machine = ("tokens_per_second=64", "price_per_hour=225", "workers_per_node=2", "memory_gb=4")
    command = [word for key in machine for word in ("--set", f"cluster.machine.{key}")]
    result = ask("plan", spec_in(folder), "--workers", "4", *command)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    ways = [line.split() for line in lines if line.startswith(("replicate", "node", "cluster"))]
    assert [(way[0], way[1] == "*") for way in ways] == [
        ("replicate", True), ("node", False), ("cluster", False),
    ]  # fmt: skip
    # 11 numbers and 4 beside them, 4 bytes each, 2 x 3 / 4 of them.
    assert ways[0][-6:-4] == ["90", "B"]
    output = " ".join(result.stdout.split())
    assert "4 on 2 machines, replicate (auto: it fits)" in output
    assert "tokens 1,536 at most, in 6 steps" in output
    assert "time 24 s of steps, at 64 tokens/s set in the spec" in output
    assert "cost 3.00 for 2 machines" in output


def test_a_run_that_does_not_fit_is_refused_with_a_fix(folder: Path):
    result = ask("plan", spec_in(folder), "--set", "cluster.machine.memory_gb=0.1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "GB per worker" in result.stderr and "more than the 0.1 GB of cluster" in result.stderr
    assert "Use more workers or larger ones" in result.stderr


def test_a_plan_as_json_has_the_stages_and_their_shares(folder: Path):
    result = ask("plan", spec_in(folder), "--json", "--set", "method.rank=4")
    values = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [(s["name"], s["steps"], s["trainable"]) for s in values["stages"]] == [
        ("sparse", 2, 11), ("low-rank", 4, 208),
    ]  # fmt: skip
    assert [s["share"] for s in values["stages"]] == [11 / 4760, 208 / 4760]
    assert values["targets"] == [
        f"model.layers.0.{tail}" for tail in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
    ]


def test_a_plan_by_epochs_names_no_steps(folder: Path):
    spec = spec_in(folder, train={"steps": None, "epochs": 2})
    assert ask("plan", spec).stdout.count("by epochs") == 2
    stages = json.loads(ask("plan", spec, "--json").stdout)["stages"]
    assert [stage["steps"] for stage in stages] == [None, None]


def test_a_plan_of_full_training_lists_every_parameter(folder: Path):
    output = ask("plan", spec_in(folder, method={"kind": "full"})).stdout
    assert "every parameter" in output and "100.00%" in output


def test_the_schema_is_a_valid_json_schema(folder: Path):
    result = ask("schema")
    schema = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(Path(spec_in(folder)).read_text()), schema)
    assert result.exit_code == 0 and schema["additionalProperties"] is False


def test_a_report_is_made_from_the_files_of_a_run(reported_store: str):
    result = ask("report", RUN, "--store", reported_store)
    assert result.exit_code == 0
    assert "at the end" in result.stdout and "1.5000" in result.stdout and "4.48" in result.stdout
    values = json.loads(ask("report", RUN, "--store", reported_store, "--json").stdout)
    assert values["evaluations"]["end"]["loss"] == 1.5 and values["run"] == RUN


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny-20260101-120000-ffff", "is not in the store"),
        ("../../etc", "'../../etc' is not a run id"),
        ("a\x1b[2J", "'a\\x1b[2J' is not a run id"),
    ],
    ids=["unknown", "a path", "control characters"],
)
def test_an_invalid_run_id_exits_with_two(name: str, message: str, reported_store: str):
    result = ask("report", name, "--store", reported_store)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize("command", ["show", "verify"])
def test_an_unknown_adapter_exits_with_two(command: str, reported_store: str):
    result = ask("adapters", command, "nobody", "--store", reported_store)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nobody" in result.stderr


def test_an_unknown_command_or_option_exits_with_two(folder: Path):
    assert ask("plane").exit_code == 2
    assert ask("plan", spec_in(folder), "--no-such").exit_code == 2
    assert ask("plan").exit_code == 2


def test_the_installed_command_reports_invalid_input_before_it_starts_ray(folder: Path):
    spec = spec_in(folder, method={"rank": 5}, data={"max_length": 500})
    done = run_command(SLORA, "train", spec, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "data.max_length", "method.rank",
    ]  # fmt: skip
    assert "Starting Ray" not in done.stderr


def test_the_installed_command_plans_from_any_folder(folder: Path):
    spec = tiny_spec(folder, model={"path": "model"}, data={"train": "*.jsonl"}, store="out/store")
    write_spec(folder / "spec.yaml", spec)
    done = run_command(SLORA, "plan", "spec.yaml", "--json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    # q, k, v, o and three of the MLP: 64, 32, 32, 64 and 3 x 128.
    assert json.loads(done.stdout)["target_weights"] == 576
    assert not (folder / "out").exists()


def test_the_job_reports_invalid_input_with_the_same_messages(folder: Path):
    spec = spec_in(folder, method={"rank": 5}, data={"max_length": 500})
    done = run_command(sys.executable, "-m", "jobs.finetune", "--spec", spec, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ask("train", spec).stderr
    assert not (folder / "store").exists()


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        pytest.param("ray", "train", id="train without ray"),
        pytest.param("psutil", "train", id="train without psutil"),
    ],
)
def test_without_the_training_extra_the_command_names_it(folder, missing, command):
    spec = write_spec(folder / "alone.yaml", tiny_spec(folder))
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from orchestrator.cli.main import main; main()"
    )
    done = run_command(sys.executable, "-c", code, command, str(spec), cwd=folder)
    assert done.returncode == 3
    assert done.stderr.strip() == (
        f"{missing} is not installed here. Install the extra: pip install '.[train]'."
    )
