"""Packing is exact or off, for each kind of architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from jobs.errors import InputError
from jobs.plan.packing_choice import UNDECIDED, PackingChoice
from jobs.spec.load import validate_spec
from jobs.train.comm.collectives import WorkerContext
from jobs.train.data.collate import Collator
from jobs.train.data.model_inputs import make_model_inputs
from jobs.train.model.packing_probe import answer_probe, make_rows, measure_error
from jobs.train.model.settle_packing import settle_packing
from tests.tiny import tiny_spec

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
HYBRID = ["sliding_attention", "full_attention"]
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "rotary": ("Llama", {}, "positions"),
    "windows": ("Mistral", {"sliding_window": 8}, "positions"),
    "eager, windows in every other layer": (
        "Gemma2", {"head_dim": 8, "sliding_window": 8}, "positions"),
    "chunks": (
        "Llama4Text",
        {"head_dim": 8, "intermediate_size_mlp": 64, "attention_chunk_size": 8,
         "num_local_experts": 4, "moe_layers": [1]}, "positions"),
    "absolute positions": (
        "GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, "positions"),
    "absolute positions from the mask": (
        "OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}, "mask"),
    "alibi with a mask": (
        "Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}, "mask"),
    "alibi from the padding": ("Bloom", {"n_layer": 2, "n_head": 4}, "off"),
    "masks of its own for each type of layer": (
        "GptOss", {**MOE, "head_dim": 8, "sliding_window": 8, "layer_types": HYBRID},
        "layer-masks"),
    "state space": (
        "Mamba2",
        {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16}, "off"),
    "linear attention": (
        "MiniMax", {**MOE, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
                    "block_size": 16}, "off"),
    "convolutions": ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "off"),
}  # fmt: skip
"""A config's class, its options beside SIZES, and how its rows can be packed."""


BY_ROW = ("rotary", "windows", "chunks", "absolute positions")
"""Kinds that are exact with attention by row; the others have scores or masks of their own."""


def make_config(kind: str) -> Any:
    name, options, _ = KINDS[kind]
    return getattr(transformers, f"{name}Config")(**(SIZES | options))


def make_model(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(make_config(kind)).eval()


def choose(model: Any, *, packing: Any = "auto", planned: PackingChoice = UNDECIDED) -> Any:
    spec = validate_spec(tiny_spec(Path("/made/up"), data={"packing": packing}))
    return settle_packing(spec, planned, model, WorkerContext(0, 1, CPU))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_packed_where_each_has_the_logits_that_it_has_alone(kind: str):
    answer = answer_probe(make_config(kind), AutoModelForCausalLM.from_config)
    assert answer.any_length.mode == KINDS[kind][2], answer
    assert answer.any_length.by_row == answer.within_limit.by_row == (kind in BY_ROW), answer
    if answer.any_length.is_on:
        # The model itself, at lengths beyond its window.
        assert measure_error(make_model(kind), answer.any_length.mode) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_row_has_the_logits_that_it_has_alone(kind: str):
    model, rows = make_model(kind), make_rows("off", vocabulary=250)
    ids = [batch.inputs["input_ids"][0] for batch in rows.alone]
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    with torch.no_grad():
        logits = model(input_ids=padded, attention_mask=mask).logits
        for line, row in enumerate(ids):
            alone = model(input_ids=row[None]).logits[0]
            error = (logits[line, : len(row)] - alone).abs().max() / alone.std()
            assert error <= 1e-5


def test_packing_that_the_spec_demands_is_refused_where_rows_would_leak():
    model = make_model("convolutions")
    assert choose(model).mode == choose(model, packing=False).mode == "off"
    with pytest.raises(InputError, match=r"data\.packing: true, but packed rows of Lfm2"):
        choose(model, packing=True)


def test_a_loaded_model_that_mixes_rows_is_not_packed_whatever_the_plan_says():
    planned = PackingChoice("positions", "exact with position_ids alone")
    assert choose(make_model("rotary"), planned=planned) == planned
    choice = choose(make_model("linear attention"), planned=planned)
    assert choice == PackingChoice(
        "off", "packed rows leak into each other in MiniMaxForCausalLM on this device"
    )


@pytest.mark.parametrize("packing", ["auto", False])
def test_a_loaded_model_attends_by_row_as_planned_packed_or_not(packing: Any):
    reason = "exact with position_ids alone"
    planned = PackingChoice("positions" if packing else "off", reason, by_row=True)
    model = make_model("rotary")
    choice = choose(model, packing=packing, planned=planned)
    assert (choice.is_on, choice.by_row) == (bool(packing), True)
    assert model.config._attn_implementation == "rows"
    # One that has no SDPA keeps its kernel, and is packed all the same.
    model = make_model("eager, windows in every other layer")
    choice = choose(model, packing=packing, planned=planned)
    assert (choice.is_on, choice.by_row) == (bool(packing), False)


def test_a_model_gets_only_the_inputs_that_it_takes():
    rows = make_rows("mask", vocabulary=250)
    inputs = make_model_inputs(make_model("alibi with a mask"), rows.packed, device=CPU)
    assert set(inputs) == {"input_ids", "attention_mask", "use_cache"}
    batch = Collator(0, "off", "tokens", True)([], length=4)
    assert "token_type_ids" in batch.inputs
    assert "token_type_ids" not in make_model_inputs(make_model("rotary"), batch, device=CPU)


def test_a_flash_kernel_gets_the_bounds_of_packed_rows():
    model, batch = make_model("rotary"), make_rows("positions", vocabulary=250).packed
    assert "cu_seq_lens_q" not in make_model_inputs(model, batch, device=CPU)
    model.config._attn_implementation = "flash_attention_2"
    inputs = make_model_inputs(model, batch, device=CPU)
    # Rows of 21, 1, 13 and 30, 6 tokens in sequences of 40; each token of padding is a row.
    expected = [0, 21, 22, *range(35, 40), 40, 70, *range(76, 81)]
    assert inputs["cu_seq_lens_q"].tolist() == inputs["cu_seq_lens_k"].tolist() == expected
    assert inputs["cu_seq_lens_q"].dtype == torch.int32
    assert inputs["max_length_q"] == inputs["max_length_k"] == 30
    assert "attention_mask" not in inputs


@pytest.mark.parametrize(("is_decoder", "ahead"), [(False, True), (True, False)])
def test_a_model_that_reads_ahead_is_no_language_model(is_decoder: bool, ahead: bool):
    config = transformers.BertConfig(vocab_size=260, is_decoder=is_decoder)
    assert answer_probe(config, transformers.BertLMHeadModel._from_config).reads_ahead == ahead


def test_types_of_tokens_are_given_to_models_of_pairs_only():
    batch = Collator(0, "off", "tokens", True)([], length=4)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertModel(transformers.BertConfig(**sizes))
    gpt2 = transformers.GPT2Model(transformers.GPT2Config(vocab_size=20, n_embd=8, n_head=2))
    assert "token_type_ids" in make_model_inputs(bert, batch, device=CPU)
    # As GPT-2 reads them, a type is one more token at each position.
    assert "token_type_ids" not in make_model_inputs(gpt2, batch, device=CPU)
