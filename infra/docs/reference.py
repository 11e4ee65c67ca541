"""Reference pages of the documentation, generated from the code while mkdocs builds the site."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parents[2]))

from infra.docs.zoo_page import render_zoo

Schema = Mapping[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages (mkdocs calls this hook)."""
    pages = {
        "reference/spec.md": render_spec,
        "reference/cli.md": render_commands,
        "reference/http.md": render_http,
        "reference/events.md": render_events,
        "reference/zoo.md": render_zoo,
    }
    for name, render in pages.items():
        files.append(File.generated(config, name, content=render()))
    return files


def render_spec() -> str:
    """Return every key of the spec with its type, bounds and default, from its JSON Schema."""
    from jobs.spec.schema import RunSpec

    schema = RunSpec.model_json_schema()
    lines = [
        "# The spec",
        "",
        "`slora schema` prints the JSON Schema behind this page.",
        "`--set a.b=value` overrides any key.",
        "",
    ]
    lines += _render_object("", schema, schema.get("$defs", {}), depth=2)
    return "\n".join(lines)


def _render_object(path: str, schema: Schema, defs: Schema, *, depth: int) -> Iterator[str]:
    nested = []
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    for key, value in schema.get("properties", {}).items():
        full = f"{path}.{key}" if path else key
        target = _find_object(value, defs)
        if target is not None:
            nested.append((full, target))
        default = "required" if key in schema.get("required", ()) else _code(value.get("default"))
        meaning = " ".join(str(value.get("description", "")).split())
        yield f"| `{key}` | {_describe_type(value, defs)} | {default} | {_escape(meaning)} |"
    yield ""
    for full, target in nested:
        yield f"{'#' * min(depth, 4)} {full}"
        yield ""
        if target.get("description"):
            yield from (str(target["description"]).split("\n\n")[0], "")
        yield from _render_object(full, target, defs, depth=depth + 1)


def _find_object(schema: Schema, defs: Schema) -> Schema | None:
    """Return the object that a property holds, whether optional or not."""
    for option in (schema, *schema.get("anyOf", ())):
        if "$ref" in option:
            target = defs[option["$ref"].rsplit("/", 1)[-1]]
            if "properties" in target:
                return dict(target)
    return None


def _describe_type(schema: Schema, defs: Schema) -> str:
    if "$ref" in schema:
        target = defs[schema["$ref"].rsplit("/", 1)[-1]]
        return "section" if "properties" in target else _describe_type(target, defs)
    if "anyOf" in schema:
        options = (_describe_type(option, defs) for option in schema["anyOf"])
        return " or ".join(dict.fromkeys(options))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    bounds = [
        f"{sign} {schema[key]}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in schema
    ]
    return " ".join([str(schema.get("type", "any")), *bounds])


def render_commands() -> str:
    """Return every command with its arguments and options, from Typer."""
    from orchestrator.cli.command_table import COMMANDS
    from orchestrator.cli.tree import load_command

    lines = [
        "# The command line",
        "",
        "Exit codes: 0 done, 1 the run failed, 2 the input is invalid,",
    ]
    lines += ["3 an external system is not reachable.", ""]
    for name in COMMANDS:
        lines += _render_command(f"slora {name}", load_command(name), depth=2)
    return "\n".join(lines)


def _render_command(name: str, command: Any, *, depth: int) -> Iterator[str]:
    yield from (f"{'#' * depth} {name}", "", " ".join((command.help or "").split()), "")
    rows = []
    for parameter in command.params:
        flags = ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))
        if parameter.name in ("help",) or getattr(parameter, "hidden", False):
            continue
        is_option = parameter.param_type_name == "option"
        label = flags if is_option else f"`{(parameter.metavar or parameter.name or '').upper()}`"
        rows.append(f"| {label} | {_escape(' '.join((parameter.help or '').split()))} |")
    if rows:
        yield from ("| argument | meaning |", "|---|---|", *rows, "")
    for child, subcommand in getattr(command, "commands", {}).items():
        yield from _render_command(f"{name} {child}", subcommand, depth=depth + 1)


def render_http() -> str:
    """Return every route of the API with its scope and answers, from the OpenAPI document."""
    document = _build_openapi()
    defs = document["components"]["schemas"]
    lines = ["# HTTP", "", "A running service serves the OpenAPI document at `/openapi.json`.", ""]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines += [f"## {method.upper()} {path}", "", operation.get("summary", ""), ""]
            if operation.get("description"):
                lines += [operation["description"], ""]
            parameters = operation.get("parameters", [])
            if parameters:
                lines += ["| parameter | in | type |", "|---|---|---|"]
                lines += [
                    f"| `{p['name']}` | {p['in']} | {_describe_type(p.get('schema', {}), defs)} |"
                    for p in parameters
                ]
                lines.append("")
            answers = ", ".join(f"`{status}`" for status in operation["responses"])
            lines += [f"Responses: {answers}.", ""]
    return "\n".join(lines)


def _build_openapi() -> Mapping[str, Any]:
    from orchestrator.api.document import build_document

    return build_document()


def render_events() -> str:
    """Return every event of a run with the line that `slora logs` prints for it."""
    from jobs.train.monitor.events import EVENTS

    lines = [
        "# Events",
        "",
        "A run appends its events to `runs/<run>/events.jsonl`, one JSON object a line,",
        "with `event` and `time` (seconds since 1970).",
        "",
        "| event | when it is written |",
        "|---|---|",
        *(f"| `{name}` | {_escape(meaning)} |" for name, meaning in EVENTS.items()),
    ]
    return "\n".join(lines) + "\n"


def _code(value: object) -> str:
    return "" if value is None else f"`{value}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
