"""The rows of a run are encoded with the tokens that it trains."""

from __future__ import annotations

from pathlib import Path

from jobs.inspect.datasets.scan import scan_dataset
from jobs.spec.load import validate_spec
from jobs.train.data.run_encoder import make_run_encoder
from jobs.train.data.token_pass import make_token_inputs
from tests.tiny import HOLLOW_VOCABULARY, chat_rows, hollow_model, tiny_spec


def test_a_new_token_is_one_token_with_an_embedding(tmp_path: Path):
    folder = hollow_model(tmp_path / "model")
    spec = validate_spec(tiny_spec(tmp_path, method={"train_tokens": ["<tool>"]}))
    encoder = make_run_encoder(spec, folder, ())
    assert encoder.tokenizer.convert_tokens_to_ids("<tool>") == HOLLOW_VOCABULARY
    assert encoder.tokenizer("a<tool>").input_ids[-1] == HOLLOW_VOCABULARY
    assert encoder.embeddings == HOLLOW_VOCABULARY + 1


def test_rows_are_tokenised_again_where_other_tokens_are_trained(tmp_path: Path):
    folder, rows = hollow_model(tmp_path / "model"), chat_rows(tmp_path / "train.jsonl", 4)
    scan = scan_dataset(str(rows), "chat", "causal-lm", "data.train")
    tables = {
        make_token_inputs(
            validate_spec(tiny_spec(tmp_path, method={"train_tokens": tokens})), folder, scan, ()
        ).find_table()
        for tokens in ([], ["<tool>"])
    }
    assert len(tables) == 2
