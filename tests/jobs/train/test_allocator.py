"""A worker's C library keeps freed memory for the next step."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT_FAULTS = """
from jobs.train.allocator import tune_allocator
import resource, sys, threading

def allocate():
    blocks = [bytearray(1 << 21) for _ in range(16)]

def count_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    kept = len(sys.argv) == 1 or tune_allocator("bfloat16", recomputes=sys.argv[1] == "return")
    allocate()
    before = count_faults()
    allocate()
    print(int(kept), count_faults() - before)

# As Ray Train runs the function of a worker: in a thread of its own.
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
MEASURE_HOLES = """
from jobs.train.allocator import tune_allocator
import sys, threading

def read_resident():
    return int(open("/proc/self/statm").read().split()[1])

def work():
    if len(sys.argv) > 1:
        tune_allocator("float32", recomputes=True)
    # A freed block raises glibc's own threshold, as in any training.
    large = bytearray(31 << 20)
    del large
    before = read_resident()
    blocks = [bytearray(b"1" * (2 << 20)) for _ in range(16)]
    del blocks[::2]
    print(read_resident() - before)

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


def measure_holes(*arguments: str) -> int:
    """Return the pages that are resident beside half of the blocks, the others being freed."""
    command = [sys.executable, "-c", MEASURE_HOLES, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_second_step_touches_no_new_page():
    _, faults = count_faults()
    kept, kept_faults = count_faults("keep")
    if not kept:
        pytest.skip("not glibc")
    assert faults > PAGES / 2
    assert kept_faults < PAGES / 10


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_run_that_computes_layers_again_holds_no_freed_block():
    kept, _ = count_faults("keep")
    if not kept:
        pytest.skip("not glibc")
    # 16 blocks of 2 MB, of which every other one is freed: without holes half is left.
    assert measure_holes("return") < 0.6 * measure_holes()
