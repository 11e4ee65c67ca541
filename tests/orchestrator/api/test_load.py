"""The load benchmark in small: nothing accepted is lost, every follower gets every byte."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.benchmarks.service_load import measured


def test_a_service_under_load_loses_nothing(tmp_path: Path):
    asked = argparse.Namespace(runs=400, pages=100, submissions=100, followers=40)
    found = measured(tmp_path, asked)
    assert found["submissions_lost"] == 0
    assert found["followers_whole"] == 40
