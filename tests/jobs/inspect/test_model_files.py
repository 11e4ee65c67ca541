"""A model's files agree with the loaded model, and unusable folders are refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import Fault
from jobs.inspect.model_files import ModelFiles, digest_model, find_model_folder, read_model
from jobs.spec.schema import ModelSection
from tests.tiny import HOLLOW, hollow_model, safetensors, tiny_chat_model, tiny_encoder

CAUSAL, CLASSIFY = "causal-lm", "sequence-classification"
LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # what transformers warns of while it is imported
        yield tiny_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield tiny_encoder(tmp_path_factory.mktemp("encoder"))


def read(folder: Path, task: str = CAUSAL) -> ModelFiles:
    model, faults = read_model(ModelSection(path=str(folder), task=task))  # type: ignore[arg-type]
    assert model is not None and not faults
    return model


def list_faults(folder: Path | str, task: str = CAUSAL) -> list[Fault]:
    _, faults = read_model(ModelSection(path=str(folder), task=task))  # type: ignore[arg-type]
    return faults


def describe_with_torch(folder: Path, task: str) -> Any:
    """The shape as the loaded model has it, head apart."""
    from jobs.train.model.base_model import find_trained_head, find_untargeted_modules, load_model
    from slora.layers.targets import list_linear_layers

    model = load_model(str(folder), task=task, dtype="float32", labels=LABELS)
    head = sum(p.numel() for module in find_trained_head(model, task) for p in module.parameters())
    return (
        sum(p.numel() for p in model.parameters()) - head,
        {
            name: tuple(layer.weight.shape)
            for name, layer in list_linear_layers(
                model, head=find_untargeted_modules(model, task)
            ).items()
        },
        head,
    )


def test_a_language_models_files_count_what_torch_counts(chat: Path):
    model = read(chat)
    parameters, linears, head = describe_with_torch(chat, CAUSAL)
    assert model.parameters == parameters and model.linears == linears
    assert len(linears) == 14 and head == model.count_head_parameters(CAUSAL, 0) == 0
    assert model.bytes == 4 * parameters
    assert (model.model_type, model.architecture) == ("llama", "LlamaForCausalLM")
    assert (model.hidden_size, model.max_positions, model.chat_template) == (32, 128, True)


def test_an_encoders_files_count_what_torch_counts_of_its_base_and_head(encoder: Path):
    model = read(encoder, CLASSIFY)
    parameters, linears, head = describe_with_torch(encoder, CLASSIFY)
    assert model.parameters == parameters and model.linears == linears
    assert head == model.count_head_parameters(CLASSIFY, len(LABELS)) == 3 * 32 + 3
    assert not model.chat_template


def test_a_classifier_on_a_llama_has_a_head_without_a_bias(chat: Path):
    _, linears, head = describe_with_torch(chat, CLASSIFY)
    model = read(chat, CLASSIFY)
    assert model.linears == linears
    assert head == model.count_head_parameters(CLASSIFY, len(LABELS)) == 3 * 32


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


def index_that_is_none(folder: Path) -> None:
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
        delete_shard, CAUSAL, "model.path", "lacks 1 of 6 weight files, the first is model-0."),
    "an index that is none": (index_that_is_none, CAUSAL, "model.path", "index.json cannot be"),
    "no tokenizer": (
        lambda at: (at / "tokenizer.json").unlink(), CAUSAL, "model.path", "no tokenizer.json"),
    "an encoder as a language model": (
        lambda at: edit(at, architectures=["BertModel"]), CAUSAL, "model.task", "BertModel"),
    "no architecture": (
        lambda at: edit(at, architectures=None), CAUSAL, "model.task", "no architecture"),
    "architectures a text": (
        lambda at: edit(at, architectures="Llama"), CAUSAL, "model.task", "no architecture"),
    "T5 as a classifier": (
        lambda at: edit(at, architectures=["T5ForConditionalGeneration"]), CLASSIFY, "model.task",
        "T5ForConditionalGeneration"),
    "T5 as a language model": (
        lambda at: edit(at, architectures=["T5ForConditionalGeneration"]), CAUSAL, "model.task",
        "not a causal language model"),
    "quantised": (
        lambda at: edit(at, quantization_config={"bits": 4}), CAUSAL, "model.path", "quantiz"),
    "code of its own": (
        lambda at: edit(at, auto_map={"AutoModel": "x.Y"}), CAUSAL, "model.path", "auto_map"),
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


def test_sizes_that_are_no_numbers_are_unknown(tmp_path: Path):
    says = {"hidden_size": "wide", "max_position_embeddings": [1]}
    model = read(hollow_model(tmp_path, says=says))
    assert (model.hidden_size, model.max_positions) == (0, None)


@pytest.mark.parametrize(
    ("kind", "architecture", "parameters"),
    [
        ("bert", "BertModel", 3 * 8 + 3),
        ("roberta", "RobertaModel", 8 * 8 + 8 + 3 * 8 + 3),
        ("xlm-roberta", "XLMRobertaForMaskedLM", 8 * 8 + 8 + 3 * 8 + 3),
        ("deberta-v2", "DebertaV2Model", 8 * 8 + 8 + 3 * 8 + 3),
        ("llama", "LlamaForCausalLM", 3 * 8),
        ("smollm3", "SmolLM3ForCausalLM", 3 * 8),
    ],
)
def test_a_classifiers_head_is_counted_by_the_kind_of_model(
    kind: str, architecture: str, parameters: int, tmp_path: Path
):
    says = {"model_type": kind, "architectures": [architecture]}
    model = read(hollow_model(tmp_path, says=says), CLASSIFY)
    assert model.count_head_parameters(CLASSIFY, len(LABELS)) == parameters
    assert model.count_head_parameters(CAUSAL, 0) == 0


@pytest.mark.parametrize(
    ("kind", "positions"), [("bert", 128), ("roberta", 126), ("mpnet", 126), ("llama", 128)]
)
def test_positions_that_padding_takes_are_not_for_use(kind: str, positions: int, tmp_path: Path):
    says = {"model_type": kind, "architectures": ["AModel"], "pad_token_id": 1}
    assert read(hollow_model(tmp_path, says=says), CLASSIFY).max_positions == positions


def test_embeddings_norms_and_heads_are_no_targets(tmp_path: Path):
    assert read(hollow_model(tmp_path)).linears == {
        "model.layers.0.self_attn.q_proj": (8, 8),
        "model.layers.0.self_attn.k_proj": (4, 8),
        "model.layers.0.mlp.up_proj": (16, 8),
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
