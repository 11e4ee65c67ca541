"""`slora deploy` and `slora deployments`, on a store and through a service."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.store.local import DirectoryStore
from orchestrator.cli.main import app
from tests.orchestrator.api.builders import serve_app
from tests.orchestrator.api.test_deployment_routes import Served, open_served
from tests.orchestrator.deployments.builders import commit_promoted
from tests.orchestrator.deployments.fake_vllm import API_KEY, FakeVllm


class Shell:
    """A store, a server, and the command line on both."""

    def __init__(self, store: DirectoryStore, fake: FakeVllm, url: str) -> None:
        self.store, self.fake, self.url = store, fake, url

    def run(self, *words: str) -> Result:
        environment = {"SLORA_SERVING_KEY": API_KEY, "COLUMNS": "120"}
        command = [*words, "--store", self.store.url("")]
        return CliRunner().invoke(app, command, env=environment)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    fake = FakeVllm()
    with fake.serve() as url:
        yield Shell(DirectoryStore(tmp_path / "store"), fake, url)


def test_an_adapter_is_deployed_to_a_url_rolled_back_and_removed(shell: Shell, tmp_path: Path):
    commit_promoted(shell.store, tmp_path / "folders")
    made = shell.run("deploy", "chat", "--to", shell.url)
    assert made.exit_code == 0, made.output
    assert "chat@v1: live" in made.stderr
    assert shell.fake.names == {"chat": "chat@v1"}
    commit_promoted(shell.store, tmp_path / "folders")
    again = shell.run("deploy", "chat", "--to", shell.url, "--prompt", "Hello", "--json")
    assert json.loads(again.stdout)["canary"]["prompts"] == ["Hello"]
    assert json.loads(again.stdout)["live"] == 2
    back = shell.run("deployments", "rollback", "chat", "--to", shell.url)
    assert "chat answers with chat@v1 again." in back.stdout
    listed = json.loads(shell.run("deployments", "list", "--json").stdout)["deployments"]
    assert [(row["name"], row["live"]) for row in listed] == [("chat", 1)]
    shown = shell.run("deployments", "show", "chat").stdout
    assert "rolled_back" in shown and "local:" in shown
    assert "was removed" in shell.run("deployments", "remove", "chat", "--to", shell.url).stdout
    assert (shell.fake.names, shell.fake.adapters) == ({}, {})
    assert "No deployments yet." in shell.run("deployments", "list").stderr
    assert API_KEY not in made.output + shown


@pytest.mark.parametrize("act", ["rollback", "remove"])
def test_a_key_is_sent_to_no_server_that_only_the_store_names(
    shell: Shell, tmp_path: Path, act: str
):
    commit_promoted(shell.store, tmp_path / "folders")
    shell.run("deploy", "chat", "--to", shell.url)
    record = shell.store.get("deployments/chat.json")
    evil = FakeVllm()
    with evil.serve() as url:
        shell.store.put("deployments/chat.json", record.replace(shell.url.encode(), url.encode()))
        for words, problem in (
            ((), "SLORA_SERVING_KEY is sent to no server that only the store names"),
            (("--to", shell.url), f"chat is deployed to '{url}', and not to '{shell.url}'"),
        ):
            refused = shell.run("deployments", act, "chat", *words)
            assert (refused.exit_code, problem in refused.stderr) == (2, True), refused.output
    assert evil.requests == 0


def test_a_version_that_fails_its_canary_is_exit_code_one(shell: Shell, tmp_path: Path):
    commit_promoted(shell.store, tmp_path / "folders")
    shell.run("deploy", "chat", "--to", shell.url)
    commit_promoted(shell.store, tmp_path / "folders")
    shell.fake.broken = {"chat@v2"}
    failed = shell.run("deploy", "chat", "--to", shell.url)
    assert failed.exit_code == 1
    assert "3.0000 through the server" in failed.stderr
    assert shell.fake.names == {"chat": "chat@v1"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("deploy", "chat", "--to", "local"), 2, "'local' is no endpoint of this project"),
        (("deploy", "chat", "--to", "http://127.0.0.1:1"), 3, "no connection"),
        (("deploy", "other", "--to", "URL"), 2, "is not in the store"),
        (("deploy", "chat", "--to", "URL", "--max-latency", "0"), 2, "max_latency_s"),
        (("deployments", "rollback", "chat"), 2, "is not in the store"),
        (("deployments", "show", "chat"), 2, "is not in the store"),
    ],
)
def test_what_cannot_be_done_says_why(
    shell: Shell, tmp_path: Path, words: tuple[str, ...], code: int, message: str
):
    commit_promoted(shell.store, tmp_path / "folders")
    result = shell.run(*(shell.url if word == "URL" else word for word in words))
    assert (result.exit_code, message in result.stderr) == (code, True), result.output
    assert list(shell.store.list("deployments/")) == []


@contextmanager
def keep_following(served: Served) -> Iterator[None]:
    """Follow the deployments in a thread, as a running service does."""
    stopping = threading.Event()

    def follow() -> None:
        while not stopping.wait(0.05):
            served.follow()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def test_the_same_commands_work_through_a_service(
    migrated_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with open_served(migrated_file, tmp_path, monkeypatch) as served:
        served.release()
        with serve_app(served.api.app) as url, keep_following(served):
            secret = served.api.secrets["submitter", "default"]
            environment = {"SLORA_TOKEN": secret, "COLUMNS": "120"}

            def run(*words: str) -> Result:
                return CliRunner().invoke(app, [*words, "--service", url], env=environment)

            made = run("deploy", "chat", "--to", "local", "--json")
            assert (made.exit_code, json.loads(made.stdout)["live"]) == (0, 1), made.output
            assert "chat@v1: live" in made.stderr
            served.release()
            assert run("deploy", "chat", "--to", "local").exit_code == 0
            assert "chat@v1 again" in run("deployments", "rollback", "chat").stdout
            assert "rolled_back" in run("deployments", "show", "chat").stdout
            assert "chat" in run("deployments", "list").stdout
            assert "is being removed" in run("deployments", "remove", "chat").stdout
