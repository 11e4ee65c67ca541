"""The memory that a node has left, with and without a container's limit."""

from __future__ import annotations

from pathlib import Path

from jobs.train.pool.node_memory import read_available_memory


def test_a_containers_limit_counts_and_its_file_caches_do_not(tmp_path: Path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  2000 kB\nMemAvailable:  1000 kB\n")
    cases = [(None, 1_024_000), ("max", 1_024_000), ("700000", 300_000), ("9000000", 1_024_000)]
    for limit, available in cases:
        group = tmp_path / str(limit)
        group.mkdir()
        if limit is not None:
            (group / "memory.max").write_text(f"{limit}\n")
            (group / "memory.current").write_text("500000\n")
            (group / "memory.stat").write_text("anon 400000\nfile 100000\n")
        assert read_available_memory(meminfo, group) == available
