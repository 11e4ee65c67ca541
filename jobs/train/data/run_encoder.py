"""The encoder of a run's rows: the base's tokenizer, with the tokens that the run trains."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from jobs.inspect.embedding_count import read_embedding_count
from jobs.inspect.encoder_decoders import END_CLASSIFIERS
from jobs.inspect.model_folder import read_config
from jobs.spec.schema import RunSpec
from jobs.train.data.tokenization import Encoder
from jobs.train.model.tokenizer import add_tokens, describe_trained_tokens, load_tokenizer


def make_run_encoder(spec: RunSpec, base: Path, labels: tuple[str, ...]) -> Encoder:
    """Return the encoder that a run of this spec has. Raise InputError."""
    tokenizer, tokens = load_tokenizer(str(base)), spec.method.train_tokens
    if tokens:
        add_tokens(tokenizer, tokens)
    return make_encoder(spec, base, tokenizer, labels)


def note_trained_tokens(spec: RunSpec, base: Path) -> str:
    """Return a note on the tokens that a run trains: which exist, and which become new ones. Raise
    InputError.
    """
    return describe_trained_tokens(load_tokenizer(str(base)), spec.method.train_tokens)


def make_encoder(
    spec: RunSpec, base: Path, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...]
) -> Encoder:
    """Return the encoder of a spec's rows with a tokenizer that has been loaded."""
    embeddings = read_embedding_count(base)
    if embeddings is not None and spec.method.train_tokens:
        # New tokens get embeddings of their own; None if this tokenizer does not have a token.
        ids = tokenizer.convert_tokens_to_ids(list(spec.method.train_tokens))
        embeddings = max([embeddings, *(number + 1 for number in ids if number is not None)])
    return Encoder(
        tokenizer,
        max_length=spec.data.max_length,
        labels=labels,
        embeddings=embeddings,
        is_seq2seq=spec.model.task == "seq2seq",
        reads_class_at_end=read_config(base)[0].get("model_type") in END_CLASSIFIERS,
    )
