"""The command line: exit codes, results on stdout, words on stderr, and nothing started in vain."""

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
from tests.tiny import chat_rows, hollow_model, tiny_spec, write_spec

SLORA = str(Path(sys.executable).parent / "slora")
RUN = "tiny-20260101-120000-0a1b"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hollow_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 8)
    return tmp_path


@pytest.fixture
def reported(tmp_path: Path) -> str:
    """A store with the papers of one run, made by hand."""
    store = DirectoryStore(tmp_path / "store")
    runs = RunStore(store, RUN)
    runs.write_text(SPEC, "name: tiny\n")
    metrics = {"loss": 1.5, "perplexity": 4.4817}
    runs.events.append({"event": "evaluated", "at": "end", "step": 6, "metrics": metrics})
    return store.url("")


def spec_in(folder: Path, **overrides: Any) -> str:
    return str(write_spec(folder / "spec.yaml", tiny_spec(folder, **overrides)))


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


BAD: dict[str, tuple[dict[str, Any], Sequence[str], str]] = {
    "unknown key": ({"method": {"rnak": 2}}, (), "method.rnak: unknown key."),
    "nothing to judge by": ({"train": {"stop": {"patience": 2}}}, (), "data.eval: nothing is held"),
    "no such mask": ({"method": {"mask": "fishr"}}, (), "method.mask: 'fishr' is not a mask"),
    "not compatible": ({"method": {"init": "pissa"}}, (), "method.init: pissa initialises"),
    "no model": ({"model": {"path": "/no/such"}}, (), "model.path: /no/such: no such model"),
    "rank": ({"method": {"rank": 5}}, (), "method.rank: 5 exceeds the smallest target"),
    "--set": ({}, ("--set", "method.rank=big"), "method.rank: 'big' is not allowed"),
    "bad --set": ({}, ("--set", "rank"), "--set 'rank': not of the form"),
}


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize(("overrides", "options", "said"), BAD.values(), ids=BAD)
def test_wrong_input_is_exit_code_2_and_words_on_stderr(
    command: str, overrides: dict[str, Any], options: Sequence[str], said: str, folder: Path
):
    result = ask(command, spec_in(folder, **overrides), *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(said)
    assert "Traceback" not in result.stderr and "starting Ray" not in result.output
    assert not (folder / "store").exists()


def test_every_fault_is_a_line_and_nothing_in_it_can_move_the_cursor(folder: Path):
    spec = spec_in(folder, **{"a\x1b[2J": 1}, method={"targets": ["[red]x", "q_proj"]})
    lines = ask("plan", spec).stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("a\\x1b[2J: unknown key.")
    said = ask("plan", spec_in(folder, method={"targets": ["[red]x"], "rank": 99})).stderr
    assert "'[red]x' matches no linear layer" in said


def test_a_spec_that_is_not_there_is_exit_code_2():
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
    assert sparse == ["sparse", "2", "11", "1.26%", "0.01"]
    assert low_rank == ["low-rank", "4", "104", "11.93%", "0.01"]
    shown = " ".join(result.stdout.split())
    assert "3 layers (self_attn.q_proj, self_attn.k_proj, mlp.up_proj)" in shown
    assert "4 sequences = 1 worker x 4 micro-batches of 1" in shown
    assert not (folder / "store").exists()


def test_a_plan_shows_memory_wire_and_cost_of_each_way_to_hold_the_base(folder: Path):
    machine = ("tokens_per_second=64", "price_per_hour=225", "workers_per_node=2", "memory_gb=4")
    words = [word for key in machine for word in ("--set", f"cluster.machine.{key}")]
    result = ask("plan", spec_in(folder), "--workers", "4", *words)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    ways = [line.split() for line in lines if line.startswith(("replicate", "node", "cluster"))]
    assert [(way[0], way[1] == "*") for way in ways] == [
        ("replicate", True), ("node", False), ("cluster", False),
    ]  # fmt: skip
    # 11 numbers and 4 beside them, 4 bytes each, 2 x 3 / 4 of them.
    assert ways[0][-6:-4] == ["90", "B"]
    shown = " ".join(result.stdout.split())
    assert "4 on 2 machines, replicate (auto: it fits)" in shown
    assert "tokens 1,536 at most, in 6 steps" in shown
    assert "time 24 s of steps, at 64 tokens/s as the spec says" in shown
    assert "cost 3.00 for 2 machines" in shown


def test_what_can_not_fit_is_refused_with_the_way_out(folder: Path):
    result = ask("plan", spec_in(folder), "--set", "cluster.machine.memory_gb=0.1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "GB per worker" in result.stderr and "more than the 0.1 GB of cluster" in result.stderr
    assert "Use more workers or larger ones" in result.stderr


def test_a_plan_for_programs_has_the_stages_and_their_shares(folder: Path):
    result = ask("plan", spec_in(folder), "--json", "--set", "method.rank=4")
    told = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [(s["name"], s["steps"], s["trainable"]) for s in told["stages"]] == [
        ("sparse", 2, 11), ("low-rank", 4, 208),
    ]  # fmt: skip
    assert [s["share"] for s in told["stages"]] == [11 / 872, 208 / 872]
    assert told["targets"] == [
        f"model.layers.0.{tail}" for tail in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
    ]


def test_a_plan_by_epochs_names_no_steps(folder: Path):
    spec = spec_in(folder, train={"steps": None, "epochs": 2})
    assert ask("plan", spec).stdout.count("by epochs") == 2
    stages = json.loads(ask("plan", spec, "--json").stdout)["stages"]
    assert [stage["steps"] for stage in stages] == [None, None]


def test_a_plan_that_trains_everything_says_so(folder: Path):
    shown = ask("plan", spec_in(folder, method={"kind": "full"})).stdout
    assert "every parameter" in shown and "100.00%" in shown


def test_the_schema_is_one_that_programs_can_use(folder: Path):
    result = ask("schema")
    schema = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(Path(spec_in(folder)).read_text()), schema)
    assert result.exit_code == 0 and schema["additionalProperties"] is False


def test_a_report_is_made_from_a_runs_own_papers(reported: str):
    result = ask("report", RUN, "--store", reported)
    assert result.exit_code == 0
    assert "at the end" in result.stdout and "1.5000" in result.stdout and "4.48" in result.stdout
    told = json.loads(ask("report", RUN, "--store", reported, "--json").stdout)
    assert told["evaluations"]["end"]["loss"] == 1.5 and told["run"] == RUN


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny-20260101-120000-ffff", "is not in the store"),
        ("../../etc", "'../../etc' is not a run id"),
        ("a\x1b[2J", "'a\\x1b[2J' is not a run id"),
    ],
    ids=["unknown", "a path", "control characters"],
)
def test_a_run_that_is_none_is_exit_code_2(name: str, said: str, reported: str):
    result = ask("report", name, "--store", reported)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


@pytest.mark.parametrize("command", ["show", "verify"])
def test_an_unknown_adapter_is_exit_code_2(command: str, reported: str):
    result = ask("adapters", command, "nobody", "--store", reported)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nobody" in result.stderr


def test_an_unknown_command_or_option_is_exit_code_2(folder: Path):
    assert ask("plane").exit_code == 2
    assert ask("plan", spec_in(folder), "--no-such").exit_code == 2
    assert ask("plan").exit_code == 2


def test_the_installed_command_answers_wrong_input_before_ray_is_touched(folder: Path):
    spec = spec_in(folder, method={"rank": 5}, data={"max_length": 500})
    done = run(SLORA, "train", spec, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "data.max_length", "method.rank",
    ]  # fmt: skip
    assert "starting Ray" not in done.stderr


def test_the_installed_command_plans_from_any_folder(folder: Path):
    spec = tiny_spec(folder, model={"path": "model"}, data={"train": "*.jsonl"}, store="out/store")
    write_spec(folder / "spec.yaml", spec)
    done = run(SLORA, "plan", "spec.yaml", "--json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["target_weights"] == 224
    assert not (folder / "out").exists()


def test_the_job_itself_answers_wrong_input_in_the_same_words(folder: Path):
    spec = spec_in(folder, method={"rank": 5}, data={"max_length": 500})
    done = run(sys.executable, "-m", "jobs.finetune", "--spec", spec, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ask("train", spec).stderr
    assert not (folder / "store").exists()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        pytest.param("ray", "train", id="train without ray"),
        pytest.param("psutil", "train", id="train without psutil"),
    ],
)
def test_a_control_plane_without_what_trains_says_what_to_install(folder, missing, words):
    spec = write_spec(folder / "alone.yaml", tiny_spec(folder))
    told = f"import sys; sys.modules[{missing!r}] = None; from orchestrator.cli.main import main; main()"
    done = run(sys.executable, "-c", told, words, str(spec), cwd=folder)
    assert done.returncode == 3
    assert done.stderr.strip() == (
        f"{missing} is not installed here. Install the extra: pip install '.[train]'."
    )
