"""A small load benchmark: no accepted run is lost, and every follower gets every byte."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.benchmarks.service_load.__main__ import measure_service


@pytest.mark.slow
def test_a_service_under_load_loses_nothing(tmp_path: Path):
    options = argparse.Namespace(runs=400, pages=100, submissions=100, followers=40)
    results = measure_service(tmp_path, options)
    assert results["submissions_lost"] == 0
    assert results["followers_complete"] == 40
