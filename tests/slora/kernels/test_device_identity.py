"""What a probe found is for one kind of processor and one set of libraries."""

from __future__ import annotations

import pytest
import torch

from slora.kernels import device_identity
from slora.kernels.device_identity import identify_device
from slora.kernels.processor import Processor

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("processor", "same"),
    [
        (Processor("A 6", ("avx512_bf16",)), True),
        (Processor("A 6", ("amx_bf16", "avx512_bf16")), False),
        (Processor("A 7", ("avx512_bf16",)), False),
        (Processor("", ()), False),
    ],
)
def test_the_model_and_the_instructions_of_a_processor_tell_it_from_others(
    monkeypatch, processor, same
):
    monkeypatch.setattr(
        device_identity, "read_processor", lambda: Processor("A 6", ("avx512_bf16",))
    )
    before = identify_device(CPU)
    monkeypatch.setattr(device_identity, "read_processor", lambda: processor)
    assert (identify_device(CPU) == before) is same


def test_another_version_of_a_library_is_another_device(monkeypatch):
    before = identify_device(CPU)
    monkeypatch.setattr(device_identity, "version", lambda _: "0.0")
    assert identify_device(CPU) != before
