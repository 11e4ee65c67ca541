"""What a probe found is for one kind of processor and one set of libraries."""

from __future__ import annotations

import pytest
import torch

from slora.kernels import device_identity
from slora.kernels.device_identity import identify_device

CPU = torch.device("cpu")
INFO = "processor: 0\nmodel name: A\nflags: avx512\nbogomips: 1\n\nprocessor: 1\nmodel name: A\n"


@pytest.fixture
def cpu_info(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(INFO)
    monkeypatch.setattr(device_identity, "CPU_INFO", path)
    return path


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [("bogomips: 1", "bogomips: 2", True), ("avx512", "amx", False), ("name: A", "name: B", False)],
)
def test_the_model_and_the_flags_of_a_processor_tell_it_from_others(cpu_info, old, new, same):
    before = identify_device(CPU)
    cpu_info.write_text(INFO.replace(old, new))
    assert (identify_device(CPU) == before) is same


def test_another_version_of_a_library_is_another_device(cpu_info, monkeypatch):
    before = identify_device(CPU)
    monkeypatch.setattr(device_identity, "version", lambda _: "0.0")
    assert identify_device(CPU) != before


def test_a_machine_without_such_a_file_has_an_identity(cpu_info):
    cpu_info.unlink()
    assert identify_device(CPU)
