"""Every number that comes in has bounds, and none of them exceeds the type of its column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import BigInteger, Integer

from jobs.spec.limits import MAX_INT32, MAX_INT64
from jobs.spec.schema import RunSpec
from orchestrator.registry.run_request import RunRequest
from orchestrator.registry.schedules import NewSchedule
from orchestrator.registry.tables import ProjectRow, RunRow, ScheduleRow
from orchestrator.registry.values import ProjectLimits
from tests.orchestrator.api.builders import ApiHarness
from tests.orchestrator.api.conftest import api  # noqa: F401

LOW = {"minimum", "exclusiveMinimum"}
HIGH = {"maximum", "exclusiveMaximum"}


def iterate_numbers(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each schema of a number with its path."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and "const" not in schema:
            yield path, schema
        for key, value in schema.items():
            yield from iterate_numbers(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from iterate_numbers(value, f"{path}/{index}")


def find_unbounded(schema: Any) -> list[str]:
    return [
        path
        for path, number in iterate_numbers(schema)
        if "enum" not in number and not (LOW & number.keys() and HIGH & number.keys())
    ]


def test_every_number_of_a_spec_has_two_bounds():
    assert len(list(iterate_numbers(RunSpec.model_json_schema()))) > 60
    assert find_unbounded(RunSpec.model_json_schema()) == []


def test_every_number_of_a_request_has_two_bounds(api: ApiHarness):  # noqa: F811
    document = api.app.openapi()
    requests = {
        name: schema
        for name, schema in document["components"]["schemas"].items()
        if name.endswith("Request")
    }
    assert {"SubmitRunRequest", "CreateScheduleRequest", "CreateProjectRequest"} <= {*requests}
    assert find_unbounded(requests) == []
    parameters = [
        parameter
        for methods in document["paths"].values()
        for operation in methods.values()
        for parameter in operation.get("parameters", ())
        if parameter["in"] != "header"
    ]
    assert parameters and find_unbounded(parameters) == []


def test_no_bound_exceeds_the_type_of_its_column():
    checked = 0
    for model, table in ((RunRequest, RunRow), (NewSchedule, ScheduleRow),
                         (ProjectLimits, ProjectRow)):  # fmt: skip
        columns = {column.name: column.type for column in table.__table__.columns}
        for path, number in iterate_numbers(model.model_json_schema()["properties"]):
            name = path.split("/")[1]
            if number["type"] != "integer" or name not in columns:
                continue
            column = columns[name]
            largest = MAX_INT64 if isinstance(column, BigInteger) else MAX_INT32
            assert isinstance(column, Integer) and number["maximum"] <= largest, name
            assert number["minimum"] >= -largest, name
            checked += 1
    assert checked >= 7
