"""Attention within each row equals attention with a mask of the rows, and holds no mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    packed_sequence_mask_function,
    sliding_window_causal_mask_function,
)

from jobs.train.attention.row_attention import (
    attend_at_once,
    attend_by_row,
    has_kernel_for_rows,
    use_full_attention,
    use_row_attention,
)
from jobs.train.attention.row_layout import RowGroup, RowLayout, make_layout
from jobs.train.attention.row_mask import make_row_mask

LENGTH = 12
ROWS = packed_sequence_mask_function(
    torch.tensor([[0] * 5 + [1] * 4 + [2, 3, 4], [0] * 12]),
)
CAUSAL = causal_mask_function
MASKS: dict[str, tuple[Callable[..., Any], list[list[int]] | None, Any]] = {
    "rows": (and_masks(ROWS, CAUSAL), None, [0, 5, 9, 10, 11, 12]),
    "padding on the right": (CAUSAL, [[1] * 9 + [0] * 3, [1] * 12], [0, 9, 10, 11, 12]),
    "padding on the left": (CAUSAL, [[0] * 2 + [1] * 10, [1] * 12], [0, 1, 2, 12]),
    "full rows": (CAUSAL, [[1] * 12, [1] * 12], None),
    "no padding": (CAUSAL, None, None),
    "a gap in a row": (CAUSAL, [[1, 1, 0] + [1] * 9, [1] * 12], "mask"),
    "a window that rows exceed": (
        and_masks(ROWS, sliding_window_causal_mask_function(7)), None, "mask"),
    "a window that none exceeds": (
        and_masks(ROWS, sliding_window_causal_mask_function(12)), None, [0, 5, 9, 10, 11, 12]),
    "chunks": (
        chunked_causal_mask_function(4, torch.tensor([0, 0])), None, [0, 4, 8, 12, 16, 20]),
    "both directions": (bidirectional_mask_function, [[1] * 9 + [0] * 3, [1] * 12], "mask"),
}  # fmt: skip
"""What a token sees, the padding, and the starts of rows that are read from it: None without a
mask, "mask" where rows do not tell it."""


def list_starts(layout: RowLayout) -> list[int]:
    return [int(start) for start in layout.bounds[:-1]]


@pytest.mark.parametrize("name", MASKS)
def test_rows_are_read_from_a_mask_that_says_nothing_else(name: str):
    visible, padding, expected = MASKS[name]
    tokens_mL = torch.tensor(padding).bool() if padding else None
    mask = make_row_mask(
        2,
        LENGTH,
        LENGTH,
        mask_function=visible,
        attention_mask=tokens_mL,
        # As transformers does for a plain causal mask.
        allow_is_causal_skip=visible is CAUSAL,
        device="cpu",
    )
    if expected == "mask":
        assert isinstance(mask, Tensor) and mask.shape == (2, 1, LENGTH, LENGTH)
    elif expected is None:
        assert mask is None
    else:
        assert isinstance(mask, RowLayout) and list_starts(mask) == expected


def test_a_token_that_reads_a_cache_gets_the_mask_of_sdpa():
    tokens_mL = torch.tensor([[0, 1, 1, 1, 1]]).bool()
    mask = make_row_mask(1, 1, 5, 4, mask_function=CAUSAL, attention_mask=tokens_mL, device="cpu")
    assert isinstance(mask, Tensor) and mask.tolist() == [[[[False, True, True, True, True]]]]


def test_rows_of_about_one_length_share_a_group_and_each_token_has_one_slot():
    # Lengths 4, 8, 1, 7, 1, 3 in two sequences of 12.
    layout = make_layout([0, 4, 12, 13, 20, 21], sequences=2, length=12)
    assert layout.groups == (RowGroup(2, 8), RowGroup(2, 4), RowGroup(2, 1))
    assert layout.longest == 8 and layout.bounds.tolist() == [0, 4, 12, 13, 20, 21, 24]
    assert layout.slot_tokens_S[layout.token_slots_T].tolist() == list(range(24))
    # One slot behind the row of 7, one behind the row of 3, with the last token of each.
    assert layout.empty_slots.tolist() == [15, 23]
    assert layout.slot_tokens_S[layout.empty_slots].tolist() == [19, 23]


STARTS = [0, 5, 6, 20, 40, 47, 60, 61, 62, 63, 64]
SHAPES: dict[str, tuple[int, int, int, int]] = {
    "heads": (4, 4, 16, 16), "groups of heads": (6, 2, 16, 16), "one head of keys": (4, 1, 8, 8),
    "narrow values": (4, 4, 24, 8),
}  # fmt: skip
"""Heads, heads of keys, and the widths of keys and values."""


def draw_tensors(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    heads, kv_heads, width, value_width = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, 40, number, size, generator=generator).to(dtype)
        for number, size in ((heads, width), (kv_heads, width), (kv_heads, value_width))
    )
    # As models have them: [m, L, H, D] with two dimensions exchanged.
    query, key, value = (t.transpose(1, 2).requires_grad_() for t in (query, key, value))
    return query, key, value


def attend_with_mask(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Return [m, L, H, D] for the rows of STARTS, by a mask of L x L."""
    number_T = torch.bucketize(torch.arange(80), torch.tensor(STARTS), right=True)
    number_mL = number_T.view(2, 40)
    mask = (number_mL[:, :, None] == number_mL[:, None, :]).tril()
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=mask[:, None], scale=scale, enable_gqa=True
    )
    return output.transpose(1, 2)


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("name", SHAPES)
def test_output_and_gradients_are_those_of_a_mask(name: str, scale: float | None):
    tensors = draw_tensors(name)
    layout = make_layout(STARTS, sequences=2, length=40)
    output, weights = attend_by_row(None, *tensors, layout, scaling=scale)
    expected = attend_with_mask(*tensors, scale)
    assert weights is None and (output - expected).abs().max() < 1e-5
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    for actual, wanted in zip(
        torch.autograd.grad(output, tensors, upstream),
        torch.autograd.grad(expected, tensors, upstream),
        strict=True,
    ):
        assert (actual - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_the_kernel_for_rows_takes_all_rows_at_once():
    layout = make_layout(STARTS, sequences=2, length=40, device="meta")
    shapes = ((2, 6, 40, 16), (2, 2, 40, 16), (2, 2, 40, 16))
    query, key, value = (torch.empty(*shape, device="meta") for shape in shapes)
    assert attend_at_once(query, key, value, layout, None).shape == (2, 40, 6, 16)
    # Of this device and this type it is not used.
    assert not has_kernel_for_rows(query, value, 0.0)


@pytest.mark.parametrize("name", ["position_bias", "softcap", "s_aux"])
def test_other_scores_are_refused(name: str):
    tensors, layout = draw_tensors("heads"), make_layout(STARTS, sequences=2, length=40)
    with pytest.raises(ValueError, match=name):
        attend_by_row(None, *tensors, layout, **{name: torch.ones(1)})


def test_keys_of_another_length_are_refused():
    query, key, value = draw_tensors("heads")
    layout = make_layout(STARTS, sequences=2, length=40)
    with pytest.raises(ValueError, match="40 tokens each"):
        attend_by_row(None, query, key[:, :, 1:], value[:, :, 1:], layout)


def test_attention_dropout_is_applied():
    tensors, layout = draw_tensors("heads"), make_layout(STARTS, sequences=2, length=40)
    plain, _ = attend_by_row(None, *tensors, layout)
    torch.manual_seed(0)
    dropped, _ = attend_by_row(None, *tensors, layout, dropout=0.5)
    # Rows of one token see themselves: half of these weights are 0, the others 2.
    single = dropped.flatten(0, 1)[61:64] / plain.flatten(0, 1)[61:64]
    assert {round(ratio, 4) for ratio in single.flatten().tolist()} == {0.0, 2.0}


def make_llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_generation_with_a_cache_and_padded_prompts_is_the_same():
    model = make_llama()
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **options)
    assert use_row_attention(model)
    assert torch.equal(model.generate(ids, **options), expected)


def list_squares(model: Any, positions_mL: Tensor) -> list[tuple[int, ...]]:
    """Return the shapes with L x L of what autograd keeps."""
    shapes: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    ids = torch.randint(5, 60, positions_mL.shape, generator=torch.Generator().manual_seed(0))
    # As in a run, where the base is frozen and its inputs are not.
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(input_ids=ids, position_ids=positions_mL, use_cache=False)
    length = positions_mL.shape[1]
    return [shape for shape in shapes if shape[-2:] == (length, length)]


def test_no_mask_of_all_pairs_is_held():
    model, positions_mL = make_llama(), torch.tensor([[*range(20), *range(17)], [*range(37)]])
    assert list_squares(model, positions_mL)
    assert use_row_attention(model)
    assert not list_squares(model, positions_mL)
    use_full_attention(model)
    assert list_squares(model, positions_mL)


def test_a_model_without_sdpa_keeps_its_own_kernel():
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.Gemma2Config(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        )
    )  # fmt: skip
    assert not use_row_attention(model)
    assert model.config._attn_implementation == "eager"
