"""The schema: names, defaults, bounds, and the JSON Schema that accepts what the loader accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.errors import Fault, InputError
from jobs.plan.checks import check_cluster, check_method
from jobs.spec.limits import NAME_PATTERN
from jobs.spec.load import dump_spec, load_spec, validate_spec
from jobs.spec.paths import make_paths_absolute
from jobs.spec.schema import RunSpec
from tests.tiny import merge_spec, tiny_spec, write_spec

HERE = Path("/made/up")
EXAMPLES = sorted((Path(__file__).parents[3] / "jobs/examples").glob("*.yaml"))

ONE_KEY = [path for path in EXAMPLES if path.name != "federate.yaml"]
"""A federation says how many of its rounds are sparse, which only two stages have."""


def list_faults(**overrides: Any) -> dict[str, Fault]:
    with pytest.raises(InputError) as refused:
        validate_spec(tiny_spec(HERE, **overrides))
    return {fault.key: fault for fault in refused.value.faults}


def test_a_minimal_spec_is_completed_by_defaults():
    spec = validate_spec(tiny_spec(HERE))
    assert (spec.method.kind, spec.method.alpha, spec.train.schedule) == ("slora", 16, "cosine")
    assert spec.method.handoff.split == "balanced"
    assert spec.workers == 1


WIDE, PLAIN = (32, 64, 0.25), (8, 16, 1.0)
FACTORS: dict[str, tuple[dict[str, Any], tuple[int, float, float]]] = {
    "nothing named": ({}, WIDE),
    "another density": ({"density": 0.02}, WIDE),
    "rows by density": ({"mask": "rows", "sizing": "density"}, WIDE),
    "rows by rank": ({"mask": "rows"}, PLAIN),
    "a rank": ({"rank": 4}, (4, 16, 1.0)),
    "an alpha": ({"alpha": 8}, (8, 8, 1.0)),
    "a factor density": ({"factor_density": 0.5}, (8, 16, 0.5)),
    "lora": ({"kind": "lora"}, PLAIN),
    "sparse": ({"kind": "sparse"}, PLAIN),
}
"""Of a spec whose method says this: rank, alpha, factor_density."""


@pytest.mark.parametrize(("method", "expected"), FACTORS.values(), ids=FACTORS)
def test_slora_hands_over_to_a_high_rank_unless_the_spec_names_factors(
    method: dict[str, Any], expected: tuple[int, float, float]
):
    spec = validate_spec(tiny_spec(HERE) | {"method": method}).method
    assert (spec.rank, spec.alpha, spec.factor_density) == expected


AVERAGES: dict[str, dict[str, Any]] = {
    "of workers": {"cluster": {"workers": 2, "sync_every": 4, "average": "product"}},
    "of clients": {"train": {"steps": None}, "federation": {"clients": 12, "average": "product"}},
}


@pytest.mark.parametrize("changes", AVERAGES.values(), ids=AVERAGES)
def test_a_spec_that_averages_products_has_whole_factors(changes: dict[str, Any]):
    spec = validate_spec(merge_spec(tiny_spec(HERE), changes) | {"method": {}})
    assert (spec.method.rank, spec.method.alpha, spec.method.factor_density) == PLAIN
    assert not list(check_cluster(spec.training))


def test_a_spec_can_not_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        validate_spec(tiny_spec(HERE)).name = "other"


HOSTILE = {
    "slash": "a/b",
    "parent": "..",
    "parent inside": "a..b",
    "parent first": "../a",
    "leading dot": ".a",
    "trailing dot": "a.",
    "leading dash": "-rf",
    "empty": "",
    "64 letters": "a" * 64,
    "blank": " ",
    "newline": "a\n",
    "nul": "a\0",
    "escape": "a\x1b[2J",
    "backslash": "a\\b",
    "not ascii": "naïve",
    "right to left": "a\u202eb",
    "number": 12,
    "null": None,
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_name_that_is_no_plain_word_is_refused(name: Any):
    spec = tiny_spec(HERE) | {"name": name}
    with pytest.raises(InputError) as refused:
        validate_spec(spec)
    [fault] = refused.value.faults
    assert fault.key == "name" and "letters, digits" in fault.remedy
    assert fault.problem.isprintable()


@pytest.mark.parametrize("name", ["a", "7", "chat", "Chat-2_b", "v1.2", "a" * 63])
def test_a_plain_word_is_a_name(name: str):
    assert validate_spec(tiny_spec(HERE, name=name)).name == name


ALMOST = st.one_of(
    st.from_regex(NAME_PATTERN),
    st.text(alphabet="aZ09._-/\\ \0\n\r\u2028~é", max_size=70),
)


@given(ALMOST)
def test_an_accepted_name_is_a_single_safe_path_component(name: str):
    try:
        accepted = validate_spec(tiny_spec(HERE, name=name)).name
    except InputError:
        return
    assert (Path("/store") / accepted).parent == Path("/store")
    assert Path("/store", accepted).resolve() == Path("/store") / name
    assert accepted.isascii() and accepted.isprintable() and not set(accepted) & set("/\\ ~")
    assert accepted[0].isalnum() and ".." not in accepted and len(accepted) < 64


def test_a_value_of_the_wrong_type_is_reported_once():
    faults = list_faults(method={"mask": ["random"]}, cluster={"sync_every": "often"})
    assert set(faults) == {"method.mask", "cluster.sync_every"}
    assert not any("yet" in fault.problem for fault in faults.values())


def test_what_a_run_records_reads_back_as_the_same_spec(tmp_path: Path):
    values = tiny_spec(
        tmp_path,
        method={"targets": ["q_proj", "mlp.*"], "alpha": 0.1, "handoff": {"split": "b"}},
        train={"learning_rate": 1e-5, "seed": 2**62, "eval_every": 3},
        data={"eval_fraction": 0.25, "train": "naïve\u2028 folder/a: b.jsonl"},
    )
    spec = validate_spec(values)
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(spec), encoding="utf-8")
    assert load_spec(path) == make_paths_absolute(spec)
    assert "max_failures: 3" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_schema_accepts_every_example(path: Path):
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), make_schema())


@pytest.mark.parametrize("kind", ["slora", "lora", "sparse", "full"])
@pytest.mark.parametrize("path", ONE_KEY, ids=lambda path: path.name)
def test_the_baselines_are_one_key_away_from_every_example(path: Path, kind: str):
    spec = load_spec(path, [f"method.kind={kind}"])
    assert list(check_method(spec)) == []
    assert spec.method.has_factor_masks <= (kind in ("slora", "lora"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../a"},
        {"nonsense": 1},
        {"method": {"density": 0}},
        {"train": {"steps": "8"}},
        {"search": {"space": {}}},
        {"retrain": {"start": "yesterday"}},
        {"federation": {"drop_out": 1}},
    ],
    ids=["name", "unknown key", "density", "type", "a search of nothing", "a start", "no client"],
)
def test_the_schema_refuses_what_the_spec_refuses(wrong: dict[str, Any], tmp_path: Path):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tiny_spec(tmp_path, **wrong), make_schema())
    with pytest.raises(InputError):
        load_spec(write_spec(tmp_path / "spec.yaml", tiny_spec(tmp_path, **wrong)))


def test_the_schema_tells_what_each_key_is_for():
    method = make_schema()["$defs"]["MethodSection"]["properties"]
    assert method["density"]["description"].startswith("Share of the targets' weights")


def make_schema() -> dict[str, Any]:
    document = RunSpec.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(document)
    return document


def test_every_number_is_bounded_on_both_sides():
    unbounded = []

    def walk(node: Any, path: str) -> None:
        if not isinstance(node, dict):
            return
        if node.get("type") in ("integer", "number") and "const" not in node and "enum" not in node:
            lower = {"minimum", "exclusiveMinimum"} & node.keys()
            upper = {"maximum", "exclusiveMaximum"} & node.keys()
            if not (lower and upper):
                unbounded.append(path)
        for key, value in node.items():
            for index, inner in enumerate(value if isinstance(value, list) else [value]):
                walk(inner, f"{path}/{key}[{index}]")

    walk(make_schema(), "")
    assert not unbounded
