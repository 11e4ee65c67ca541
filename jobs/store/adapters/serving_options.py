"""What a committed adapter can be served by, and how, from its manifest and its config file.

Of vLLM these are the facts of release 0.32: it reads a LoRA of any rank up to `--max-lora-rank`,
one of a fixed list, and no trained tokens, no Conv1D layers and no encoder-decoders. Its
classifiers and its fused experts depend on the model, so neither is promised here.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from jobs.errors import NotInStore
from jobs.store.adapters.manifest import AdapterFile, Manifest, detect_form
from jobs.store.base import ObjectStore
from jobs.store.blobs import get_blob_key
from jobs.store.strict_json import load_strictly

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's --max-lora-rank."""
MAX_CONFIG_BYTES = 1 << 20

VLLM, VLLM_PLUGIN = "vLLM", "vLLM with the plug-in of slora"
RAY_SERVE, LLAMA_CPP = "Ray Serve LLM", "llama.cpp"
TRANSFORMERS, PEFT = "transformers", "transformers with PEFT"

_CONFIGS = {
    "peft": "adapter_config.json",
    "compact": "sparse_config.json",
    "model": "config.json",
}
_TASKS = {
    "CAUSAL_LM": "causal-lm",
    "SEQ_2_SEQ_LM": "seq2seq",
    "SEQ_CLS": "sequence-classification",
}
_ARCHITECTURES = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForConditionalGeneration": "seq2seq",
    "ForSequenceClassification": "sequence-classification",
}
_OBSTACLES = {
    "trainable_token_indices": "it trains rows of the embedding",
    "target_parameters": "it adapts fused experts",
    "modules_to_save": "it trains whole modules",
    "fan_in_fan_out": "its layers are Conv1D",
}
"""Keys of adapter_config.json, and why vLLM and llama.cpp do not take such a LoRA."""
_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
}
_MERGED = "merged into a whole model"
_NOTES = {"seq2seq": "an encoder-decoder", "sequence-classification": "a classifier"}
_RAY_PATH = "BUCKET is an address as s3://BUCKET/PREFIX, and FOLDER is copied below it"
_GGUF_BASES = "the base must be a model of the Llama, Mistral, Qwen2 or Qwen3 family"


@dataclass(frozen=True)
class ServingOption:
    """A server that can answer with an adapter."""

    server: str
    prepare: str
    """The command that writes FOLDER; empty if the server needs none."""
    command: str
    """What to run, or to call in Python."""
    note: str = ""
    """What holds it back, or what is lost."""


def read_adapter_config(store: ObjectStore, manifest: Manifest) -> dict[str, Any]:
    """Return the config file in the adapter's folder; empty if it is absent or corrupt."""
    name = _CONFIGS[detect_form(manifest)]
    file = next((file for file in manifest.files if file.name == name), None)
    if file is None or file.size > MAX_CONFIG_BYTES:
        return {}
    for key in (manifest.prefix + name, get_blob_key(file.sha256)):
        data = _read_intact(store, key, file)
        if data is not None:
            return _parse_object(data)
    return {}


def list_serving_options(
    manifest: Manifest, config: Mapping[str, Any]
) -> tuple[ServingOption, ...]:
    """Return what can serve this adapter, the easiest first; nothing if its config says too little.

    `config`: adapter_config.json, sparse_config.json, or config.json of a full model.
    """
    form, task = detect_form(manifest), find_task(config)
    if task is None:
        return ()
    if task != "causal-lm":
        return (_make_transformers(manifest, form, task, _NOTES[task]),)
    if form == "model":
        return _list_for_model(manifest, form)
    merged = _list_for_model(manifest, "compact", _MERGED)
    rank = config.get("r" if form == "peft" else "rank")
    if form == "peft":
        if not _is_rank(rank):
            return ()
        obstacle = find_obstacle(config)
        if obstacle is None:
            return _list_for_lora(manifest, rank)
        return (
            _make_transformers(manifest, form, task, obstacle),
            *merged,
        )
    has_values = bool(config.get("values"))
    if has_values and rank is None and not config.get("tokens"):
        return (_make_plugin(manifest), *merged)
    if not has_values and _is_rank(rank) and not config.get("tokens"):
        return (*_list_for_exported(manifest, rank), *merged)
    return merged


def find_task(config: Mapping[str, Any]) -> str | None:
    """Return the task that an adapter's config names, or the class of a full model's."""
    if (task := _TASKS.get(str(config.get("task_type")))) is not None:
        return task
    classes = config.get("architectures")
    name = str(classes[0]) if isinstance(classes, list) and classes else ""
    return next((task for end, task in _ARCHITECTURES.items() if name.endswith(end)), None)


def find_obstacle(config: Mapping[str, Any]) -> str | None:
    """Return why vLLM and llama.cpp do not take a LoRA with this config; None if they do."""
    return next((text for key, text in _OBSTACLES.items() if config.get(key)), None)


def find_lora_bound(rank: int) -> int | None:
    """Return the smallest --max-lora-rank of vLLM that holds the rank; None above all of them."""
    return next((bound for bound in VLLM_RANKS if bound >= rank), None)


def _is_rank(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and value > 0


def _list_for_lora(manifest: Manifest, rank: int) -> tuple[ServingOption, ...]:
    llama = ServingOption(
        LLAMA_CPP,
        f"slora adapters export {manifest.label} FOLDER --as gguf-lora",
        "llama-server --model BASE.gguf --lora FOLDER/adapter.gguf",
        _GGUF_BASES,
    )
    peft = _make_transformers(manifest, "peft", "causal-lm")
    bound = find_lora_bound(rank)
    if bound is None:
        largest = VLLM_RANKS[-1]
        note = f"of rank {largest}, vLLM's largest: it loses a part of the rank of {rank}"
        smaller = f"slora adapters export {manifest.label} FOLDER --rank {largest}"
        return llama, peft, ServingOption(VLLM, smaller, _format_vllm(manifest, largest), note)
    pull = format_pull(manifest)
    ray = f"LoraConfig(dynamic_lora_loading_path=BUCKET), engine_kwargs: max_lora_rank={bound}"
    return (
        ServingOption(VLLM, pull, _format_vllm(manifest, bound)),
        ServingOption(RAY_SERVE, pull, ray, _RAY_PATH),
        llama,
        peft,
    )


def _list_for_exported(manifest: Manifest, rank: int) -> tuple[ServingOption, ...]:
    """Return vLLM with the LoRA that compact factors are."""
    if (bound := find_lora_bound(rank)) is None:
        return ()
    export = f"slora adapters export {manifest.label} FOLDER --rank {rank}"
    note = "a LoRA of that rank holds all of it"
    return (ServingOption(VLLM, export, _format_vllm(manifest, bound), note),)


def _list_for_model(manifest: Manifest, form: str, note: str = "") -> tuple[ServingOption, ...]:
    """Return what serves a whole model: the adapter's own folder, or the merged one."""
    prepare = _format_prepare(manifest, form)
    gguf = f"slora adapters export {manifest.label} FOLDER --as gguf"
    return (
        ServingOption(VLLM, prepare, "vllm serve FOLDER", note),
        ServingOption(RAY_SERVE, prepare, "ModelLoadingConfig(model_source=FOLDER)", note),
        ServingOption(LLAMA_CPP, gguf, "llama-server --model FOLDER/model.gguf", _GGUF_BASES),
        _make_transformers(manifest, form, "causal-lm", note),
    )


def _make_plugin(manifest: Manifest) -> ServingOption:
    return ServingOption(
        VLLM_PLUGIN,
        format_pull(manifest),
        f"VLLM_PLUGINS=slora vllm serve {shlex.quote(manifest.base.path)} "
        "--worker-extension-cls slora.serving.worker_extension.SparseWeightWorker",
        "exact and without a copy of the base; slora deploy lets it answer there",
    )


def _make_transformers(manifest: Manifest, form: str, task: str, note: str = "") -> ServingOption:
    prepare = _format_prepare(manifest, form)
    if form == "peft":
        return ServingOption(PEFT, prepare, "PeftModel.from_pretrained(base, FOLDER)", note)
    return ServingOption(TRANSFORMERS, prepare, f"{_CLASSES[task]}.from_pretrained(FOLDER)", note)


def format_pull(manifest: Manifest) -> str:
    """Return the command that writes the adapter's own folder."""
    return f"slora adapters pull {manifest.label} FOLDER"


def _format_prepare(manifest: Manifest, form: str) -> str:
    """Return the command that writes a folder which transformers or PEFT reads."""
    if form == "compact":
        return f"slora adapters merge {manifest.label} FOLDER"
    return format_pull(manifest)


def _format_vllm(manifest: Manifest, bound: int) -> str:
    base = shlex.quote(manifest.base.path)
    modules = f"--lora-modules {manifest.name}=FOLDER"
    return f"vllm serve {base} --enable-lora --max-lora-rank {bound} {modules}"


def _read_intact(store: ObjectStore, key: str, file: AdapterFile) -> bytes | None:
    """Return the bytes of a file, or None if they are absent or not the manifest's."""
    try:
        data = store.read(key, 0, MAX_CONFIG_BYTES)
    except NotInStore:
        return None
    return data if hashlib.sha256(data).hexdigest() == file.sha256 else None


def _parse_object(data: bytes) -> dict[str, Any]:
    try:
        value = load_strictly(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
