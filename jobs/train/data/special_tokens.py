"""The tokens that begin and end texts and turns: those of the tokenizer, and the template's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "probe"


class SpecialTokens:
    """What a tokenizer adds around a text, and which of its tokens control a model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._blank, self._end_counts = dict[int, bool](), dict[bool, int]()

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """The tokens that the tokenizer puts before a text, such as BOS."""
        return self._added[0]

    @cached_property
    def suffix(self) -> tuple[int, ...]:
        """The tokens that end a text: what the tokenizer adds, or its EOS."""
        if self._added[1]:
            return self._added[1]
        eos = self._tokenizer.eos_token_id
        return () if eos is None else (int(eos),)

    def count_ends(self, *, pair: bool) -> int:
        """Count the end tokens that the tokenizer adds to a text, or to a pair of texts."""
        if pair not in self._end_counts:
            ids = self._tokenizer(PROBE, PROBE if pair else None, verbose=False)["input_ids"]
            self._end_counts[pair] = list(ids).count(self._tokenizer.eos_token_id)
        return self._end_counts[pair]

    @cached_property
    def control(self) -> frozenset[int]:
        """All tokens that stand for no text: special ones, and added ones that are not blank."""
        added = {
            int(number)
            for number, token in self._tokenizer.added_tokens_decoder.items()
            if token.content.strip()
        }
        return frozenset(map(int, self._tokenizer.all_special_ids)) | added

    def is_blank(self, token: int) -> bool:
        """Return whether a token is white space."""
        if token not in self._blank:
            self._blank[token] = not str(self._tokenizer.decode([token])).strip()
        return self._blank[token]

    def is_silent(self, token: int) -> bool:
        """Return whether a token is white space or controls the model."""
        return token in self.control or self.is_blank(token)

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text, without any that the tokenizer adds."""
        if not text:
            return []
        encoded = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids: list[int] = list(encoded)
        return ids

    def find_first_control(self, text: str) -> int | None:
        """Return the first control token of a text, or None."""
        return next((token for token in self.tokenize(text) if token in self.control), None)

    @cached_property
    def joins_with_space(self) -> bool:
        """Whether a text that is tokenised apart begins with a space, as in SentencePiece."""
        first, second = "a:", "b"
        decode = self._tokenizer.decode
        if str(decode(self.tokenize(first + second))).strip() != first + second:
            return False
        parts = [*self.tokenize(first), *self.tokenize(second)]
        return str(decode(parts)).strip() == f"{first} {second}"

    @cached_property
    def _added(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        # The mask tells what is added from what stands for the text, which may be an unknown word.
        encoded = self._tokenizer(PROBE, return_special_tokens_mask=True, verbose=False)
        ids, is_added = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
        text = [at for at, added in enumerate(is_added) if not added]
        if not text:
            return (), ()
        return tuple(ids[: text[0]]), tuple(ids[text[-1] + 1 :])


def find_end_ids(
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: Any = None,
    folder: Path | None = None,
    end_of_turn: int | None = None,
) -> tuple[int, ...]:
    """Return every token that ends an answer: the tokenizer's, the template's and those of the
    generation config of a model, or of the file in its folder.
    """
    config: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if folder is not None:
        config = _read_generation_config(folder)
    configured = config if isinstance(config, list | tuple) else [config]
    ids: Iterable[Any] = (tokenizer.eos_token_id, *configured, end_of_turn)
    return tuple(dict.fromkeys(value for value in ids if isinstance(value, int)))


def find_decoder_start(model: Any) -> dict[str, Any]:
    """Return the settings for the first tokens of an answer; empty for a model without an encoder.
    They are those of the model's generation config, or of its config.
    """
    if not model.config.is_encoder_decoder:
        return {}
    settings = {}
    for name in ("decoder_start_token_id", "forced_bos_token_id", "bos_token_id"):
        sources = (model.generation_config, model.config)
        settings[name] = next(
            (value for s in sources if (value := getattr(s, name, None)) is not None), None
        )
    return settings


def _read_generation_config(folder: Path) -> Any:
    try:
        config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config.get("eos_token_id") if isinstance(config, dict) else None
