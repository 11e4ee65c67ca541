"""docs/operate.md tells all that there is: metrics, alerts, keys of the configuration, commands."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from jobs.spec import Frozen
from orchestrator.commands.table import COMMANDS
from orchestrator.service.config import ClusterConfig, ServiceConfig, check_config
from tests.infra.test_monitoring import FOLDER, labels, metrics

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operate.md").read_text(encoding="utf-8")


def rows(start: str) -> dict[str, list[str]]:
    """The rows of the table below a header, by their first cell."""
    table = PAGE.partition(f"\n| {start} |")[2].partition("\n\n")[0]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {cells[0].strip("`"): cells[1:] for cells in found[2:] if len(cells) > 1}


def test_every_metric_is_explained_with_its_labels():
    told = rows("metric")
    assert set(told) == set(metrics())
    for name, (words, meaning) in told.items():
        assert set(re.findall(r"`([a-z]+)`", words)) == labels()[name]
        assert len(meaning) > 10


def test_every_alert_has_somewhere_to_look():
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    assert set(rows("alert")) == {rule["alert"] for group in groups for rule in group["rules"]}


@pytest.mark.parametrize(
    ("model", "place"), [(ServiceConfig, 0), (ClusterConfig, 1)], ids=["service", "cluster"]
)
def test_every_key_of_the_configuration_is_told_with_its_default(model: type[Frozen], place: int):
    tables = PAGE.split("\n| key | default | |")[1:]
    lines = [line.split("|") for line in tables[place].partition("\n\n")[0].splitlines()[2:]]
    told = {cells[1].strip().strip("`"): cells[2].strip().strip("`") for cells in lines}
    assert set(told) == set(model.model_fields)
    for name, field in model.model_fields.items():
        default = field.get_default()
        words = "needed" if field.is_required() else _words(default)
        assert told[name] == words, name


def _words(default: object) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return default[0] if isinstance(default, tuple) else str(default)


def test_the_configuration_that_it_shows_is_a_valid_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    shown = PAGE.partition("## The configuration file\n\n")[2].partition("\n\n")[0]
    found = check_config(yaml.safe_load(shown))
    assert set(found.clusters) == {"default"}


NAMED = sorted(set(re.findall(r"\bslora ([a-z]+)(?: ([a-z]+))?", PAGE)))


@pytest.mark.parametrize(("command", "below"), NAMED, ids=" ".join)
def test_every_command_that_it_names_is_one(command: str, below: str):
    assert command in COMMANDS
    module, _, name = COMMANDS[command].where.partition(":")
    if not name:
        group: Any = typer.main.get_command(import_module(module).app)
        assert below in group.commands


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", PAGE))))
def test_every_link_leads_somewhere(link: str):
    assert (ROOT / "docs" / link).exists()
