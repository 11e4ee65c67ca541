"""An address of the hub is hf:// for data and a bare id for a model; other spellings are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.spec.load import validate_spec
from jobs.spec.paths import make_paths_absolute
from tests.tiny import tiny_spec

DATA = "hf://org/name@v1?config=main&split=train"
DATA_FAULTS = {
    "hf:/org/name": "Write hf://org/name.",
    "HF://org/name?split=test": "Write hf://org/name?split=test.",
    " hf://org/name": "Write hf://org/name.",
    "hf:": "Write hf://org/name.",
    "org/name?config=main": "Write hf://org/name?config=main.",
    "https://huggingface.co/datasets/org/name": "Write hf://org/name.",
    "http://www.hf.co/datasets/org/name/viewer/main/train?row=1": "Write hf://org/name.",
    "https://huggingface.co/org/name": "Write hf://org/name.",
    "https://example.org/rows.jsonl": "an s3:// URL or hf://org/name.",
    "hf://org/name?splt=train": "Use hf://org/name@revision?config=NAME&split=NAME",
    "hf://": "Use hf://org/name@revision?config=NAME&split=NAME",
}
MODEL_FAULTS = {
    "hf://org/name": "Write org/name.",
    "hf://models/org/name@main": "Write org/name.",
    "https://huggingface.co/org/name/tree/main": "Write org/name.",
    "https://huggingface.co/datasets/org/name": "Use a path, an s3:// URL or a hub id, org/name.",
    "https://example.org/model": "a hub id, org/name.",
}


def test_data_of_the_hub_is_named_as_the_guide_says():
    spec = validate_spec(tiny_spec(Path("/x"), data={"train": DATA, "eval": "hf://org/name"}))
    data = make_paths_absolute(spec).data
    assert (data.train, data.eval) == (DATA, "hf://org/name")


@pytest.mark.parametrize(("address", "remedy"), DATA_FAULTS.items(), ids=DATA_FAULTS)
def test_another_spelling_of_data_is_refused_with_the_right_one(address: str, remedy: str):
    with pytest.raises(InputError) as caught:
        validate_spec(tiny_spec(Path("/x"), data={"train": address, "eval": address}))
    faults = {fault.key: fault for fault in caught.value.faults}
    assert set(faults) == {"data.train", "data.eval"}
    assert all(
        remedy in fault.remedy and address.strip() in fault.problem for fault in faults.values()
    )


@pytest.mark.parametrize(("address", "remedy"), MODEL_FAULTS.items(), ids=MODEL_FAULTS)
def test_a_model_of_the_hub_is_a_bare_id(address: str, remedy: str):
    with pytest.raises(InputError) as caught:
        validate_spec(tiny_spec(Path("/x"), model={"path": address}))
    (fault,) = caught.value.faults
    assert fault.key == "model.path" and remedy in fault.remedy


def test_a_store_is_not_on_the_hub():
    with pytest.raises(InputError, match="hf:// is not supported"):
        validate_spec(tiny_spec(Path("/x"), store="hf://org/name"))
