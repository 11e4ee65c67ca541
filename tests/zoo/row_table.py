"""The table of row files: what the product makes of each, beside what is right."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.tiny import tiny_chat_model, tiny_encoder, tiny_spec
from tests.zoo.cells import OK, REFUSED, WRONG, WrongError, shorten
from tests.zoo.plan_command import REFUSED_INPUT, ask_plan
from tests.zoo.row_expectations import RowsReading
from tests.zoo.row_files import CASES, RowCase

MAX_LENGTH, POSITIONS = 128, 512


@dataclass(frozen=True)
class RowResult:
    """The status of one file of rows."""

    name: str
    status: str
    reason: str = ""


def judge_rows(cases: Sequence[RowCase] = CASES) -> Iterator[RowResult]:
    """Yield the result of each case, in order; none ends the table."""
    with tempfile.TemporaryDirectory(prefix="zoo-rows-") as scratch:
        bases = {
            "causal-lm": _extend_positions(tiny_chat_model(Path(scratch) / "decoder")),
            "sequence-classification": tiny_encoder(Path(scratch) / "encoder"),
        }
        for case in cases:
            folder = Path(scratch) / case.name
            folder.mkdir()
            try:
                reading = read_rows(case, bases[case.task], folder)
                problem = case.right(reading)
                status = WRONG if problem else REFUSED if reading.refusal else OK
                reason = problem or reading.refusal or ""
            except Exception as error:
                status, reason = WRONG, f"{type(error).__name__}: {error}"
            yield RowResult(case.name, status, shorten(reason, 400).replace(f"{folder}/", ""))


def _extend_positions(base: Path) -> Path:
    """Let a model with rotary positions read the longest rows: a byte is a token here."""
    path = base / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "max_position_embeddings": POSITIONS}), "utf-8")
    return base


def read_rows(case: RowCase, base: Path, folder: Path) -> RowsReading:
    """Write the case's files, plan a run on them, and read the rows as the run would."""
    from jobs.errors import InputError

    case.write(folder)
    model = copy_base(base, folder / "model", case)
    data = {"format": "auto", "max_length": MAX_LENGTH, "packing": False, **case.data}
    if "packing" in data and case.task != "causal-lm":
        del data["packing"]
    data["train"] = str(folder / data.get("train", "rows.jsonl"))
    spec = tiny_spec(folder, data=data, model={"path": str(model), "task": case.task})
    answer = ask_plan(spec, folder / "spec.yaml")
    if answer.exit_code == REFUSED_INPUT:
        return RowsReading(refusal=answer.message)
    if answer.exit_code:
        raise WrongError(f"slora plan ends with {answer.exit_code}: {answer.message}")
    reading = RowsReading(plan=json.dumps(answer.plan, ensure_ascii=False) + answer.message)
    try:
        read_learned(spec, reading)
    except InputError as error:
        reading.late_refusal = str(error)
    return reading


def read_learned(spec: Mapping[str, Any], reading: RowsReading) -> None:
    """Read every row as the run's feed gives it to the model, and turn its tokens into text."""
    from transformers import AutoTokenizer

    from jobs.plan.preflight import validate_run
    from jobs.spec.load import validate_spec
    from jobs.train.data.worker_feeds import make_train_feed

    request = validate_run(validate_spec(spec)).make_request("rows")
    reading.labels = request.labels
    tokenizer: Any = AutoTokenizer.from_pretrained(request.base)
    feed = make_train_feed(request, tokenizer, rank=0, world_size=1)
    for step in feed.iter_epoch():
        for micro in step.micros:
            rows = zip(
                micro.inputs["input_ids"].tolist(),
                micro.inputs["attention_mask"].tolist(),
                micro.labels.tolist(),
                strict=True,
            )
            for ids, mask, labels in rows:
                tokens = [token for token, is_token in zip(ids, mask, strict=True) if is_token]
                is_class = isinstance(labels, int)
                targets = [label for label in ([labels] if is_class else labels) if label >= 0]
                if targets:
                    reading.contexts.append(tokenizer.decode(tokens))
                    reading.learned.append(str(labels) if is_class else tokenizer.decode(targets))


def copy_base(base: Path, folder: Path, case: RowCase) -> Path:
    """Link the base's files, with the case's template and a tokenizer that adds its tokens."""
    folder.mkdir()
    for path in base.iterdir():
        if path.name != "chat_template.jinja":
            (folder / path.name).symlink_to(path)
    if case.template is not None:
        (folder / "chat_template.jinja").write_text(case.template, encoding="utf-8")
    if case.adds:
        path = folder / "tokenizer.json"
        document = json.loads(path.read_text("utf-8"))
        document["post_processor"] = _make_post_processor(document, case.adds)
        path.unlink()
        path.write_text(json.dumps(document), encoding="utf-8")
    return folder


def _make_post_processor(document: Any, adds: Collection[str]) -> dict[str, Any]:
    """Return a template of the tokenizers library that puts these tokens around a text."""
    tokens = {"bos": "<bos>", "eos": "<|im_end|>"}
    ids = {token["content"]: token["id"] for token in document["added_tokens"]}
    before = [{"SpecialToken": {"id": tokens["bos"], "type_id": 0}}] if "bos" in adds else []
    after = [{"SpecialToken": {"id": tokens["eos"], "type_id": 0}}] if "eos" in adds else []
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": [*before, *text, *after],
        "pair": [*before, *text, {"Sequence": {"id": "B", "type_id": 0}}, *after],
        "special_tokens": {
            token: {"id": token, "ids": [ids[token]], "tokens": [token]}
            for name, token in tokens.items()
            if name in adds
        },
    }


def show_row_table(names: Collection[str], *, as_json: bool) -> int:
    """Print the results of the cases that are named, or of all; return 1 if one is wrong."""
    known = {case.name for case in CASES}
    if unknown := sorted(set(names) - known):
        raise SystemExit(f"no such rows: {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
    results = list(_follow(names, print if not as_json else None))
    if as_json:
        print(json.dumps({"rows": [asdict(result) for result in results]}, indent=1))
    return int(any(result.status == WRONG for result in results))


def _follow(names: Collection[str], write: Callable[[str], None] | None) -> Iterator[RowResult]:
    for result in judge_rows([case for case in CASES if not names or case.name in names]):
        if write is not None:
            write(f"{result.name:18} {result.status:8} {shorten(result.reason, 400)}".rstrip())
        yield result
