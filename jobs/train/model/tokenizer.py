"""The base's tokenizer through transformers, from a folder. It needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from jobs.errors import Fault, InputError

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the model's own tokenizer, with its chat template; it pads as the model expects.

    Raise InputError.
    """
    # A tokenizer's files may raise any exception: many libraries read them.
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **LOCAL)
        pad_id = _read_pad_id(path)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        problem = f"the tokenizer in {path} can't be loaded ({reason})"
        remedy = "Save it again: tokenizer.save_pretrained(folder)."
        raise InputError([Fault("model.path", problem, remedy)]) from error
    # A classifier finds the end of a row, and some encoders its positions, by the config's id.
    if isinstance(pad_id, int) and 0 <= pad_id < len(tokenizer):
        if pad_id != tokenizer.pad_token_id:
            tokenizer.pad_token = str(tokenizer.convert_ids_to_tokens(pad_id))
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _read_pad_id(path: str) -> Any:
    """Return the padding id of the model's config; None without one, as in an adapter's folder."""
    if not (Path(path) / "config.json").is_file():
        return None
    return getattr(
        AutoConfig.from_pretrained(path, **LOCAL).get_text_config(), "pad_token_id", None
    )


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Return the tokens' ids; tokens that the tokenizer does not have are added to it."""
    tokenizer.add_tokens(list(tokens))
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    assert isinstance(ids, list)
    return ids


def describe_trained_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> str:
    """Return which of method.train_tokens the tokenizer has, and which become new ones.

    Many tokenizers write the space before a word in their own way: a new token says so if it looks
    like a token that exists. The tokens must not have been added yet.
    """
    vocabulary = tokenizer.get_vocab()
    known = [repr(token) for token in tokens if token in vocabulary]
    new = list[str]()
    for token in tokens:
        if token not in vocabulary:
            spelling = tokenizer.tokenize(token)
            has_twin = len(spelling) == 1 and spelling != [tokenizer.unk_token]
            twin = f" (the tokenizer has {spelling[0]!r} for it)" if has_twin else ""
            new.append(f"{token!r}{twin}")
    parts = [f"{', '.join(known)} of the tokenizer"] if known else []
    parts += [f"{', '.join(new)} as new"] if new else []
    return f"method.train_tokens: {' and '.join(parts)}"


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save a tokenizer to one flat folder: several chat templates would get a folder of their own,
    which a store does not hold.
    """
    has_several = isinstance(tokenizer.chat_template, dict)
    tokenizer.save_pretrained(folder, **({"save_jinja_files": False} if has_several else {}))
