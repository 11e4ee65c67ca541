"""Models of a few thousand weights, rows and a spec for them: all that a run needs, in a second.

torch and transformers are imported inside the makers of models: tests without torch read this too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
POSITIONS = 128
"""Positions of both tiny models."""
HOLLOW_VOCABULARY = 260
"""The bytes and four special tokens."""

HOLLOW = {
    "model.embed_tokens.weight": (HOLLOW_VOCABULARY, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (16, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 16),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.norm.weight": (8,),
    "lm_head.weight": (HOLLOW_VOCABULARY, 8),
}
"""The weights of a hollow model: a Llama of one layer."""

HOLLOW_TARGETS = ["q_proj", "k_proj", "up_proj"]
"""Layers of it in three shapes: 8 x 8, 4 x 8 and 16 x 8."""

_ENCODER_LAYER = {
    "attention.self.query": (8, 8),
    "attention.self.key": (8, 8),
    "attention.self.value": (8, 8),
    "attention.output.dense": (8, 8),
    "attention.output.LayerNorm": (8,),
    "intermediate.dense": (16, 8),
    "output.dense": (8, 16),
    "output.LayerNorm": (8,),
}
HOLLOW_ENCODER = {
    "embeddings.word_embeddings.weight": (HOLLOW_VOCABULARY, 8),
    "embeddings.position_embeddings.weight": (POSITIONS, 8),
    "embeddings.token_type_embeddings.weight": (2, 8),
    "embeddings.LayerNorm.weight": (8,),
    "embeddings.LayerNorm.bias": (8,),
    **{f"encoder.layer.0.{name}.weight": shape for name, shape in _ENCODER_LAYER.items()},
    **{f"encoder.layer.0.{name}.bias": shape[:1] for name, shape in _ENCODER_LAYER.items()},
    "pooler.dense.weight": (8, 8),
    "pooler.dense.bias": (8,),
}
"""The weights of a hollow encoder: a BERT of one layer."""

COLOURS = ("red", "green", "blue", "white", "black", "brown", "gold")
THINGS = ("cup", "boat", "hat", "stone", "leaf", "lamp", "drum", "coat", "bell", "key", "rope")


def tiny_chat_model(folder: Path, **sizes: int) -> Path:
    """Make a random Llama with a byte-level tokenizer and a ChatML template, as safetensors.

    `sizes` override its configuration's.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _byte_tokenizer()
    tokenizer.chat_template = CHATML
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(
        **{**small, **sizes},
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return _saved(model, tokenizer, folder)


def tiny_gpt2(folder: Path) -> Path:
    """Make a random GPT-2, whose linear layers are Conv1D, with the tokenizer of the Llama."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = _byte_tokenizer()
    tokenizer.chat_template = CHATML
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    return _saved(model, tokenizer, folder)


def tiny_encoder(folder: Path) -> Path:
    """Make a random BERT with a byte-level tokenizer, as safetensors."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = _byte_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    return _saved(model, tokenizer, folder)


def tiny_relative(folder: Path, kind: str) -> Path:
    """Make a random `distilbert` or `albert`, whose trained weights no registry has, as
    safetensors.

    ALBERT's layers are one module that is called three times.
    """
    import torch
    from transformers import AlbertConfig, AlbertModel, DistilBertConfig, DistilBertModel

    tokenizer = _byte_tokenizer()
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": POSITIONS,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any
        if kind == "distilbert":
            model = DistilBertModel(
                DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=4, **shared)
            )
        else:
            model = AlbertModel(
                AlbertConfig(
                    embedding_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                    num_attention_heads=4, **shared,
                )
            )  # fmt: skip
    return _saved(model, tokenizer, folder)


def tiny_encoder_decoder(folder: Path, kind: str = "t5") -> Path:
    """Make a random `t5` or `bart` whose byte-level tokenizer ends each text, as safetensors."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    from tests.model_kinds import save_model

    save_model(kind, folder)
    tokenizer = _byte_tokenizer()
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end[0]}", pair=f"$A {end[0]} $B {end[0]}", special_tokens=[end]
    )
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"][-1] == end[1]
    return folder


def hollow_model(folder: Path, *, says: Mapping[str, Any] | None = None) -> Path:
    """Make the files of a small Llama, or of a BERT if `says` names it, without torch: zero
    weights.

    `says` overrides its config.json; None removes a key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": HOLLOW_VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": False,
    }
    config = merge_spec(config, says or {})
    shapes = HOLLOW_ENCODER if config.get("model_type") == "bert" else HOLLOW
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    (folder / "model.safetensors").write_bytes(safetensors(shapes))
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of bytes with a chat template, without torch."""
    backend = _byte_backend()
    backend.add_special_tokens(["<pad>", "<bos>", "<|im_start|>", "<|im_end|>"])
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text(CHATML)


def safetensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Make a safetensors file of zeros in float32."""
    header, at = dict[str, Any](), 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(at)


def chat_rows(path: Path, count: int) -> Path:
    """Make conversations of one question and one answer, each different from its neighbours."""
    return _write_rows(path, [_conversation(number) for number in range(count)])


def pair_rows(path: Path, count: int) -> Path:
    """Make prompts of one question with its answer."""
    rows = [
        {"prompt": f"What colour is the {_thing(number)}?", "completion": COLOURS[number % 3]}
        for number in range(count)
    ]
    return _write_rows(path, rows)


def labelled_rows(path: Path, labels: Sequence[Any]) -> Path:
    """Make texts with these labels: lists of names, or numbers."""
    rows = [
        {"text": f"the {_thing(at)}: {label}", "label": label} for at, label in enumerate(labels)
    ]
    return _write_rows(path, rows)


def label_rows(path: Path, count: int, labels: Sequence[str] = ("warm", "cold")) -> Path:
    """Make texts that contain their label, the labels in turn."""
    rows = [
        {"text": f"the {_thing(number)} is {labels[number % len(labels)]}",
         "label": labels[number % len(labels)]}
        for number in range(count)
    ]  # fmt: skip
    return _write_rows(path, rows)


def tiny_spec(folder: Path, **overrides: Any) -> dict[str, Any]:
    """Make a valid spec as plain values, for `folder`/model, train.jsonl and store, without these.

    A given section is merged into the existing one; None removes a key.
    """
    spec: dict[str, Any] = {
        "name": "tiny",
        "model": {"path": str(folder / "model"), "task": "causal-lm", "dtype": "float32"},
        "data": {"train": str(folder / "train.jsonl"), "format": "chat", "max_length": 64},
        "method": {"kind": "slora", "density": 0.05, "rank": 2},
        "train": {
            "steps": 6,
            "batch_size": 4,
            "micro_batch_size": 1,
            "learning_rate": 1e-2,
            "head_learning_rate": 1e-2,
        },
        "cluster": {"workers": 1},
        "store": f"file://{folder / 'store'}",
    }
    return merge_spec(spec, overrides)


def merge_spec(spec: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec with the changes, section by section; None removes a key."""
    merged = dict(spec)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge_spec(merged[key], value)
        else:
            merged[key] = value
    return merged


def write_spec(path: Path, spec: Mapping[str, Any]) -> Path:
    """Write the spec as a YAML file."""
    path.write_text(yaml.safe_dump(dict(spec), sort_keys=False), encoding="utf-8")
    return path


def _conversation(number: int) -> dict[str, Any]:
    colour = COLOURS[number % len(COLOURS)]
    question = f"What colour is the {_thing(number)}?"
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"It is {colour}."},
        ]
    }


def _thing(number: int) -> str:
    return f"{THINGS[number % len(THINGS)]} {number}"


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _byte_backend() -> Any:
    """Make a tokenizer with a token for each byte, and four of its own: nothing is unknown or
    trained.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    specials = ["<pad>", "<bos>", "<|im_start|>", "<|im_end|>"]
    words = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_tokenizer() -> Any:
    """Make the same tokenizer for transformers."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_backend(),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=POSITIONS,
    )


def _saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
