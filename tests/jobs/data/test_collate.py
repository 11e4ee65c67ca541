"""Padding: a classifier gives a row the logits that it gives to the row alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import XLNetConfig, XLNetForSequenceClassification

from jobs.inspect.embedding_count import classifies_last_position
from jobs.train.data.collate import Collator
from jobs.train.data.packing import join_samples
from jobs.train.data.tokenization import Sample

ROW, LONGER = (5, 6, 7), (8, 9, 10, 11, 12)


@pytest.mark.parametrize("pads_left", [True, False])
def test_xlnet_reads_the_last_position_and_is_right_with_padding_on_the_left_only(pads_left: bool):
    torch.manual_seed(0)
    config = XLNetConfig(
        vocab_size=20, d_model=16, n_layer=1, n_head=2, d_inner=32, pad_token_id=0,
        initializer_range=0.5,
    )  # fmt: skip
    model = XLNetForSequenceClassification(config).eval()
    collate = Collator(0, "off", "class", False, pads_left)
    batch = collate(
        [join_samples([Sample(ids, (1,), kind="class")]) for ids in (ROW, LONGER)], length=6
    )
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([ROW])).logits[0]
        padded = model(**batch.inputs).logits[0]
    assert torch.allclose(padded, alone, atol=1e-5) == pads_left


@pytest.mark.parametrize("pads_left", [True, False])
def test_a_row_without_tokens_attends_to_one_position_where_all_rows_have_a_token(pads_left: bool):
    collate = Collator(0, "off", "class", False, pads_left)
    row = join_samples([Sample(ROW, (1,), kind="class")])
    empty = join_samples([Sample((), (1,), kind="class")])
    mask = collate([row, empty], length=5).inputs["attention_mask"]
    assert mask.sum(1).tolist() == [3, 1]
    assert mask[:, -1 if pads_left else 0].tolist() == [1, 1]


def test_the_config_tells_whether_a_classifier_reads_the_last_position(tmp_path: Path):
    XLNetConfig().save_pretrained(tmp_path)
    assert classifies_last_position(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"summary_type": "first"}))
    assert not classifies_last_position(tmp_path)
