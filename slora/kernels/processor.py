"""This machine's processor: its model, and its instructions for bfloat16. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16")
"""Instructions that multiply bfloat16. Without them torch emulates it, slower than float32."""


@dataclass(frozen=True)
class Processor:
    """The model of a processor, and its instructions for bfloat16."""

    name: str
    flags: tuple[str, ...]


@cache
def read_processor() -> Processor:
    """Return this machine's processor; one without a name where there is no /proc/cpuinfo."""
    try:
        return parse_cpu_info(CPU_INFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return Processor("", ())


def parse_cpu_info(text: str) -> Processor:
    """Return the processor of the first core in the text of /proc/cpuinfo.

    The name holds family, model and stepping too: clouds give many processors the same short one.
    """
    core = text.partition("\n\n")[0]
    pairs = (line.partition(":") for line in core.splitlines())
    values = {key.strip(): value.strip() for key, _, value in pairs}
    names = (values.get(key, "") for key in ("model name", "cpu family", "model", "stepping"))
    flags = values.get("flags", "").split()
    return Processor(
        " ".join(filter(None, names)), tuple(flag for flag in BFLOAT16_FLAGS if flag in flags)
    )
