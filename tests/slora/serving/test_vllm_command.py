"""`slora serve-model` with a real server, and a sparse adapter of a store."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from infra.local.processes import read_identity
from infra.local.serving_environment import find_serving_python
from jobs.inspect.base_digest import digest_base
from jobs.store.adapters.commit import commit
from jobs.store.adapters.manifest import BaseRecord
from jobs.store.local import DirectoryStore
from slora.formats.peft import write_sparse
from tests.benchmarks.serving import (
    TOLERANCE,
    find_difference,
    make_sparse,
    read_shapes,
    score_merged,
)
from tests.infra.local_stack import SLORA
from tests.jobs.store.builders import make_draft
from tests.tiny import tiny_chat_model
from tests.vllm_server import MAKE_IT, VllmClient, choose_port
from tests.waiting import wait_for


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(not find_serving_python().exists(), reason=f"no vLLM here: {MAKE_IT}")
def test_a_sparse_adapter_of_a_store_answers_until_the_command_is_interrupted(tmp_path: Path):
    model = tiny_chat_model(tmp_path / "model", hidden_size=128, intermediate_size=256)
    adapter, store = make_sparse(model, read_shapes(model), 1), DirectoryStore(tmp_path / "store")
    write_sparse(tmp_path / "adapter", adapter)
    base = BaseRecord(path=str(model), **vars(digest_base(model)))
    commit(store, tmp_path / "adapter", make_draft(name="chat", kind="sparse", base=base))
    port, log = choose_port(), tmp_path / "log"
    command = [SLORA, "serve-model", "--adapters", "chat", "--store", store.url(""),
               "--port", str(port), "--dtype", "float32"]  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        )  # fmt: skip
    try:
        wait_for(lambda: True if "Serving" in log.read_text() else process.poll(), timeout_s=800)
        assert process.poll() is None, log.read_text()[-2000:]
        children = psutil.Process(process.pid).children(recursive=True)
        server = VllmClient(f"http://127.0.0.1:{port}", log)
        assert "chat answers with chat@v1" in log.read_text() and len(children) >= 3
        assert find_difference(server.score("chat"), score_merged(model, adapter)) < TOLERANCE
    finally:
        process.terminate()
        assert process.wait(60) == 0
    assert not [child for child in children if read_identity(child.pid) is not None]
    assert not list(tmp_path.glob("slora-serv*"))
