"""docs/guides/operation.md has every metric, alert, configuration key and command."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from jobs.spec.strict_model import StrictModel
from orchestrator.cli.command_table import COMMANDS
from orchestrator.control.config import ClusterConfig, ServiceConfig, parse_config
from tests.infra.test_monitoring import FOLDER, list_labels, list_metrics

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guides/operation.md").read_text(encoding="utf-8")


def parse_rows(start: str) -> dict[str, list[str]]:
    """Return the rows of the table below a header, by their first cell."""
    table = PAGE.partition(f"\n| {start} |")[2].partition("\n\n")[0]
    cells_by_row = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
    ]
    return {cells[0].strip("`"): cells[1:] for cells in cells_by_row[2:] if len(cells) > 1}


def test_every_metric_is_explained_with_its_labels():
    documented = parse_rows("metric")
    assert set(documented) == set(list_metrics())
    for name, (label_text, meaning) in documented.items():
        assert set(re.findall(r"`([a-z]+)`", label_text)) == list_labels()[name]
        assert len(meaning) > 10


def test_every_alert_is_explained():
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    assert set(parse_rows("alert")) == {
        rule["alert"] for group in groups for rule in group["rules"]
    }


@pytest.mark.parametrize(
    ("model", "table_index"), [(ServiceConfig, 0), (ClusterConfig, 1)], ids=["service", "cluster"]
)
def test_every_configuration_key_is_documented_with_its_default(
    model: type[StrictModel], table_index: int
):
    tables = PAGE.split("\n| key | default | |")[1:]
    lines = [line.split("|") for line in tables[table_index].partition("\n\n")[0].splitlines()[2:]]
    documented = {cells[1].strip().strip("`"): cells[2].strip().strip("`") for cells in lines}
    assert set(documented) == set(model.model_fields)
    for name, field in model.model_fields.items():
        default = field.get_default()
        expected = "needed" if field.is_required() else format_default(default)
        assert documented[name] == expected, name


def format_default(default: object) -> str:
    if default in (None, ()):
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, StrictModel):
        return "below"  # a section with a table of its own
    return default[0] if isinstance(default, tuple) else str(default)


def test_the_example_configuration_is_valid(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    example = PAGE.partition("## The configuration file\n\n")[2].partition("\n\n")[0]
    config = parse_config(yaml.safe_load(example))
    assert set(config.clusters) == {"default"}


COMMANDS_IN_PAGE = sorted(set(re.findall(r"\bslora ([a-z]+)(?: ([a-z]+))?", PAGE)))


@pytest.mark.parametrize(("command", "below"), COMMANDS_IN_PAGE, ids=" ".join)
def test_every_named_command_exists(command: str, below: str):
    assert command in COMMANDS
    module, _, name = COMMANDS[command].target.partition(":")
    if not name:
        group: Any = typer.main.get_command(import_module(module).app)
        assert below in group.commands
