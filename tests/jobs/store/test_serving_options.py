"""What an adapter can be served by: one function of its manifest and its config file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.store.adapters.manifest import AdapterFile, BaseRecord, Manifest
from jobs.store.adapters.operations import commit
from jobs.store.adapters.serving_options import (
    LLAMA_CPP,
    PEFT,
    RAY_SERVE,
    TRANSFORMERS,
    VLLM,
    VLLM_PLUGIN,
    find_lora_bound,
    list_serving_options,
    read_adapter_config,
)
from jobs.store.local import DirectoryStore
from tests.jobs.store.builders import DIGESTS, make_adapter_folder, make_draft

LORA = {"task_type": "CAUSAL_LM", "r": 24}
SPARSE = {"task_type": "CAUSAL_LM", "values": ["model.layers.0.mlp.up_proj"], "rank": None}
COMPACT = {"task_type": "CAUSAL_LM", "values": [], "rank": 32}
MERGED = [VLLM, RAY_SERVE, LLAMA_CPP, TRANSFORMERS]
CONFIG_FILES = {"peft": "adapter_config.json", "compact": "sparse_config.json"}


def make_manifest(form: str) -> Manifest:
    kind = {"kind": "full"} if form == "model" else {}
    base = BaseRecord(path="bases/a model", digest=DIGESTS["a"])
    file = AdapterFile(name=CONFIG_FILES.get(form, "config.json"), size=2, sha256=DIGESTS["d"])
    draft = make_draft(base=base, **kind).model_dump()
    return Manifest(**draft, version=3, created="2026-01-01T00:00:00Z", files=(file,))


CASES: list[tuple[str, str, dict[str, Any], list[str]]] = [
    ("a LoRA", "peft", LORA, [VLLM, RAY_SERVE, LLAMA_CPP, PEFT]),
    ("a LoRA above vLLM's ranks", "peft", {**LORA, "r": 600}, [LLAMA_CPP, PEFT, VLLM]),
    ("trained tokens", "peft", {**LORA, "trainable_token_indices": {"embed_tokens": [3]}},
     [PEFT, *MERGED]),
    ("fused experts", "peft", {**LORA, "target_parameters": ["x"]}, [PEFT, *MERGED]),
    ("Conv1D", "peft", {**LORA, "fan_in_fan_out": True}, [PEFT, *MERGED]),
    ("a classifier", "peft", {**LORA, "task_type": "SEQ_CLS"}, [PEFT]),
    ("an encoder-decoder", "peft", {**LORA, "task_type": "SEQ_2_SEQ_LM"}, [PEFT]),
    ("sparse values", "compact", SPARSE, [VLLM_PLUGIN, *MERGED]),
    ("values beside factors", "compact", {**SPARSE, "rank": 8}, MERGED),
    ("values and tokens", "compact", {**SPARSE, "tokens": {"embed": [1]}}, MERGED),
    ("compact factors", "compact", COMPACT, [VLLM, *MERGED]),
    ("a sparse classifier", "compact", {**SPARSE, "task_type": "SEQ_CLS"}, [TRANSFORMERS]),
    ("a full model", "model", {"architectures": ["LlamaForCausalLM"]}, MERGED),
    ("a full classifier", "model", {"architectures": ["BertForSequenceClassification"]},
     [TRANSFORMERS]),
    ("a config that says nothing", "peft", {"says": "weights"}, []),
    ("a rank that is none", "peft", {**LORA, "r": "8"}, []),
    ("a full model of an unknown class", "model", {"architectures": "Llama"}, []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "config", "servers"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_form_names_its_servers(form: str, config: dict[str, Any], servers: list[str]):
    options = list_serving_options(make_manifest(form), config)
    assert [option.server for option in options] == servers


def test_a_command_names_base_adapter_and_the_smallest_rank_that_vllm_allows():
    vllm, ray, llama, peft = list_serving_options(make_manifest("peft"), LORA)
    assert vllm.prepare == "slora adapters pull chat@v3 FOLDER"
    assert vllm.command == (
        "vllm serve 'bases/a model' --enable-lora --max-lora-rank 32 --lora-modules chat=FOLDER"
    )
    assert "max_lora_rank=32" in ray.command
    assert llama.prepare == "slora adapters export chat@v3 FOLDER --as gguf-lora"
    assert peft.command == "PeftModel.from_pretrained(base, FOLDER)"


def test_a_sparse_adapter_is_merged_for_servers_without_the_plugin():
    plugin, vllm, _, llama, transformers = list_serving_options(make_manifest("compact"), SPARSE)
    assert plugin.command.startswith("VLLM_PLUGINS=slora vllm serve 'bases/a model' --worker")
    merge = "slora adapters merge chat@v3 FOLDER"
    assert (vllm.prepare, vllm.command) == (merge, "vllm serve FOLDER")
    assert llama.prepare == "slora adapters export chat@v3 FOLDER --as gguf"
    assert transformers.prepare == merge
    assert transformers.command == "AutoModelForCausalLM.from_pretrained(FOLDER)"


@pytest.mark.parametrize(
    ("rank", "bound"), [(1, 1), (2, 8), (8, 8), (16, 16), (257, 320), (512, 512), (513, None)]
)
def test_the_bound_of_the_rank_is_one_of_vllms(rank: int, bound: int | None):
    assert find_lora_bound(rank) == bound


def test_a_config_is_read_from_the_folder_or_its_blob_and_never_if_it_changed(tmp_path: Path):
    store = DirectoryStore(tmp_path / "store")
    manifest = commit(store, make_adapter_folder(tmp_path / "folder"), make_draft())
    key = manifest.prefix + "adapter_config.json"
    assert read_adapter_config(store, manifest) == {"says": "weights"}
    store.put(key, b'{"says": "changed"}')
    assert read_adapter_config(store, manifest) == {"says": "weights"}
    store.delete(key)
    [blob] = [blob for blob in store.list("blobs/") if store.get(blob).startswith(b"{")]
    store.put(blob, b'{"says": "changed"}')
    assert read_adapter_config(store, manifest) == {}
