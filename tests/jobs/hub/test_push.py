"""A push to a stand-in of a hub: one commit of all files, repeatable, and no token is shown."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jobs.store.adapters.manifest import BaseRecord
from jobs.store.adapters.operations import commit
from jobs.store.local import DirectoryStore
from tests.jobs.hub.hub_server import TOKEN, Hub, serve_hub
from tests.jobs.store.builders import DIGESTS, make_adapter_folder, make_draft

REPOSITORY = "team/chat"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path / "store")
    base = BaseRecord(path="org/base", revision="c" * 40, digest=DIGESTS["a"])
    commit(store, make_adapter_folder(tmp_path / "first"), make_draft(run="r1", base=base))
    return store


def push(
    hub: Hub, store: DirectoryStore, *words: str, token: str = TOKEN, to: str = f"hf://{REPOSITORY}"
) -> subprocess.CompletedProcess[str]:
    """Run the job in a process of its own: huggingface_hub reads its environment once."""
    unset = ("HF_HUB_OFFLINE", "HF_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(store.root.parent / "hf")}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "jobs.tools.hub.push", "--adapter", "chat", "--to", to]
    done = subprocess.run(
        [*command, "--store", store.url(""), *words], env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert TOKEN not in done.stdout + done.stderr
    return done


def test_a_push_is_one_commit_with_a_card_and_a_second_one_changes_nothing(
    hub: Hub, store: DirectoryStore
):
    done = push(hub, store, "--license", "apache-2.0")
    assert done.returncode == 0, done.stderr
    assert f"chat@v1 pushed: {hub.url}/{REPOSITORY}/commit/" in done.stdout
    files = hub.repositories[REPOSITORY]
    for name in ("adapter_config.json", "adapter_model.safetensors", "manifest.json"):
        assert files[name] == store.get(f"adapters/chat/v1/{name}")
    header = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (header["license"], header["base_model"]) == ("apache-2.0", "org/base")
    assert hub.commits == ["chat@v1"] and hub.private[REPOSITORY]

    again = push(hub, store, "--license", "apache-2.0")
    assert again.returncode == 0, again.stderr
    assert hub.commits == ["chat@v1"]


def test_a_push_that_failed_is_repeated_without_what_has_arrived(hub: Hub, store: DirectoryStore):
    hub.fails_at = "/commit/"
    failed = push(hub, store)
    assert failed.returncode == 3
    assert "Push again: what has arrived is not sent twice." in failed.stderr
    assert list(hub.repositories[REPOSITORY]) == [".gitattributes"]
    assert sum(request.startswith("PUT /lfs/") for request in hub.requests) == 1
    assert push(hub, store).returncode == 0
    assert "adapter_model.safetensors" in hub.repositories[REPOSITORY]
    assert sum(request.startswith("PUT /lfs/") for request in hub.requests) == 1


def test_files_of_an_earlier_form_are_removed_and_those_of_others_stay(
    hub: Hub, store: DirectoryStore, tmp_path: Path
):
    assert push(hub, store).returncode == 0
    hub.repositories[REPOSITORY] |= {"sparse_config.json": b"{}", "picture.png": b"x"}
    commit(store, make_adapter_folder(tmp_path / "second", "other"), make_draft(run="r2"))
    done = push(hub, store)
    assert done.returncode == 0, done.stderr
    assert "names the base /no/such/base, which is not on a hub" in done.stderr
    files = hub.repositories[REPOSITORY]
    assert "sparse_config.json" not in files and files["picture.png"] == b"x"
    assert hub.commits == ["chat@v1", "chat@v2"]


def test_a_refusal_says_what_to_do_and_no_request_shows_the_token(hub: Hub, store: DirectoryStore):
    refused = push(hub, store, token="hf_wrong")
    assert refused.returncode == 2 and "hf_wrong" not in refused.stderr
    assert "(401). Set HF_TOKEN, or run `hf auth login`" in refused.stderr
    for words, message in (
        (("--license", "my own!"), "is not an identifier of a licence"),
        (("--to", "https://hub/team/chat"), "Use hf://ORGANISATION/REPOSITORY."),
    ):
        done = push(hub, store, *words)
        assert done.returncode == 2 and message in done.stderr
    assert hub.repositories == {}
