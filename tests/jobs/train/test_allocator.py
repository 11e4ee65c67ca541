"""A worker's C library keeps freed memory for the next step."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT_FAULTS = """
from jobs.train.allocator import keep_freed_memory
import resource, sys, threading

def allocate():
    blocks = [bytearray(1 << 21) for _ in range(16)]

def count_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    kept = len(sys.argv) == 1 or keep_freed_memory()
    allocate()
    before = count_faults()
    allocate()
    print(int(kept), count_faults() - before)

# As Ray Train runs the function of a worker: in a thread of its own.
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
PAGES = 16 * (1 << 21) // 4096


def count_faults(*arguments: str) -> tuple[bool, int]:
    command = [sys.executable, "-c", COUNT_FAULTS, *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kept, faults = map(int, output.split())
    return bool(kept), faults


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_second_step_touches_no_new_page():
    _, faults = count_faults()
    kept, kept_faults = count_faults("keep")
    if not kept:
        pytest.skip("not glibc")
    assert faults > PAGES / 2
    assert kept_faults < PAGES / 10
