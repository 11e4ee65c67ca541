"""What /proc/cpuinfo and the tool of NVIDIA's driver say about bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.inspect.gpu_capability import list_gpu_capabilities
from slora.kernels.processor import Processor, parse_cpu_info

CORE = """processor\t: {core}
model\t\t: 143
cpu family\t: 6
model name\t: Intel(R) Xeon(R)
stepping\t: 8
flags\t\t: fpu sse2 avx512f {flags}
power management:
"""


def make_text(*flags: str) -> str:
    return "\n".join(CORE.format(core=core, flags=flags[core]) for core in range(len(flags)))


def test_the_name_tells_processors_of_one_short_name_apart():
    processor = parse_cpu_info(make_text("amx_bf16 avx512_bf16", ""))
    assert processor == Processor("Intel(R) Xeon(R) 6 143 8", ("amx_bf16", "avx512_bf16"))


def test_other_instructions_of_the_same_sets_are_not_those_for_bfloat16():
    assert parse_cpu_info(make_text("amx_int8 amx_tile avx512_vnni")).flags == ()


def test_another_system_has_no_name_and_no_instructions():
    assert parse_cpu_info("") == Processor("", ())


@pytest.mark.parametrize(
    ("output", "capabilities"),
    [("echo 9.0; echo 7.5", (9.0, 7.5)), ("echo '[N/A]'", ()), ("exit 9", ())],
)
def test_the_drivers_tool_is_asked_for_capabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, capabilities: tuple[float, ...]
):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{output}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_gpu_capabilities() == capabilities


def test_without_a_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_gpu_capabilities() == ()
