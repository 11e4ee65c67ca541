"""The description of a model is that of the model that a run loads, whatever its kind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.inspect.model_description import dump_description, parse_description
from jobs.train.method.full_model import write_full_model
from jobs.train.model.base_model import (
    iter_saved_buffers,
    list_towers,
    load_model,
)
from jobs.train.model.describe_model import describe_model
from slora.layers.base_layers import get_features
from slora.layers.targets import find_targets
from tests.model_kinds import KINDS, save_model
from tests.tiny import tiny_encoder

CAUSAL, CLASSIFY, SEQ2SEQ = "causal-lm", "sequence-classification", "seq2seq"
ENCODERS = ("encoder", "shared encoder", "two-layer head", "pooler in the head", "tuned encoder")
LABELS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        save_model(kind, folder / kind)
    return folder


def get_task(kind: str) -> str:
    if kind in ("t5", "bart"):
        return SEQ2SEQ
    return CLASSIFY if kind in ENCODERS else CAUSAL


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_has_the_names_shapes_and_counts_of_the_loaded_model(kind: str, models: Path):
    task = get_task(kind)
    description = describe_model(models / kind, task)
    assert parse_description(json.dumps(dump_description(description))) == description
    model = load_model(str(models / kind), task=task, dtype="float32", labels=LABELS)
    parameters = dict(model.named_parameters())
    assert list(description.parameters) == list(parameters)
    assert {name: facts.count(len(LABELS)) for name, facts in description.parameters.items()} == {
        name: parameter.numel() for name, parameter in parameters.items()
    }
    head = [model.get_submodule(name) for name in description.head]
    count = sum(parameter.numel() for module in head for parameter in module.parameters())
    assert description.count_head_parameters(len(LABELS)) == count
    linears = find_targets(
        model,
        "all-linear",
        head=map(model.get_submodule, description.head),
        towers=list_towers(model),
    )
    assert dict(description.linears) == {name: get_features(x) for name, x in linears.items()}
    assert list(description.buffers) == [name for name, _ in iter_saved_buffers(model)]
    assert description.attention == model.config._attn_implementation


def test_a_description_tells_what_a_plan_must_know(models: Path):
    about = {kind: describe_model(models / kind, get_task(kind)) for kind in KINDS}
    assert about["tied"].tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert about["windows"].window == 32 and about["llama"].window is None
    assert about["windows"].attention == "eager" and about["llama"].attention == "sdpa"
    assert about["transposed"].kinds["transformer.h.0.attn.c_attn"] == "conv1d"
    assert about["transposed"].linears["transformer.h.0.attn.c_attn"] == (96, 32)
    assert about["llama"].left_out == {"lm_head": "output projection"}
    assert about["state"].is_stateful
    assert not any(description.plain_loss for description in about.values())
    assert about["convolutions"].layer_types == ("linear_attention", "full_attention")
    assert "convolution" in about["convolutions"].left_out.values()
    assert any(line.startswith("convolution: ") for line in about["convolutions"].excluded)
    assert any(shape.experts > 1 for shape in about["experts"].linears.values())
    assert about["encoder"].head == ("bert.pooler", "classifier")
    assert about["shared encoder"].head == ("albert.pooler", "classifier")
    assert about["two-layer head"].head == ("classifier",)
    assert about["pooler in the head"].head == ("pooler", "classifier")
    assert about["tuned encoder"].labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    # The head of its own task is no surprise.
    assert not about["encoder"].has_saved_head and not about["encoder"].unused


def test_a_multimodal_model_is_adapted_in_its_language_model_only(models: Path):
    description = describe_model(models / "multimodal", CAUSAL)
    assert description.model_class == "Qwen3_5ForConditionalGeneration"
    assert description.linears
    assert all(name.startswith("model.language_model.") for name in description.linears)
    towers = {n for n, why in description.left_out.items() if why == "outside the language model"}
    assert towers and all(name.startswith("model.visual.") for name in towers)


FULL = ("llama", "tied", "experts", "router bias", "layer scalars", "activation buffers",
        "transposed", "multimodal", "tuned encoder", "t5", "bart")  # fmt: skip


@pytest.mark.parametrize("kind", FULL)
def test_a_full_model_is_saved_with_its_bases_names_and_reloads_to_the_bit(
    kind: str, models: Path, tmp_path: Path
):
    import transformers
    from safetensors import safe_open

    task = get_task(kind)
    model = load_model(str(models / kind), task=task, dtype="float32", labels=LABELS[:3])
    weights = {name: parameter.detach() + 1 for name, parameter in model.named_parameters()}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_encoder(tmp_path / "tokenizer"))
    write_full_model(tmp_path / "full", model, tokenizer, weights, base=models / kind)
    names = []
    for folder in (models / kind, tmp_path / "full"):
        with safe_open(folder / "model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]
    stock, info = getattr(transformers, KINDS[kind][1]).from_pretrained(
        tmp_path / "full", output_loading_info=True
    )
    assert not any(info.values())
    reloaded = stock.state_dict()
    for name, tensor in weights.items():
        assert torch.equal(reloaded[name], tensor), name
    for name, buffer in iter_saved_buffers(model):
        assert torch.equal(reloaded[name], buffer), name


def test_settings_and_templates_that_transformers_would_not_write_are_kept(
    models: Path, tmp_path: Path
):
    import transformers

    base = tmp_path / "base"
    save_model("llama", base)
    settings = '{"do_sample": false, "temperature": 0.7, "eos_token_id": 3}'
    (base / "generation_config.json").write_text(settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_encoder(tmp_path / "tokenizer"))
    tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    model = load_model(str(base), task=CAUSAL, dtype="float32")
    write_full_model(tmp_path / "full", model, tokenizer, {}, base=base)
    assert (tmp_path / "full" / "generation_config.json").read_text() == settings
    assert not [path for path in (tmp_path / "full").iterdir() if path.is_dir()]
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "full")
    assert saved.chat_template == tokenizer.chat_template


def test_a_new_head_is_drawn_from_the_seed(models: Path):
    heads = [
        load_tuned(models, seed=seed, labels=labels, new_head=new_head)
        for seed, labels, new_head in (
            (0, LABELS[:3], False), (1, LABELS[:3], False), (1, LABELS[:3], True),
            (1, LABELS[:3], True), (2, LABELS[:3], True), (1, LABELS, True),
        )
    ]  # fmt: skip
    saved, also_saved, first, again, other, larger = heads
    assert torch.equal(saved, also_saved) and torch.equal(first, again)
    assert not torch.equal(saved, first) and not torch.equal(first, other)
    assert larger.shape == (4, 32) and math.isclose(float(first.detach().std()), 0.02, rel_tol=0.5)


def load_tuned(models: Path, **options: Any) -> torch.Tensor:
    model = load_model(str(models / "tuned encoder"), task=CLASSIFY, dtype="float32", **options)
    weight: torch.Tensor = model.get_submodule("classifier").weight
    return weight
