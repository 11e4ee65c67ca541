"""Write a tokenizer into a GGUF file, as llama.cpp's tokenizers read it.

llama.cpp knows a byte-level tokenizer by the name of what splits its texts (`tokenizer.ggml.pre`):
its regular expressions are compiled in. The one of this tokenizer is found by what its own
tokenizer.json says; one that llama.cpp would split otherwise is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from jobs.errors import Fault, InputError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _WORDS + r"\p{N}" + _REST: "qwen2",
}
"""Regular expressions of tokenizers, and llama.cpp's names of them."""


def add_vocabulary(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, folder: Path, *, rows: int
) -> None:
    """Write the tokenizer that lies in `folder`, for an embedding of this many rows.

    Raise InputError for one that llama.cpp would not read as transformers does.
    """
    description = _read_description(folder)
    if description["model"].get("byte_fallback"):
        _add_sentencepiece(writer, tokenizer, folder, rows)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(find_splitter(description))
        tokens, types = _list_tokens(tokenizer, rows)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
    special = gguf.SpecialVocab(folder, load_merges=not description["model"].get("byte_fallback"))
    special.add_to_gguf(writer, quiet=True)


def find_splitter(description: dict[str, Any]) -> str:
    """Return llama.cpp's name of what splits texts, from tokenizer.json. Raise InputError."""
    steps = description.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers") or [steps]
    kinds = [step.get("type") for step in steps]
    has_regex = bool(steps[-1].get("use_regex"))
    if kinds == ["ByteLevel"] and has_regex and not steps[0].get("add_prefix_space"):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and has_regex and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not has_regex:
        pattern = (steps[0].get("pattern") or {}).get("Regex")
        if (name := _SPLITS.get(str(pattern))) is not None:
            return name
    raise _make_error(f"its tokenizer splits texts ({', '.join(map(str, kinds))}) in no known way")


def _add_sentencepiece(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, folder: Path, rows: int
) -> None:
    """Write a tokenizer with bytes as a last resort, as those of Llama 2 and Mistral."""
    vocabulary = gguf.LlamaHfVocab(folder)
    tokens, scores, types = map(list, zip(*vocabulary.all_tokens(), strict=True))
    for number in range(len(tokens), rows):
        tokens.append(f"[PAD{number}]".encode())
        scores.append(-1000.0)
        types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)


def _list_tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[list[str], list[int]]:
    """Return the token and its type for each row of the embedding."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = list[str](), list[int]()
    for number in range(rows):
        if number not in by_id:
            tokens.append(f"[PAD{number}]")
            types.append(gguf.TokenType.UNUSED)
        elif number in added:
            tokens.append(str(added[number].content))
            is_special = added[number].special
            types.append(gguf.TokenType.CONTROL if is_special else gguf.TokenType.USER_DEFINED)
        else:
            tokens.append(by_id[number])
            types.append(gguf.TokenType.NORMAL)
    return tokens, types


def _read_description(folder: Path) -> dict[str, Any]:
    try:
        description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _make_error("it has no readable tokenizer.json") from error
    if (description.get("model") or {}).get("type") != "BPE":
        raise _make_error("its tokenizer is not one of byte pairs")
    return dict(description)


def _make_error(problem: str) -> InputError:
    remedy = "Use --as merged, and llama.cpp's own convert_hf_to_gguf.py on that folder."
    return InputError([Fault("--as", problem, remedy)])
