"""`slora projects --places --models`: what the runs of a project may read."""

from __future__ import annotations

import json

import pytest

from tests.orchestrator.cli.commands.conftest import CommandHarness


def show_inputs(cli: CommandHarness, name: str = "lab") -> tuple[object, object]:
    project = json.loads(cli.ask("projects", "show", name, "--json").stdout)
    return project["places"], project["models"]


def test_a_new_project_reads_nothing_and_default_reads_anything(cli: CommandHarness):
    assert cli.ask("projects", "add", "lab").exit_code == 0
    assert show_inputs(cli) == ([], [])
    assert show_inputs(cli, "default") == (None, None)


def test_places_and_models_are_given_as_a_list_and_written_in_one_spelling(cli: CommandHarness):
    words = ("--places", "s3://data/lab/", "file:///data/lab/", "--models", "org/*", "--json")
    assert cli.ask("projects", "add", "lab", *words).exit_code == 0
    assert show_inputs(cli) == (["s3://data/lab", "/data/lab"], ["hf://org/*"])
    assert cli.ask("projects", "set", "lab", "--places=any").exit_code == 0
    assert show_inputs(cli) == (None, ["hf://org/*"])
    assert cli.ask("projects", "set", "lab", "--models", "none", "--max-runs", "3").exit_code == 0
    assert show_inputs(cli) == (None, [])
    lines = [line.split() for line in cli.ask("projects", "show", "lab").stdout.splitlines()]
    assert lines[:3] == [["project", "lab"], ["places", "any"], ["models", "none"]]
    assert ["runs", "at", "once", "0", "3"] in lines


@pytest.mark.parametrize(
    "place", ["data/lab/", "/data/../etc", "s3://data//x", "/data/*", "ftp://x/y"]
)
def test_a_place_that_could_be_read_in_two_ways_is_refused(cli: CommandHarness, place: str):
    result = cli.ask("projects", "add", "lab", "--places", place)
    assert result.exit_code == 2 and result.stderr.startswith("--places: ")
    body = {"name": "lab", "places": [place]}
    assert cli.api.request("POST", "/v1/projects", json=body).status_code == 422
