"""Samples of an encoder-decoder: its answers to prompts, each as it answers it alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.train.data.source import RowSource
from jobs.train.data.tokenization import Encoder
from jobs.train.model.base_model import load_model
from jobs.train.model.tokenizer import load_tokenizer
from jobs.train.samples import generate_answers, pick_prompts
from tests.tiny import pair_rows, tiny_encoder_decoder


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_prompt_is_answered_the_same_in_a_batch_and_alone(kind: str, tmp_path: Path):
    folder = str(tiny_encoder_decoder(tmp_path / "model", kind))
    encoder = Encoder(load_tokenizer(folder), max_length=64, is_seq2seq=True)
    source = RowSource((pair_rows(tmp_path / "d.jsonl", 30),), "prompt-completion")
    prompts = pick_prompts(source, encoder)
    assert len(prompts) == 3 and prompts[0].expected == "blue"
    assert len({len(prompt.token_ids) for prompt in prompts}) > 1
    assert all(p.token_ids[-1] == encoder.tokenizer.eos_token_id for p in prompts)
    model = load_model(folder, task="seq2seq", dtype="float32")
    answers = generate_answers(model, prompts, encoder, torch.device("cpu"))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert generate_answers(model, [prompt], encoder, torch.device("cpu")) == [answer]
