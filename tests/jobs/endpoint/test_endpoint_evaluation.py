"""An evaluation through an endpoint has the loss of our own, and says what a server lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from jobs.evaluate import main as evaluate
from jobs.store.local import DirectoryStore
from slora.formats.merge import merge_adapter
from tests.jobs.endpoint.completions_server import CompletionsServer, serve_completions
from tests.jobs.llama_cpp.cases import commit_adapter, make_adapter
from tests.tiny import chat_rows, tiny_chat_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("endpoint")
    base, store = tiny_chat_model(path / "model"), DirectoryStore(path / "store")
    commit_adapter(store, base, make_adapter(base, "lora"), "chat", path / "folders")
    classifier = make_adapter(base, "lora", task="sequence-classification")
    commit_adapter(store, base, classifier, "classes", path / "folders")
    chat_rows(path / "rows.jsonl", 20)
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[CompletionsServer]:
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    merge_adapter(model, make_adapter(folder / "model", "lora"))
    with serve_completions(CompletionsServer(model)) as running:
        yield running


def run(folder: Path, *words: str, name: str = "chat") -> int:
    store, rows = f"file://{folder / 'store'}", str(folder / "rows.jsonl")
    fixed = ["--adapter", name, "--store", store, "--data", rows, "--max-length", "64"]
    return evaluate([*fixed, *words])


def test_the_loss_through_an_endpoint_is_that_of_our_own_evaluation(
    folder: Path, server: CompletionsServer, capsys
):
    assert run(folder, "--json") == 0
    own = json.loads(capsys.readouterr().out)
    assert run(folder, "--json", "--endpoint", f"{server.url}/v1/") == 0
    served = json.loads(capsys.readouterr().out)
    assert served["adapter"] == "chat@v1" and served["tokens"] == own["tokens"] > 100
    assert served["loss"] == pytest.approx(own["loss"], abs=1e-5)
    assert served["perplexity"] == pytest.approx(own["perplexity"], rel=1e-5)
    assert len(server.requests) == served["data"]["rows"] == 20
    assert {request["model"] for request in server.requests} == {"chat"}
    assert {request["max_tokens"] for request in server.requests} == {0}


def test_the_server_may_know_the_adapter_by_another_name(
    folder: Path, server: CompletionsServer, capsys
):
    server.names = ("base", "prod")
    assert run(folder, "--endpoint", server.url) == 2
    assert "does not serve 'chat'; it has base, prod" in capsys.readouterr().err
    assert run(folder, "--endpoint", server.url, "--served-as", "prod") == 0
    assert "chat@v1 on 20 rows: loss" in capsys.readouterr().out
    assert run(folder, "--served-as", "prod") == 2
    assert "Add --endpoint URL." in capsys.readouterr().err


def test_the_servers_key_is_sent_and_never_shown(
    folder: Path, server: CompletionsServer, capsys, monkeypatch
):
    server.key = "sk-secret"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    assert run(folder, "--endpoint", server.url) == 2
    shown = capsys.readouterr()
    assert "(401). Set OPENAI_API_KEY to its key." in shown.err
    assert "sk-wrong" not in shown.err + shown.out
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert run(folder, "--endpoint", server.url) == 0


def test_what_a_server_lacks_is_named(folder: Path, server: CompletionsServer, capsys):
    server.echoes = False
    assert run(folder, "--endpoint", server.url) == 2
    assert "it returns no log-probabilities of a prompt. Use a server" in capsys.readouterr().err
    server.status = 400
    assert run(folder, "--endpoint", server.url) == 2
    assert "maximum context length is 8" in capsys.readouterr().err
    server.status = 503
    assert run(folder, "--endpoint", server.url) == 3
    assert "failed with 503" in capsys.readouterr().err


def test_an_endpoint_that_cannot_be_asked_is_refused(folder: Path, capsys):
    for url in ("ftp://host", "http://user:word@host", "host:80"):
        assert run(folder, "--endpoint", url) == 2
        message = capsys.readouterr().err
        assert "--endpoint" in message and "word" not in message.replace("password", "")
    assert run(folder, "--endpoint", "http://127.0.0.1:1") == 3
    assert "does not answer" in capsys.readouterr().err
    assert run(folder, "--endpoint", "http://127.0.0.1:1", name="classes") == 2
    assert "servers score language models only" in capsys.readouterr().err
