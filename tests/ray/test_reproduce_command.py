"""`slora reproduce` of a real training: equal to the bit on CPUs, or refused with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.store.open import open_store
from tests.ray_head import Head
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
SLORA = str(Path(sys.executable).with_name("slora"))


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_is_reproduced_to_the_bit_and_never_from_other_inputs(
    head: Head, tmp_path: Path, workers: int
):
    head.wait_for_agent()

    def slora(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SLORA, *words],
            env={**head.environment, "RAY_ADDRESS": head.url},
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )

    tiny_chat_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 40)
    spec = tiny_spec(
        tmp_path, data={"eval_fraction": 0.2}, train={"steps": 4}, cluster={"workers": workers}
    )
    done = slora("train", str(write_spec(tmp_path / "spec.yaml", spec)), "--json")
    assert done.returncode == 0, done.stderr
    store = open_store(spec["store"])
    before = list(store.list(""))

    again = slora("reproduce", "tiny@v1", "--store", spec["store"], "--json")
    assert again.returncode == 0, again.stderr
    answer = json.loads(again.stdout)
    assert answer["same"] and answer["different"] == {} and answer["tolerance"] == 0
    assert answer["equal"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert list(store.list("")) == before

    chat_rows(tmp_path / "train.jsonl", 41)
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    for change, says in (
        ("the base is gone", "no such model folder"),
        ("rows", "the recorded digest"),
    ):
        refused = slora("reproduce", "tiny@v1", "--store", spec["store"])
        assert refused.returncode == 2, change
        assert says in refused.stderr and "run tiny-" not in refused.stderr
        if not (tmp_path / "model").exists():
            (tmp_path / "elsewhere").rename(tmp_path / "model")
