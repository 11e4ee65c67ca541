"""A model's files agree with the loaded model, and unusable folders are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import Fault
from jobs.inspect.base_digest import digest_model
from jobs.inspect.model_files import ModelFiles, find_max_positions, read_model
from jobs.inspect.model_folder import find_model_folder
from jobs.spec.schema import ModelSection
from tests.tiny import HOLLOW, HOLLOW_ENCODER, hollow_model, safetensors

CAUSAL, CLASSIFY = "causal-lm", "sequence-classification"
K_PROJ = "model.layers.0.self_attn.k_proj.weight"


def read(folder: Path, task: str = CAUSAL) -> ModelFiles:
    model, faults = read_model(ModelSection(path=str(folder), task=task))  # type: ignore[arg-type]
    assert model is not None and not faults
    return model


def list_faults(folder: Path | str, task: str = CAUSAL) -> list[Fault]:
    _, faults = read_model(ModelSection(path=str(folder), task=task))  # type: ignore[arg-type]
    return faults


def edit(folder: Path, **changes: Any) -> None:
    hollow_model(folder, says=changes)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def cut_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def delete_shard(folder: Path) -> None:
    names = {name: f"model-{n}.safetensors" for n, name in enumerate(HOLLOW)}
    for name, file in list(names.items())[1:]:
        (folder / file).write_bytes(safetensors({name: HOLLOW[name]}))
    (folder / "model.safetensors").unlink()
    index = {"weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write(folder: Path, shapes: dict[str, tuple[int, ...] | None]) -> None:
    content = safetensors({name: shape for name, shape in shapes.items() if shape is not None})
    (folder / "model.safetensors").write_bytes(content)


def store_as(folder: Path, dtype: str) -> None:
    """Store the weights in a type of one byte."""
    header, at = dict[str, Any](), 0
    for name, shape in HOLLOW.items():
        size = math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))


def lead_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "w.safetensors")
    index = {"weight_map": dict.fromkeys(HOLLOW, "../w.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_that_is_none(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')


BROKEN: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "no config.json": (
        lambda at: (at / "config.json").unlink(), CAUSAL, "model.path", "config.json cannot be"),
    "config.json cut": (
        lambda at: (at / "config.json").write_text('{"a"'), CAUSAL, "model.path", "Expecting"),
    "config.json a list": (
        lambda at: (at / "config.json").write_text("[]"), CAUSAL, "model.path", "not an object"),
    "config.json not UTF-8": (
        lambda at: (at / "config.json").write_bytes(b"\xff"), CAUSAL, "model.path", "utf-8"),
    "config.json too deep": (
        lambda at: (at / "config.json").write_text("[" * 9999), CAUSAL, "model.path", "recursion"),
    "no weights": (
        lambda at: (at / "model.safetensors").unlink(), CAUSAL, "model.path", "no *.safetensors"),
    "only pickled weights": (pickle_weights, CAUSAL, "model.path", "pytorch_model.bin, which"),
    "weights cut": (cut, CAUSAL, "model.path", "model.safetensors cannot be read"),
    "weights' header cut": (cut_header, CAUSAL, "model.path", "does not fit"),
    "a part of the weights lacks": (
        delete_shard, CAUSAL, "model.path", "lacks 1 of 12 weight files, the first is model-0."),
    "an index that is none": (index_that_is_none, CAUSAL, "model.path", "index.json cannot be"),
    "no tokenizer": (
        lambda at: (at / "tokenizer.json").unlink(), CAUSAL, "model.path", "no tokenizer.json"),
    "an encoder as a language model": (
        lambda at: edit(at, architectures=["BertModel"]), CAUSAL, "model.task", "BertModel"),
    "no architecture": (
        lambda at: edit(at, architectures=None), CAUSAL, "model.task", "no architecture"),
    "architectures a text": (
        lambda at: edit(at, architectures="Llama"), CAUSAL, "model.task", "no architecture"),
    "an image model as a classifier": (
        lambda at: edit(at, architectures=["ViTForImageClassification"]), CLASSIFY, "model.task",
        "ViTForImageClassification"),
    "a kind without a classifier": (
        lambda at: edit(at, model_type="clip_text_model"), CLASSIFY, "model.task",
        "no sequence classifier for clip_text_model"),
    "T5 as a language model": (
        lambda at: edit(at, architectures=["T5ForConditionalGeneration"]), CAUSAL, "model.task",
        "not a causal language model"),
    "quantised": (
        lambda at: edit(at, quantization_config={"bits": 4}), CAUSAL, "model.path", "quantiz"),
    "code of its own": (
        lambda at: edit(at, auto_map={"AutoModel": "x.Y"}, model_type="own"), CAUSAL, "model.path",
        "'own', which transformers 5"),
    "an unknown kind": (
        lambda at: edit(at, model_type="lama"), CAUSAL, "model.path", "the model_type 'lama'"),
    "no kind": (lambda at: edit(at, model_type=None), CAUSAL, "model.path", "has no model_type"),
    "a size that is no number": (
        lambda at: edit(at, hidden_size="wide"), CAUSAL, "model.path", "hidden_size"),
    "more layers than weights": (
        lambda at: edit(at, num_hidden_layers=10**9), CAUSAL, "model.path",
        "has num_hidden_layers 1000000000, its files have 12 weights"),
    "a layer more than the files have": (
        lambda at: edit(at, num_hidden_layers=2), CAUSAL, "model.path",
        "lacks model.layers.1.input_layernorm.weight, "),
    "a weight lacks": (
        lambda at: write(at, {**HOLLOW, "model.norm.weight": None}), CAUSAL, "model.path",
        "lacks model.norm.weight of LlamaForCausalLM"),
    "a weight of another shape": (
        lambda at: write(at, {**HOLLOW, K_PROJ: (8, 8)}), CAUSAL, "model.path",
        f"the first is {K_PROJ}: (8, 8) in the files, (4, 8) in the model"),
    "a bare base as a language model": (
        lambda at: write(at, {**HOLLOW, "lm_head.weight": None}), CAUSAL, "model.path",
        "lacks lm_head.weight"),
    "fp8 without scales": (
        lambda at: store_as(at, "F8_E4M3"), CAUSAL, "model.path", "stored as F8_E4M3"),
    "an adapter": (
        lambda at: (at / "config.json").rename(at / "adapter_config.json"), CAUSAL, "model.path",
        "is an adapter, not a model"),
    "an adapter beside the model": (
        lambda at: (at / "adapter_config.json").write_text("{}"), CAUSAL, "model.path",
        "an adapter beside the model"),
    "only another layout": (
        lambda at: (at / "model.safetensors").rename(at / "consolidated.safetensors"), CAUSAL,
        "model.path", "only consolidated.safetensors"),
    "only a GGUF file": (
        lambda at: (at / "model.safetensors").rename(at / "model.gguf"), CAUSAL, "model.path",
        "model.gguf, which is in the format of llama.cpp"),
    "an index that leads elsewhere": (
        lambda at: lead_elsewhere(at), CAUSAL, "model.path", "not a file of this folder"),
    "settings of generation that are no object": (
        lambda at: (at / "generation_config.json").write_text("[]"), CAUSAL, "model.path",
        "not a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "task", "key", "problem"), BROKEN.values(), ids=BROKEN)
def test_an_unusable_model_folder_is_refused_with_the_reason(
    spoil: Callable[[Path], object], task: str, key: str, problem: str, tmp_path: Path
):
    folder = hollow_model(tmp_path)
    assert not list_faults(folder)
    spoil(folder)
    [fault] = list_faults(folder, task)
    assert fault.key == key and problem in fault.problem and fault.remedy


def test_faults_of_a_model_folder_are_reported_together(tmp_path: Path):
    problems = " ".join(fault.problem for fault in list_faults(tmp_path))
    assert all(word in problems for word in ("config.json", "safetensors", "tokenizer.json"))


@pytest.mark.parametrize(
    "path",
    ["/no/such/folder", "a" * 300, "~nobody-here/model", "nul\0", "nobody/never-downloaded", ".."],
    ids=["absent", "too long a name", "no such home", "nul", "hub id not there", "not a model"],
)
def test_a_path_without_a_model_is_a_fault_of_model_path(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert {fault.key for fault in list_faults(path)} == {"model.path"}


def test_a_file_is_no_model_folder(tmp_path: Path):
    (tmp_path / "model").write_text("")
    assert find_model_folder(str(tmp_path / "model")) is None
    assert find_model_folder(str(tmp_path)) == tmp_path.resolve()


def test_a_language_models_figures_are_those_of_its_files(tmp_path: Path):
    model = read(hollow_model(tmp_path))
    count = sum(math.prod(shape) for shape in HOLLOW.values())
    assert model.parameters == count and model.bytes == 4 * count
    assert (model.model_type, model.architecture) == ("llama", "LlamaForCausalLM")
    assert (model.max_positions, model.chat_template) == (128, True)
    assert (model.description.head, model.description.attention) == ((), "sdpa")


BERT = {"model_type": "bert", "architectures": ["BertModel"]}


@pytest.mark.parametrize(
    ("drops", "head", "parameters"),
    [((), ("classifier",), 3 * 8 + 3),
     (("pooler.dense.weight", "pooler.dense.bias"), ("bert.pooler", "classifier"), 8 * 8 + 8 + 27)],
)  # fmt: skip
def test_the_head_is_what_the_task_adds_and_a_pooler_that_the_files_lack(
    drops: tuple[str, ...], head: tuple[str, ...], parameters: int, tmp_path: Path
):
    folder = hollow_model(tmp_path, says=BERT)
    write(folder, {**HOLLOW_ENCODER, **dict.fromkeys(drops)})
    model = read(folder, CLASSIFY)
    assert model.description.head == head
    assert model.description.count_head_parameters(3) == parameters
    assert model.description.count_head_tensors() == 2 + len(drops)
    total = sum(math.prod(shape) for shape in HOLLOW_ENCODER.values())
    assert model.parameters == total - (72 if drops else 0)


def test_an_encoder_without_an_inner_weight_is_refused(tmp_path: Path):
    folder = hollow_model(tmp_path, says=BERT)
    name = "encoder.layer.0.attention.self.query.weight"
    write(folder, {**HOLLOW_ENCODER, name: None})
    [fault] = list_faults(folder, CLASSIFY)
    assert f"lacks bert.{name}" in fault.problem


def test_code_beside_a_known_kind_is_not_needed(tmp_path: Path):
    folder = hollow_model(tmp_path, says={"auto_map": {"AutoModelForCausalLM": "x.Y"}})
    (folder / "x.py").write_text("raise SystemExit('executed')")
    assert read(folder).linears


def test_weights_in_another_layout_beside_those_of_the_model_are_left_alone(tmp_path: Path):
    folder = hollow_model(tmp_path)
    expected, digest = read(folder), digest_model(folder)
    (folder / "consolidated.safetensors").write_bytes(safetensors({"wq.weight": (8, 8)}))
    assert read(folder) == expected and digest_model(folder) == digest


def test_a_description_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    first = read(hollow_model(tmp_path / "a"))
    [cached] = (tmp_path / "cache" / "descriptions").glob("*.json")
    cached.write_text(cached.read_text().replace('"sdpa"', '"from the cache"'))
    second = read(hollow_model(tmp_path / "b"))
    assert second.linears == first.linears and second.description.attention == "from the cache"


@pytest.mark.parametrize(
    ("kind", "positions"), [("bert", 128), ("roberta", 126), ("mpnet", 126), ("llama", 128)]
)
def test_positions_that_padding_takes_are_not_for_use(kind: str, positions: int):
    config = {"model_type": kind, "max_position_embeddings": 128, "pad_token_id": 1}
    assert find_max_positions(config) == positions


def test_embeddings_norms_and_heads_are_no_targets(tmp_path: Path):
    assert read(hollow_model(tmp_path)).linears == {
        name.removesuffix(".weight"): shape
        for name, shape in HOLLOW.items()
        if len(shape) == 2 and "embed" not in name and "head" not in name
    }


@pytest.mark.parametrize("where", ["tokenizer_config.json", None])
def test_a_chat_template_is_read_from_either_file(where: str | None, tmp_path: Path):
    folder = hollow_model(tmp_path)
    (folder / "chat_template.jinja").unlink()
    if where:
        (folder / where).write_text('{"chat_template": "{{ messages }}"}')
    assert read(folder).chat_template is bool(where)


def test_the_digest_tells_two_bases_apart_and_nothing_else(tmp_path: Path):
    first, second = hollow_model(tmp_path / "a"), hollow_model(tmp_path / "b")
    (second / "README.md").write_text("hello")
    assert digest_model(first) == digest_model(second)
    weights = bytearray((second / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (second / "model.safetensors").write_bytes(weights)
    assert digest_model(first) != digest_model(second)
    hollow_model(second, says={"hidden_act": "gelu"})
    assert digest_model(first) != digest_model(second)
