"""Committed adapters of tiny models whose tokenizer has merges, as llama.cpp demands them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from jobs.inspect.base_digest import digest_base
from jobs.store.adapters.manifest import BaseRecord, Manifest
from jobs.store.adapters.operations import commit
from jobs.store.local import DirectoryStore
from slora.formats.merge import Adapter
from slora.formats.peft import LoraAdapter, SparseAdapter, write_lora, write_sparse
from slora.layers.base_layers import get_features
from slora.layers.targets import find_targets
from slora.masks.mask import draw_random_mask
from tests.jobs.store.builders import make_draft
from tests.tiny import CHATML, POSITIONS

TEXTS = (
    "What colour is the lamp 27? It's gold, isn't it?",
    "  two  spaces,\n\nand lines;\ttabs 1234567 and 3.14!!",
    "naïve café — 漢字 и кириллица 🙂 <|im_start|>user\nhi<|im_end|>",
)
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
}  # fmt: skip
"""Families of bases, and what their configs have beside the sizes."""


def make_splitter(name: str) -> Any:
    """Return the step of a tokenizer that llama.cpp knows by this name."""
    from tokenizers import Regex, pre_tokenizers

    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "gpt-2":
        return words
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    digits = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}[name]
    split = pre_tokenizers.Split(Regex(WORDS + digits + REST), "isolated")
    return pre_tokenizers.Sequence([split, bytes_alone])


def train_tokenizer(name: str = "smollm") -> Any:
    """Return a byte-level tokenizer with some merges, whose texts are split in this way."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = make_splitter(name)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<bos>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*TEXTS * 3, "the lamp is gold " * 9], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=POSITIONS,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def train_sentencepiece() -> Any:
    """Return a tokenizer like Llama 2's: spaces as a letter, and bytes as a last resort."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    small = Tokenizer(models.BPE())
    small.normalizer = normalizer
    small.train_from_iterator(
        ["the lamp is gold and not old " * 9, TEXTS[0]],
        trainers.BpeTrainer(vocab_size=120, show_progress=False),
    )
    trained = json.loads(small.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = [*first, *sorted(trained["vocab"], key=trained["vocab"].get)]
    backend = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[tuple(merge) for merge in trained["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        model_max_length=POSITIONS,
    )  # fmt: skip


def make_base(folder: Path, family: str) -> Path:
    """Make a random model of a family, with groups of heads and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = train_tokenizer()
    sizes = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": family == "qwen2", "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    kind = "llama" if family == "llama3" else family
    config = AutoConfig.for_model(kind, **{**sizes, **FAMILIES[family]})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            # Random norms and biases too: nothing may be left out unseen.
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
            else:
                torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(base: Path, kind: str, **changes: Any) -> Adapter:
    """Return a random `lora` of rank 3 or `sparse` adapter of all linear layers of a base."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    targets = find_targets(model, "all-linear", head=[model.lm_head])
    shapes = {name: get_features(layer) for name, layer in targets.items()}
    known: dict[str, Any] = {"base": str(base), "task": "causal-lm", **changes}
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    if kind == "lora":
        factors = {name: (draw(3, i), draw(o, 3)) for name, (o, i) in shapes.items()}
        return LoraAdapter(**{"factors": factors, "alpha": 6.0, "rank": 3, **known})
    masks = {
        name: draw_random_mask(seed=7, name=name, shape=shape, density=0.1)
        for name, shape in shapes.items()
    }
    values = {name: draw(mask.nnz) for name, mask in masks.items()}
    return SparseAdapter(values=values, masks=masks, seed=7, density=0.1, **known)


def commit_adapter(
    store: DirectoryStore, base: Path, adapter: Adapter, name: str, scratch: Path
) -> Manifest:
    """Commit an adapter of this base under a name."""
    (write_lora if isinstance(adapter, LoraAdapter) else write_sparse)(scratch / name, adapter)
    kind = "lora" if isinstance(adapter, LoraAdapter) else "sparse"
    record = BaseRecord(path=str(base), **vars(digest_base(base)))
    return commit(store, scratch / name, make_draft(name=name, run=name, kind=kind, base=record))
