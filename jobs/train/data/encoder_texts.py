"""Tokenise texts for an encoder: with the tokens that the tokenizer adds, cut by its own rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.errors import Fault, InputError
from jobs.train.data.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncoderText:
    """A text, or a pair of texts, as an encoder reads it."""

    ids: tuple[int, ...]
    truncated: int
    """Number of tokens that were cut off."""
    second: int
    """Start of the second text, whose tokens have the type 1; 0 if there is none."""


class EncoderTexts:
    """Tokenises texts with one tokenizer, to one length."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, special: SpecialTokens, max_length: int
    ) -> None:
        self._tokenizer: Any = tokenizer
        self._special, self._max_length = special, max_length

    def tokenize(self, text: str, text_pair: str | None = None) -> EncoderText:
        """Return the tokens of a text or a pair. Raise InputError."""
        special = self._tokenizer.num_special_tokens_to_add(pair=text_pair is not None)
        if self._max_length <= special:
            problem = f"{self._max_length} leaves no room beside {special} special tokens"
            raise InputError([Fault("data.max_length", problem, "Increase it.")])
        encoded = self._tokenizer(
            text,
            text_pair,
            truncation=True,
            max_length=self._max_length,
            # Only the tokenizer knows which special tokens must end a cut text, and what was cut.
            return_overflowing_tokens=True,
            verbose=False,
        )
        parts, types = _list_parts(encoded["input_ids"]), _list_parts(encoded.get("token_type_ids"))
        truncated = 0
        # Tokenizers without a fast form return what was cut beside the tokens.
        if len(parts) > 1 or encoded.get("overflowing_tokens"):
            whole = special + sum(len(self._special.tokenize(t)) for t in (text, text_pair or ""))
            truncated = whole - len(parts[0])
        return EncoderText(tuple(parts[0]), truncated, _find_second(types[0]))

    def tokenize_answer(self, text: str) -> tuple[tuple[int, ...], int]:
        """Return the tokens of a text that a decoder writes, with its end, and how many were cut
        off. A cut answer has no end: the model must not learn to stop in the middle.
        """
        ids = list(self._tokenizer(text_target=text, verbose=False)["input_ids"])
        end = self._tokenizer.eos_token_id
        # Some tokenizers write a language behind the end.
        if end is not None and end not in ids[-2:]:
            ids.append(int(end))
        length = min(len(ids), self._max_length)
        return tuple(ids[:length]), len(ids) - length

    def check_end(self, ids: tuple[int, ...], *, pair: bool, where: str) -> None:
        """Raise InputError if a row has another number of end tokens than all rows must have: the
        classifiers of encoder-decoders read the class at the last one.
        """
        end_text, expected = self._tokenizer.eos_token, self._special.count_ends(pair=pair)
        if not expected:
            problem = "the tokenizer ends no row with an end token, where the class is read"
            raise InputError([Fault("model.path", problem, "Use the model's own tokenizer.")])
        if (count := ids.count(self._tokenizer.eos_token_id)) != expected:
            problem = f"the row has {count} end tokens ({end_text}), but the model reads {expected}"
            raise InputError([Fault(where, problem, f"Remove {end_text} from its text.")])


def _list_parts(encoded: Any) -> list[list[int]]:
    """Return what a tokenizer makes of one text as a list of parts: it may be one part alone."""
    values = encoded or []
    return values if values and isinstance(values[0], list) else [values]


def _find_second(types: list[int]) -> int:
    """Return where the tokens of the type 1 begin, or 0 if they are not the last ones."""
    start = types.index(1) if 1 in types else 0
    return start if start and types == [0] * start + [1] * (len(types) - start) else 0
