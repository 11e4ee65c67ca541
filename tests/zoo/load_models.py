"""Load a module of models, by its path: the zoo's own or one that a user names."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from tests.zoo.small_configs import Maker

OWN = str(Path(__file__).with_name("models.py"))
GROUPS = ("CAUSAL", "CLASSIFY", "SEQ2SEQ", "VLM")


def load_groups(path: str) -> dict[str, dict[str, Maker]]:
    """Return the module's four dictionaries of makers; one that it lacks is empty."""
    name = f"zoo_models_{abs(hash(path))}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise SystemExit(f"{path} is not a Python file. Name one with CAUSAL, CLASSIFY, ...")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return {group: dict(getattr(sys.modules[name], group, {})) for group in GROUPS}


def load_maker(path: str, group: str, name: str) -> Maker:
    """Return one maker of a module."""
    return load_groups(path)[group][name]
