"""A description that takes too much memory or time ends as a fault, and harms no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import hollow_model

ROOT = Path(__file__).parents[3]
CODE = """
import json, sys
import jobs.train.model.inspect_main as main
request = {"question": "describe", "folder": sys.argv[1], "task": "causal-lm"}
main.MAX_MEMORY, bound = 1 << 16, main.MAX_MEMORY
small = main.answer_request(request)
main.MAX_MEMORY, main.TIMEOUT_S, timeout = bound, 0, main.TIMEOUT_S
late = main.answer_request(request)
main.TIMEOUT_S = timeout
print(json.dumps([json.loads(answer) for answer in (small, late, main.answer_request(request))]))
"""


@pytest.mark.slow
def test_a_description_is_bounded_in_memory_and_time(tmp_path: Path):
    folder = hollow_model(tmp_path / "model")
    result = subprocess.run(
        [sys.executable, "-c", CODE, str(folder)],
        capture_output=True, check=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    small, late, answer = json.loads(result.stdout.splitlines()[-1])
    for refused in (small, late):
        [fault] = refused["faults"]
        assert fault["key"] == "model.path" and str(folder) in fault["problem"] and fault["remedy"]
    assert answer["answer"]["model_class"] == "LlamaForCausalLM"
