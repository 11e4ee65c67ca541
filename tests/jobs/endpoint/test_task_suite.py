"""A local task of lm-eval-harness on an adapter, in this process and through a server."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.evaluate import main as evaluate
from jobs.store.local import DirectoryStore
from slora.formats.merge import merge_adapter
from tests.jobs.endpoint.completions_server import CompletionsServer, serve_completions
from tests.jobs.llama_cpp.cases import commit_adapter, make_adapter
from tests.tiny import tiny_chat_model

IS_INSTALLED = find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not IS_INSTALLED, reason="no lm-eval: pip install '.[suite]'")
CHOICES = [" red", " green", " blue"]
TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [" red", " green", " blue"]
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite")
    base, store = tiny_chat_model(path / "model"), DirectoryStore(path / "store")
    commit_adapter(store, base, make_adapter(base, "lora", alpha=30.0), "chat", path / "folders")
    rows = [{"question": f"The cup {at} is", "answer": at % 3} for at in range(12)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "colours.yaml").write_text(TASK.replace("ROWS", str(path / "rows.jsonl")))
    return path


def run(folder: Path, *words: str) -> int:
    return evaluate(["--adapter", "chat", "--store", f"file://{folder / 'store'}", *words])


def test_an_evaluation_has_rows_or_a_task(folder: Path, capsys):
    assert run(folder) == 2
    assert "Use --data FILE or --suite TASK." in capsys.readouterr().err
    assert run(folder, "--data", "rows.jsonl", "--suite", "colours") == 2


@pytest.mark.skipif(IS_INSTALLED, reason="lm-eval is installed")
def test_a_suite_without_lm_eval_names_the_extra(folder: Path, capsys):
    assert run(folder, "--suite", "colours") == 3
    assert "pip install '.[suite]'" in capsys.readouterr().err


def compute_accuracy(folder: Path) -> float:
    """Return the share of questions whose right choice has the largest log-probability."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    merge_adapter(model, make_adapter(folder / "model", "lora", alpha=30.0))
    hits = []
    for row in map(json.loads, (folder / "rows.jsonl").read_text().splitlines()):
        start = tokenizer(row["question"])["input_ids"]
        scores = []
        for choice in CHOICES:
            ids = [*start, *tokenizer(choice)["input_ids"]]
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(logprobs[at - 1, ids[at]] for at in range(len(start), len(ids))))
        hits.append(int(torch.tensor(scores).argmax()) == row["answer"])
    return sum(hits) / len(hits)


@pytest.mark.long
@needs_lm_eval
def test_a_local_task_has_the_same_figures_here_and_through_a_server(folder: Path, capsys):
    task = str(folder / "colours.yaml")
    assert run(folder, "--suite", task, "--json") == 0
    own = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert own["acc"] == pytest.approx(compute_accuracy(folder))
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    merge_adapter(model, make_adapter(folder / "model", "lora", alpha=30.0))
    with serve_completions(CompletionsServer(model)) as server:
        words = ("--suite", task, "--json", "--endpoint", server.url, "--max-length", "128")
        assert run(folder, *words) == 0
        served = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert len(server.requests) == 12 * len(CHOICES)
    assert served == own
    assert run(folder, "--suite", "no_such_task") == 2
    assert "lm-eval has no task 'no_such_task'" in capsys.readouterr().err
