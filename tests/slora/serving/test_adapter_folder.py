"""A folder is copied and checked before anything of it is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slora.formats.peft import LoraAdapter
from slora.serving.adapter_folder import check_lora, copy_adapter, read_checked
from slora.serving.base_weights import BaseWeights
from slora.serving.refusals import ServingRefused
from tests.slora.serving.sparse_folders import (
    digest_folder,
    make_base,
    make_lora,
    make_sparse,
    write_manifest,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


def change_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    file = folder / "sparse_model.safetensors"
    save_file({**load_file(file), **tensors}, file)
    write_manifest(folder, "0" * 64)


def test_a_copy_has_the_two_files_and_a_digest_of_their_bytes(base: Path, tmp_path: Path):
    source = make_sparse(tmp_path / "a", base)
    (source / "code.pkl").write_bytes(b"\x80")
    first = copy_adapter(source, tmp_path / "1")
    again = copy_adapter(source, tmp_path / "2")
    other = copy_adapter(make_sparse(tmp_path / "b", base, seed=2), tmp_path / "3")
    assert first.digest == again.digest != other.digest
    assert first.form == "sparse" and first.base_digest == digest_folder(base)
    assert not (first.path / "code.pkl").exists()
    assert copy_adapter(make_lora(tmp_path / "l", base), tmp_path / "4").form == "lora"


def test_a_hostile_folder_is_refused(base: Path, tmp_path: Path):
    layer = "model.layers.0.q_proj"

    def refuse(folder: Path, reason: str) -> None:
        with pytest.raises(ServingRefused, match=reason):
            read_checked(copy_adapter(folder, tmp_path / "copies" / folder.name))

    empty = tmp_path / "empty"
    empty.mkdir()
    refuse(empty, "not an adapter's folder")
    pickled = make_lora(tmp_path / "pickled", base)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    refuse(pickled, "not an adapter's folder")
    changed = make_sparse(tmp_path / "changed", base)
    file = changed / "sparse_model.safetensors"
    file.write_bytes(file.read_bytes() + b" ")
    refuse(changed, "not the file that manifest.json names")
    linked = make_sparse(tmp_path / "linked", base)
    (linked / "sparse_config.json").unlink()
    (linked / "sparse_config.json").symlink_to(changed / "sparse_config.json")
    refuse(linked, "symbolic link")
    old = make_sparse(tmp_path / "old", base)
    write_manifest(old, "0" * 64, files=None)
    refuse(old, "before the digest of all files")
    endless = make_sparse(tmp_path / "endless", base)
    change_tensors(endless, **{f"{layer}.values": torch.full((12,), float("nan"))})
    refuse(endless, "not finite")
    outside = make_sparse(tmp_path / "outside", base, seed=None)
    change_tensors(outside, **{f"{layer}.positions": torch.tensor([0, 5, 48])})
    refuse(outside, "not ascending within 0 to 47")
    claims = make_sparse(tmp_path / "claims", base)
    config = json.loads((claims / "sparse_config.json").read_text())
    config["layers"] = [[name, 2**19, 2**19, 1] for name, *_ in config["layers"]]
    (claims / "sparse_config.json").write_text(json.dumps(config))
    write_manifest(claims, "0" * 64)
    refuse(claims, "values for")


def test_a_lora_must_fit_the_server_and_the_base(base: Path, tmp_path: Path):
    weights = BaseWeights(base)
    adapter = read_checked(copy_adapter(make_lora(tmp_path / "a", base, rank=4), tmp_path / "1"))
    assert isinstance(adapter, LoraAdapter)
    check_lora(adapter, weights, max_rank=4)
    with pytest.raises(ServingRefused, match="--max-lora-rank 4"):
        check_lora(adapter, weights, max_rank=3)
    output = {"lm_head": (torch.ones(4, 8), torch.ones(20, 4))}
    with pytest.raises(ServingRefused, match="it changes lm_head"):
        check_lora(LoraAdapter(output, alpha=1, rank=4, base="b", task="causal-lm"), weights, 4)
    wrong = {"model.layers.0.q_proj": (torch.ones(4, 9), torch.ones(6, 4))}
    with pytest.raises(ServingRefused, match=r"\(6, 9\) in the adapter, \(6, 8\) in the base"):
        check_lora(LoraAdapter(wrong, alpha=1, rank=4, base="b", task="causal-lm"), weights, 4)
