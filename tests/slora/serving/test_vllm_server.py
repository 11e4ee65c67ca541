"""A real vLLM server with the plug-in, on a random Llama: clients ask while versions change."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from infra.local.serving_environment import find_serving_python
from slora.formats.base_files import digest_files, list_base_files
from slora.formats.peft import LoraAdapter, write_lora, write_sparse
from tests.benchmarks.serving import (
    TARGETS,
    TOLERANCE,
    find_difference,
    make_sparse,
    read_shapes,
    score_merged,
)
from tests.slora.serving.sparse_folders import write_manifest
from tests.tiny import tiny_chat_model
from tests.vllm_server import MAKE_IT, VllmServer, run_vllm
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not find_serving_python().exists(), reason=f"no vLLM here: {MAKE_IT}"),
]


@dataclass(frozen=True)
class Served:
    """A server, its base, and the folders of two adapters of each form."""

    server: VllmServer
    base: Path
    folder: Path

    def load(self, version: str) -> None:
        """Load `chat@s1`, `chat@l2` and so on, as often as a test likes."""
        path = str(self.folder / version.partition("@")[2])
        self.server.post("/slora/load", name=version, path=path)

    def point(self, version: str | None) -> None:
        self.server.post("/slora/names", name="chat", to=version)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    base = tiny_chat_model(folder / "base", hidden_size=128, intermediate_size=256)
    digest, shapes = digest_files(base, list_base_files(base)), read_shapes(base)
    for seed in (1, 2):
        write_sparse(folder / f"s{seed}", make_sparse(base, shapes, seed))
        generator = torch.Generator().manual_seed(seed)
        factors = {
            name: (
                torch.randn(8, columns, generator=generator) * 0.1,
                torch.randn(rows, 8, generator=generator) * 0.1,
            )
            for name, (rows, columns) in shapes.items()
        }
        lora = LoraAdapter(
            factors, alpha=16, rank=8, base="b", task="causal-lm", target_modules=TARGETS
        )
        write_lora(folder / f"l{seed}", lora)
        for form in "sl":
            write_manifest(folder / f"{form}{seed}", digest)
    (folder / "tmp").mkdir()
    with run_vllm(base, folder, variables={"TMPDIR": str(folder / "tmp")}) as server:
        yield Served(server, base, folder)


@contextmanager
def client_asking(server: VllmServer, name: str) -> Iterator[list[list[float] | str]]:
    """Ask again and again during the block; the list has every answer, or its error."""
    answers: list[list[float] | str] = []
    end = threading.Event()

    def ask() -> None:
        while not end.is_set():
            try:
                answers.append(server.score(name))
            except AssertionError as error:
                answers.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        end.set()
        thread.join()


def wait_for_answers(answers: list[list[float] | str]) -> None:
    """Return when the client has had two more answers: one may have begun before."""
    enough = len(answers) + 2
    wait_for(lambda: len(answers) >= enough or None, timeout_s=120, pause_s=0.01)


def is_like(answer: list[float] | str, states: Sequence[list[float]]) -> bool:
    return any(
        not isinstance(answer, str) and find_difference(answer, state) < 1e-4 for state in states
    )


def test_a_sparse_adapter_answers_as_the_merged_model_and_leaves_the_base_to_the_bit(
    served: Served,
):
    server, shapes = served.server, read_shapes(served.base)
    before, base = server.digest_weights(), server.score("base")
    for seed in (1, 2):
        served.load(f"chat@s{seed}")
        served.point(f"chat@s{seed}")
        merged = score_merged(served.base, make_sparse(served.base, shapes, seed))
        assert find_difference(server.score("chat"), merged) < TOLERANCE
        assert find_difference(server.score("chat"), base) > 10 * TOLERANCE
        # The base does not answer under its name while its weights are another's.
        assert server.ask("/v1/completions", {"model": "base", "prompt": [1]})[0] == 404
    served.point(None)
    assert server.digest_weights() == before
    assert server.score("base") == base


@pytest.mark.parametrize("form", ["s", "l"])
def test_a_switch_fails_no_request_and_mixes_no_versions(served: Served, form: str):
    server, states = served.server, []
    for version in (f"chat@{form}1", f"chat@{form}2"):
        served.load(version)
        served.point(version)
        states.append(server.score("chat"))
    with client_asking(server, "chat") as answers:
        for number in (1, 2, 1, 2):
            served.point(f"chat@{form}{number}")
            wait_for_answers(answers)
            # The prefix cache gives none of the other version's either.
            assert is_like(answers[-1], [states[number - 1]])
    assert all(is_like(answer, states) for answer in answers), answers
    served.point(None)
    for number in (1, 2):
        server.post("/slora/unload", name=f"chat@{form}{number}")
    assert server.ask("/slora/state")[1]["adapters"] == {}


def test_a_version_that_can_not_be_applied_leaves_the_old_one_answering(served: Served):
    server = served.server
    for number in (1, 2):
        served.load(f"chat@s{number}")
    served.point("chat@s1")
    state, digests = server.score("chat"), server.digest_weights()
    # The newest patch file is that of the second adapter: a disk that fails.
    files = (served.folder / "tmp").glob("slora-serving-*/*/patches.safetensors")
    newest = max(files, key=lambda file: int(file.parent.name))
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    status, answer = server.ask("/slora/names", {"name": "chat", "to": "chat@s2"})
    assert status == 503 and "nothing was changed" in answer["error"]["message"]
    assert server.score("chat") == state and server.digest_weights() == digests
    newest.write_bytes(whole)
    served.point("chat@s2")
    assert server.digest_weights() != digests
    served.point(None)


def test_what_the_server_can_not_serve_is_refused_and_changes_nothing(served: Served):
    server, folder = served.server, served.folder
    served.load("chat@l1")
    served.load("chat@s1")
    assert server.ask("/slora/state", key="wrong")[0] == 401
    wrong = {"name": "x@v1", "path": str(folder / "s2"), "base_digest": "0" * 64}
    cases = [
        ("load", wrong, 400),
        ("load", {"name": "x@v1", "path": str(folder / "base")}, 400),
        ("load", {"name": "chat@l1", "path": str(folder / "l2")}, 409),
        ("names", {"name": "chat", "to": "chat@v9"}, 404),
        ("unload", {"name": "never@v1"}, 200),
    ]
    served.point("chat@s1")
    cases += [
        ("names", {"name": "other", "to": "chat@l1"}, 409),
        ("unload", {"name": "chat@s1"}, 409),
    ]
    for route, body, expected in cases:
        assert server.ask(f"/slora/{route}", body)[0] == expected, body
    # A LoRA over a patched base would be neither.
    assert server.ask("/v1/completions", {"model": "chat@l1", "prompt": [1]})[0] == 404
    served.point("chat@l1")
    listing = server.ask("/v1/models")[1]["data"]
    assert {card["id"] for card in listing} == {"base", "chat@l1", "chat"}
