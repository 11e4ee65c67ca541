"""Tokenising before a run: faults of reading and of rendering together, and streamed data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.inspect.datasets.scan import STREAMED_ROWS
from jobs.plan.preflight import QUICK_ROWS, ValidatedRun, validate_run
from jobs.spec.load import validate_spec
from jobs.tools.preview import make_preview
from jobs.train.data.run_encoder import make_run_encoder
from jobs.train.data.source import RowSource, StreamedSamples
from jobs.train.data.tokenize_run import tokenize_run
from tests.tiny import CHATML, hollow_model, tiny_spec

STRICT = CHATML.replace(
    "{% for message in messages %}",
    "{% for message in messages %}{% if 'no' in message['content'] %}"
    "{{ raise_exception('this word is not allowed') }}{% endif %}",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    hollow_model(tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text(STRICT)
    return tmp_path


def write_lines(folder: Path, *lines: Any) -> Path:
    path = folder / "train.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def chat(answer: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    }


def validate(folder: Path, **data: Any) -> ValidatedRun:
    spec = tiny_spec(folder)
    spec["data"] = {**spec["data"], "packing": False, **data}
    return validate_run(validate_spec(spec), tokenizes_next=True)


def list_faults(work: Callable[[], Any]) -> list[tuple[str, str]]:
    with pytest.raises(InputError) as error:
        work()
    return [(fault.key.rpartition("/")[2], fault.problem) for fault in error.value.faults]


def test_faults_of_reading_and_of_rendering_are_reported_together(folder: Path):
    write_lines(
        folder, chat("fine"), "{", chat("no"), chat(5), chat("so"), chat("no way"), {"a": 1}
    )
    faults = list_faults(lambda: tokenize_run(validate(folder)))
    assert [key for key, _ in faults] == [f"train.jsonl:{line}" for line in (2, 3, 4, 6, 7)]
    assert "not allowed" in faults[1][1] and "content is 5" in faults[2][1]


def test_faults_of_rows_are_raised_by_a_check_that_tokenises_nothing(folder: Path):
    write_lines(folder, chat("fine"), chat(5))
    spec = validate_spec(tiny_spec(folder))
    assert [key for key, _ in list_faults(lambda: validate_run(spec))] == ["train.jsonl:2"]


def test_rows_of_no_format_are_not_skipped_but_named(folder: Path):
    write_lines(folder, {"foo": "a"}, {"foo": "b"})
    (fault,) = list_faults(lambda: validate(folder, on_bad_row="skip"))[:1]
    assert fault[0] == "train.jsonl:1" and "needs 'messages'" in fault[1]


def test_of_streamed_data_the_first_rows_are_checked_and_the_others_fail_as_they_are_read(
    folder: Path,
):
    checked = [chat("fine")] * STREAMED_ROWS
    path = write_lines(folder, *checked, chat("no"), "{", chat("so"))
    run = tokenize_run(validate(folder, streaming=True))
    tally = run.plan.tallies["data.train"]
    assert (run.train_scan.rows, tally.rows) == (STREAMED_ROWS, STREAMED_ROWS)
    assert f"its first {STREAMED_ROWS:,} rows were checked; a bad one" in run.plan.notes[-1]
    plan = tokenize_run(validate(folder, streaming=True), quick=True).plan
    assert plan.tallies["data.train"].rows == QUICK_ROWS
    assert f"its first {QUICK_ROWS:,} rows were checked for this plan" in plan.notes[-1]
    assert f"a run checks {STREAMED_ROWS:,} before it starts" in plan.notes[-1]
    assert not tally.is_complete and not list((folder / "cache").glob("tokens/*"))
    encoder = make_run_encoder(run.spec, run.model.folder, ())

    def read(**options: Any) -> int:
        rows = RowSource((path,), "chat", **options)
        return len(list(StreamedSamples(rows, encoder, "causal-lm").iter_rows_of_samples()))

    assert list_faults(read)[0][0] == f"train.jsonl:{STREAMED_ROWS + 1}"
    assert read(skips_bad_rows=True) == STREAMED_ROWS + 1
    digest = run.train_scan.sha256
    with path.open("a") as file:
        file.write(json.dumps(chat("more")))
    assert validate(folder, streaming=True).train_scan.sha256 not in (digest, None)


ANSWERS_ONLY_STRIPPED = CHATML.replace(
    "{{ message['content'] }}", "{{ message['content'].split('</think>')[-1].lstrip() }}"
).replace("<|im_start|>assistant", "<|im_start|>assistant\n<think>")


@pytest.mark.parametrize(
    ("template", "problem", "skips"),
    [
        ("{% for m in messages %}{{ m['content'] }", "can't be compiled (line 1", True),
        ("{{ messages[0].content | nofilter }}", "can't be compiled (line 1", False),
        ("{{ later('x') }}", "'later' is undefined), in each of 3 rows", False),
        ("{{ raise_exception('never') }}", "(never), in each of 3 rows (the first is", True),
        ("{{ messages[-1]['content'] }}<|im_end|>", "of the user, in each of 3 rows", False),
        ("hello", "renders nothing of the content of a message of the user", True),
        (ANSWERS_ONLY_STRIPPED, "strips the reasoning, up to </think>", False),
    ],
)
def test_a_template_that_fails_on_every_row_is_one_fault(
    folder: Path, template: str, problem: str, skips: bool
):
    file = folder / "model/chat_template.jinja"
    file.write_text(template)
    answers = [chat(f"<think>\nhm\n</think>\n\nyes {number}") for number in range(3)]
    write_lines(folder, *answers)
    more: dict[str, Any] = {"on_bad_row": "skip"} if skips else {}
    (fault,) = list_faults(lambda: tokenize_run(validate(folder, **more)))
    assert fault[0] == "chat_template.jinja" and problem in fault[1]


def test_rows_that_a_working_template_rejects_are_faults_of_their_own(folder: Path):
    write_lines(folder, chat("fine"), chat("no"), chat("no"))
    faults = list_faults(lambda: tokenize_run(validate(folder)))
    assert [key for key, _ in faults] == ["train.jsonl:2", "train.jsonl:3"]


@pytest.mark.parametrize("key", ["train", "eval"])
def test_data_of_which_nothing_is_learnt_are_refused_but_may_be_looked_at(folder: Path, key: str):
    good = write_lines(folder, chat("fine"), chat("so")).rename(folder / "good.jsonl")
    bad = write_lines(folder, chat(5), chat("no"), {"messages": []}).rename(folder / "bad.jsonl")
    paths = {"train": str(good), "eval": str(good), key: str(bad)}
    run = validate(folder, **paths, on_bad_row="skip", max_dropped=1.0)
    with pytest.raises(InputError) as error:
        tokenize_run(run, quick=True)
    (fault,) = error.value.faults
    assert fault.key == f"data.{key}" and "3 bad row" in fault.problem
    assert "bad.jsonl:1" in fault.remedy
    seen = tokenize_run(run, quick=True, allows_dropped=True)
    assert seen.plan.tallies[f"data.{key}"].targets == 0


def test_the_plan_and_the_preview_say_which_trained_tokens_are_new(folder: Path):
    write_lines(folder, chat("fine"), chat("so"))
    spec = tiny_spec(folder, method={"train_tokens": ["<tool>", "a", " "]})
    run_spec = validate_spec(spec)
    plan = tokenize_run(validate_run(run_spec, quick=True, tokenizes_next=True), quick=True).plan
    note = "method.train_tokens: 'a' of the tokenizer and '<tool>', ' ' (the tokenizer has 'Ġ' "
    assert plan.notes[-1] == f"{note}for it) as new"
    assert make_preview(run_spec, count=1).notes == (plan.notes[-1],)
