"""Formats and exports: files round-trip, and an export reports the energy that it retains."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from slora.errors import BadAdapter
from slora.formats.compact import SPARSE_CONFIG, SPARSE_WEIGHTS, SparseAdapter, write_sparse
from slora.formats.compare import compare_adapters
from slora.formats.export import convert_to_lora, convert_to_sparse
from slora.formats.merge import attach_adapter, compute_update, get_layer_shapes, merge_adapter
from slora.formats.peft import LoraAdapter, read_adapter, write_lora
from slora.layers.base_layers import get_features
from slora.layers.sparse_factors import mask_factor
from slora.layers.targets import find_targets
from slora.masks.factor_mask import FactorMaskRule
from slora.masks.mask import BlockMask, EntryMask, draw_random_mask

FORMS = ("random", "entries", "block", "beside factors", "sparse factors", "seeded factors",
         "lora", "rslora")  # fmt: skip


def _model(kind: str = "llama"):
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2)
        return GPT2LMHeadModel(config).eval()
    config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=2, max_position_embeddings=32)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _mask(form, name, shape):
    if form == "block":
        return BlockMask(shape, torch.tensor([0, 3]), torch.arange(shape[1]))
    mask = draw_random_mask(seed=7, name=name, shape=shape, density=0.1)
    return mask if form == "random" else EntryMask(shape, mask.positions)


def _adapter(form: str, kind: str = "llama"):
    model = _model(kind)
    shapes = {n: get_features(m) for n, m in
              find_targets(model, "all-linear", head=[model.lm_head]).items()}  # fmt: skip
    torch.manual_seed(1)
    factors = {
        n: (0.3 * torch.randn(3, i), 0.3 * torch.randn(o, 3)) for n, (o, i) in shapes.items()
    }
    known = {"base": "base", "task": "causal-lm"}
    if form in ("lora", "rslora"):
        return LoraAdapter(factors=factors, alpha=6.0, rank=3, rslora=form == "rslora",
                           conv1d=kind == "gpt2", **known)  # fmt: skip
    if form == "sparse factors":
        factors = {n: (a * (a > 0), b * (b > 0)) for n, (a, b) in factors.items()}
        return SparseAdapter(values={}, masks={}, factors=factors, scale=2.0, sparse_factors=True,
                             **known)  # fmt: skip
    if form == "seeded factors":
        rule = FactorMaskRule("balanced", 0.5, 7)
        factors = {
            n: tuple(map(mask_factor, pair, rule.draw(n, shapes[n], 3)))
            for n, pair in factors.items()
        }
        return SparseAdapter(values={}, masks={}, factors=factors, scale=2.0, factor_mask=rule,
                             **known)  # fmt: skip
    masks = {n: _mask(form, n, shape) for n, shape in shapes.items()}
    values = {n: 0.3 * torch.randn(mask.nnz) for n, mask in masks.items()}
    seeded = {"seed": 7, "density": 0.1} if form == "random" else {}
    beside = {"factors": factors, "scale": 2.0} if form == "beside factors" else {}
    return SparseAdapter(values=values, masks=masks, **seeded, **beside, **known)


def _write(folder, adapter):
    (write_lora if isinstance(adapter, LoraAdapter) else write_sparse)(folder, adapter)


def _logits(model):
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_read_back_gives_the_same_logits_attached_or_merged(tmp_path, form, kind):
    adapter = _adapter(form, kind)
    _write(tmp_path, adapter)
    again = read_adapter(tmp_path)
    for name in get_layer_shapes(adapter):
        torch.testing.assert_close(compute_update(again, name), compute_update(adapter, name))
    attached, merged = _model(kind), _model(kind)
    attach_adapter(attached, again)
    merge_adapter(merged, again)
    before = _logits(_model(kind))
    torch.testing.assert_close(_logits(attached), _logits(merged), rtol=1e-4, atol=1e-4)
    assert float((_logits(merged) - before).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("form", FORMS)
def test_stock_peft_reads_every_form_as_a_lora_of_its_full_rank(tmp_path, form, kind):
    adapter = _adapter(form, kind)
    exported = convert_to_lora(adapter, energy=1.0, conv1d=kind == "gpt2")
    assert exported.energy_share == pytest.approx(1.0, abs=1e-5)
    write_lora(tmp_path / "lora", exported.adapter)
    theirs = peft.PeftModel.from_pretrained(_model(kind), tmp_path / "lora").eval()
    ours = _model(kind)
    merge_adapter(ours, adapter)
    torch.testing.assert_close(_logits(theirs), _logits(ours), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["lora", "rslora"])
def test_stock_peft_reads_our_own_folder_with_either_scaling(tmp_path, form):
    adapter = _adapter(form)
    write_lora(tmp_path / "lora", adapter)
    theirs = peft.PeftModel.from_pretrained(_model(), tmp_path / "lora").eval()
    ours = _model()
    attach_adapter(ours, adapter)
    torch.testing.assert_close(_logits(theirs), _logits(ours), rtol=0, atol=1e-4)


@settings(deadline=None, max_examples=15)
@given(form=st.sampled_from(FORMS), rank=st.integers(1, 20))
def test_a_lora_of_a_chosen_rank_is_the_nearest_one(form, rank):
    adapter = _adapter(form)
    exported = convert_to_lora(adapter, rank=rank)
    for layer in exported.layers:
        update_OI = compute_update(adapter, layer.name).double()
        s = torch.linalg.svdvals(update_OI)
        rest = (update_OI - compute_update(exported.adapter, layer.name).double()).norm()
        assert float(rest) == pytest.approx(float(s[rank:].norm()), rel=1e-3, abs=1e-4)
        retained = float(s[:rank].square().sum() / s.square().sum())
        assert layer.energy_share == pytest.approx(retained, abs=1e-5)


@pytest.mark.parametrize("energy", [0.3, 0.6, 0.9])
def test_the_smallest_rank_retains_the_share_and_the_next_smaller_does_not(energy):
    adapter = _adapter("entries")
    rank = convert_to_lora(adapter, energy=energy).adapter.rank
    assert convert_to_lora(adapter, rank=rank).energy_share >= energy - 1e-6
    assert rank == 1 or convert_to_lora(adapter, rank=rank - 1).energy_share < energy


def test_a_sparse_file_of_a_lora_holds_its_largest_entries_and_reports_their_share(tmp_path):
    adapter = _adapter("lora")
    exported = convert_to_sparse(adapter, density=0.2)
    _write(tmp_path, exported.adapter)
    again = read_adapter(tmp_path)
    for layer in exported.layers:
        update_OI, part = compute_update(adapter, layer.name), compute_update(again, layer.name)
        chosen = part != 0
        torch.testing.assert_close(part[chosen], update_OI[chosen])
        assert update_OI[chosen].abs().min() >= update_OI[~chosen].abs().max()
        share = float(part.double().square().sum() / update_OI.double().square().sum())
        assert layer.energy_share == pytest.approx(share, rel=1e-5)
    assert 0.2 < exported.energy_share < 1


def test_a_sparse_adapter_exports_to_itself_and_a_lora_needs_a_density():
    adapter = _adapter("random")
    assert convert_to_sparse(adapter).adapter is adapter
    with pytest.raises(ValueError, match="density"):
        convert_to_sparse(_adapter("lora"))


def test_a_random_mask_stores_no_index_and_sparse_factors_store_their_entries(tmp_path):
    _write(tmp_path / "random", _adapter("random"))
    tensors = load_file(tmp_path / "random" / SPARSE_WEIGHTS)
    assert all(name.endswith(".values") for name in tensors)
    _write(tmp_path / "factors", _adapter("sparse factors"))
    size = (tmp_path / "factors" / SPARSE_WEIGHTS).stat().st_size
    _write(tmp_path / "lora", _adapter("lora"))
    stored = load_file(tmp_path / "factors" / SPARSE_WEIGHTS)
    assert not any(name.endswith("a_RI") for name in stored) and size > 0
    seeded = _adapter("seeded factors")
    _write(tmp_path / "seeded", seeded)
    stored = load_file(tmp_path / "seeded" / SPARSE_WEIGHTS)
    assert all(name.endswith(".values") for name in stored)
    sides = (side for pair in seeded.factors.values() for side in pair)
    assert sum(t.numel() for t in stored.values()) == sum(round(s.numel() / 2) for s in sides)


def test_factors_that_are_not_zero_outside_their_mask_are_not_stored_without_the_rest(tmp_path):
    seeded = _adapter("seeded factors")
    next(iter(seeded.factors.values()))[0].fill_(1.0)
    with pytest.raises(BadAdapter, match="not zero outside its mask"):
        _write(tmp_path / "lossy", seeded)
    assert not (tmp_path / "lossy").exists()


def _corrupt_indices(change):
    def corrupt(config, tensors):
        name = next(name for name in tensors if name.endswith(".positions"))
        tensors[name] = change(tensors[name].clone())

    return corrupt


def _over(tensor):
    tensor[-1] = 10**6
    return tensor


HOSTILE = {
    "falling": (_corrupt_indices(lambda t: t.flip(0)), "not ascending"),
    "twice": (_corrupt_indices(lambda t: torch.cat((t[:1], t[:-1]))), "not ascending"),
    "out of range": (_corrupt_indices(_over), "not ascending within"),
    "negative": (_corrupt_indices(lambda t: t - 10**6), "not ascending"),
    "floats": (_corrupt_indices(lambda t: t.float()), "float32"),
    "shorter": (_corrupt_indices(lambda t: t[:-1]), "values for"),
    "two dimensions": (_corrupt_indices(lambda t: t[None]), "int32"),
    "format": (lambda config, _: config.update(format=1), "format"),
    "huge shape": (
        lambda config, _: config["layers"][0].__setitem__(slice(1, 3), [2**40, 2**40]),
        "invalid shape"),
    "missing values": (lambda config, _: config["values"].append("no.such"), "no.such"),
    "no layers": (lambda config, _: config.pop("layers"), "layers"),
    "scale": (lambda config, _: config.update(scale=float("inf")), "scale"),
    "random density": (
        lambda config, _: config.update(mask="random", seed=0, density=1.0), "values for"),
}  # fmt: skip


HOSTILE_FACTORS = {
    "rank": (lambda config, _: config.update(rank=10**9), "invalid rank"),
    "other rank": (lambda config, _: config.update(rank=4), "values for"),
    "mask": (lambda config, _: config["factor_mask"].update(kind="best"), "unknown mask"),
    "density": (lambda config, _: config["factor_mask"].update(density=1e-9), "values for"),
    "no values": (lambda _, tensors: tensors.pop(next(iter(tensors))), "values"),
}


@pytest.mark.parametrize(("corrupt", "message"), HOSTILE_FACTORS.values(), ids=HOSTILE_FACTORS)
def test_a_hostile_file_of_factors_is_refused_with_a_reason(tmp_path, corrupt, message):
    _refuse(tmp_path, "seeded factors", corrupt, message)


@pytest.mark.parametrize(("corrupt", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_with_a_reason(tmp_path, corrupt, message):
    _refuse(tmp_path, "entries", corrupt, message)


def _refuse(tmp_path, form, corrupt, message):
    _write(tmp_path, _adapter(form))
    config = json.loads((tmp_path / SPARSE_CONFIG).read_text())
    tensors = load_file(tmp_path / SPARSE_WEIGHTS)
    corrupt(config, tensors)
    (tmp_path / SPARSE_CONFIG).write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / SPARSE_WEIGHTS)
    with pytest.raises(BadAdapter, match=message):
        read_adapter(tmp_path)


def test_two_adapters_are_compared_layer_by_layer():
    adapter, changed = _adapter("random"), _adapter("random")
    assert all(layer.distance == 0 and layer.cosine == pytest.approx(1) and layer.overlap == 1
               for layer in compare_adapters(adapter, changed))  # fmt: skip
    name = next(iter(changed.values))
    changed.values[name].neg_()
    first, *rest = compare_adapters(adapter, changed)
    assert first.name == name and first.cosine == pytest.approx(-1)
    assert first.distance == pytest.approx(2)
    assert all(layer.distance == 0 for layer in rest)
    other = compare_adapters(adapter, _adapter("lora"))[0]
    assert other.overlap is None and other.cosine is not None


def test_adapters_of_different_models_are_not_compared():
    with pytest.raises(ValueError, match="different models"):
        compare_adapters(_adapter("lora"), LoraAdapter(
            factors={next(iter(_adapter("lora").factors)): (torch.ones(1, 3), torch.ones(3, 1))},
            alpha=1, rank=1, base="b", task="causal-lm"))  # fmt: skip
