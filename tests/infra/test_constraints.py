"""The pins of constraints.txt, with which every installation is made."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]


def test_every_pin_installs_on_the_oldest_python_that_is_promised():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [oldest] = re.findall(r">=(\d+\.\d+)", project["requires-python"])
    pins = re.findall(r"^([^#=\s]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    required = {
        (package.name.lower().replace("_", "-"), package.version): package.metadata.get(
            "Requires-Python", ""
        )
        for package in distributions()
    }
    installed = [pin for pin in pins if (pin[0].lower(), pin[1]) in required]
    assert len(installed) > 100
    assert not [
        pin
        for pin in installed
        if not SpecifierSet(required[pin[0].lower(), pin[1]]).contains(f"{oldest}.0")
    ]
