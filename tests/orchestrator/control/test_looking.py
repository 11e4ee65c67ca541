"""Looks: bounded in memory, time and bytes, whatever lies in a model's or a data set's files."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import StoreUnreachable
from jobs.places.places import PROBLEM, REMEDY, Places
from jobs.spec.load import validate_spec
from orchestrator.control.looking.answer_folders import MAX_ANSWERS, AnswerFolders
from orchestrator.control.looking.look_protocol import LookLimits, LookRequest, LookResult
from tests.orchestrator.control.builders import make_spec
from tests.orchestrator.control.looker import WAIT_S, Looker, make_fifo
from tests.orchestrator.control.misbehaving_child import MODULE
from tests.tiny import chat_rows, hollow_model
from tests.waiting import wait_for

MAX_GROWTH_KIB = 64 << 10
SENTENCE = f"data.train: {PROBLEM}. {REMEDY}"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


class Files:
    """A model and data, of which each test makes one hostile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = hollow_model(folder / "model")
        self.rows = chat_rows(folder / "train.jsonl", 4)

    def make_request(self, places: Places | None = None, **data: Any) -> LookRequest:
        spec = make_spec(
            f"file://{self.folder}/store",
            model={"path": str(self.model)},
            data={"train": str(self.rows), "max_length": 32, **data},
            method={"rank": 2},
        )
        values = validate_spec(spec).training.model_dump(mode="json")
        return LookRequest(question="validate_run", spec=values, places=places)


@pytest.fixture
def files(open_folder: Path) -> Files:
    return Files(open_folder)


def list_faults(result: LookResult) -> list[str]:
    return list(map(str, result.faults))


def test_right_files_have_no_fault_and_a_missing_one_is_named(files: Files, looker: Looker):
    runner = looker.make()
    assert runner.submit("default", files.make_request()).result(WAIT_S).faults == ()
    missing = runner.submit("default", files.make_request(train="/none.jsonl")).result(WAIT_S)
    assert "data.train: file not found: /none.jsonl" in list_faults(missing)[0]


def test_a_look_computes_the_fingerprint_of_data(files: Files, looker: Looker):
    runner = looker.make()

    def look(location: str) -> str | None:
        request = LookRequest(question="fingerprint_data", location=location)
        return runner.submit("default", request).result(WAIT_S).fingerprint

    before = look(str(files.rows))
    assert before is not None and look(str(files.rows)) == before
    chat_rows(files.rows, 5)
    assert look(str(files.rows)) not in (None, before)
    assert look("/none.jsonl") is None


def test_a_hub_id_has_no_fingerprint(looker: Looker):
    request = LookRequest(question="fingerprint_data", location="somebody/rows-of-a-hub")
    assert looker.make().submit("default", request).result(WAIT_S) == LookResult()


def test_a_service_that_cannot_start_a_process_may_look_later(looker: Looker):
    def fail() -> None:
        raise BlockingIOError("no more processes")

    request = LookRequest(question="fingerprint_data", location="/rows")
    result = looker.make(find_account=fail).submit("default", request).result(WAIT_S)
    assert "no more processes" in result.store_error


def test_the_answers_about_models_are_kept_for_a_project_alone():
    folders = AnswerFolders()
    lab = folders.prepare("lab", None)
    (lab / "descriptions").mkdir()
    for number in range(MAX_ANSWERS):
        (lab / "descriptions" / f"{number}.json").touch()
    assert folders.prepare("lab", None) == lab and len(list(lab.rglob("*.json"))) == MAX_ANSWERS
    assert list(folders.prepare("other", None).iterdir()) == []
    assert lab.stat().st_mode & 0o777 == 0o700
    (lab / "one-more.json").touch()
    assert list(folders.prepare("lab", None).iterdir()) == []
    folders.close()
    assert not lab.exists()


def write_bomb(path: Path) -> Path:
    """Write 10 GB of zeros in 10 MB."""
    member = gzip.compress(bytes(64 << 20))
    path.write_bytes(member * 160)
    return path


def write_sparse(path: Path, size: int, start: bytes = b"") -> Path:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def write_endless_template(files: Files) -> None:
    config = {"chat_template": "{% for _ in range(10**9) %}{{ messages }}{% endfor %}"}
    (files.model / "tokenizer_config.json").write_text(json.dumps(config))


def write_header(files: Files) -> None:
    start = (2**60).to_bytes(8, "little")
    write_sparse(files.model / "model.safetensors", 1 << 40, start)


def replace_by_link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


HOSTILE: tuple[tuple[Callable[[Files], object], str, str], ...] = (
    (lambda files: write_bomb(files.folder / "bomb.jsonl.gz"), "bomb.jsonl.gz", "decompress to"),
    (
        lambda files: write_sparse(files.folder / "large.jsonl", 100 << 30),
        "large.jsonl",
        "more than 67,108,864 bytes",
    ),
    (
        lambda files: write_sparse(files.folder / "large.parquet", 100 << 30, b"PAR1"),
        "large.parquet",
        "invalid or truncated parquet",
    ),
    (lambda files: make_fifo(files.folder / "pipe.jsonl"), "pipe.jsonl", "file not found"),
    (lambda files: None, "/dev/zero", "file not found"),
    (
        lambda files: make_fifo(files.model / "config.json"),
        "train.jsonl",
        "neither a file nor a folder",
    ),
    (
        lambda files: replace_by_link(files.model / "config.json", "/dev/zero"),
        "train.jsonl",
        "neither a file nor a folder",
    ),
    (
        lambda files: write_sparse(files.model / "config.json", 1 << 30),
        "train.jsonl",
        "more than 67,108,864",
    ),
    (write_header, "train.jsonl", "a header of 1152921504606846976 bytes"),
)
"""What is made, the data of the spec, and the answer."""


def test_hostile_files_end_in_an_answer_and_cost_the_service_no_memory(
    open_folder: Path, looker: Looker
):
    runner = looker.make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, (make_files, train, expected) in enumerate(HOSTILE):
        files = Files(open_folder / str(number))
        make_files(files)
        request = files.make_request(train=str(files.folder / train))
        result = runner.submit("default", request).result(WAIT_S)
        answer = "\n".join([*list_faults(result), result.unchecked])
        assert expected in answer, f"{number} {train}: {answer}"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KIB


def test_a_chat_template_without_end_is_not_rendered(files: Files, looker: Looker):
    write_endless_template(files)
    result = looker.make().submit("default", files.make_request()).result(WAIT_S)
    assert result.faults == () and "seconds" not in result.unchecked


def test_rows_that_need_too_much_memory_are_left_to_the_job(files: Files, looker: Looker):
    # Lists of lists take thirty times their text.
    files.rows.write_text('{"messages": [' + "[[]]," * 6_000_000 + "[]]}\n")
    runner = looker.make(limits=LookLimits(wall_s=WAIT_S, memory_bytes=300 << 20))
    result = runner.submit("default", files.make_request()).result(WAIT_S)
    assert result.faults == ()
    assert result.unchecked == "it needs more than 0.292969 GiB of memory"


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("allocate", "the process that looks at it failed with exit code 1"),
        ("loop", "it needs more than 1 seconds"),
        ("crash", "the process that looks at it was ended by signal 11"),
        ("flood", "the process that looks at it"),
        ("complain", "the process that looks at it failed with exit code 1"),
        ("unknown_key", "the process that looks at it failed with exit code 0"),
    ],
)
def test_a_child_that_misbehaves_is_an_answer_without_faults(
    looker: Looker, action: str, reason: str
):
    limits = {"wall_s": 1.0} if action == "loop" else {}
    result = looker.misbehave(action, **limits)
    assert result.unchecked.startswith(reason) and result.faults == () and not result.fingerprint


def test_a_loop_ends_at_the_limit_of_processor_time(looker: Looker):
    reason = "it needs more than 1 seconds of processor time"
    assert looker.misbehave("loop", cpu_s=1, wall_s=WAIT_S).unchecked == reason


def test_what_a_child_started_ends_with_it(looker: Looker):
    process, _, group = looker.misbehave("start_others").unchecked.split()
    for number in (process, group):
        wait_for(lambda path=Path(f"/proc/{number}/stat"): has_ended(path) or None, timeout_s=60)


def has_ended(status: Path) -> bool:
    try:
        # A process that nobody has waited for yet has ended too.
        return status.read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_child_has_neither_the_secrets_nor_the_rights_of_the_service(
    looker: Looker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLORA_DATABASE", "postgresql://user:secret@host/db")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-operator")
    runner = looker.make(module=MODULE)
    request = LookRequest(question="fingerprint_data", location="/describe")
    operator, tenant = (
        runner.submit(project, request).result(WAIT_S).unchecked.split(" | ")
        for project in ("default", "lab")
    )
    assert "SLORA_DATABASE" not in operator[0] and "SLORA_DATABASE" not in tenant[0]
    assert "AWS_ACCESS_KEY_ID" in operator[0] and "AWS_ACCESS_KEY_ID" not in tenant[0]
    assert "AWS_EC2_METADATA_DISABLED" in tenant[0]
    if os.geteuid() == 0:
        assert tenant[1] == "65534 65534 []"
    assert tenant[2] == "[]"


@AS_ROOT
def test_rights_are_dropped_for_good_with_all_groups():
    code = (
        "import os; os.setgroups([12]); "
        "from orchestrator.control.looking.child_limits import drop_rights; "
        "from orchestrator.control.looking.look_protocol import Account; "
        "drop_rights(Account(user=65534, group=65534)); "
        "print(os.getgroups(), os.getresuid(), os.getresgid())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    nobody = (65534, 65534, 65534)
    assert result.stdout.strip() == f"[] {nobody} {nobody}"


@AS_ROOT
def test_a_file_that_only_root_may_read_is_left_to_the_job(files: Files, looker: Looker):
    files.rows.chmod(0o600)
    result = looker.make().submit("default", files.make_request()).result(WAIT_S)
    assert result.faults == () and "may not be read" in result.unchecked
    (files.folder / "closed").mkdir(mode=0o700)
    request = files.make_request(train=f"{files.folder}/closed/none.jsonl")
    result = looker.make().submit("default", request).result(WAIT_S)
    assert result.faults == () and "may not be read" in result.unchecked


def test_a_file_outside_of_the_places_has_one_sentence_whether_it_exists(
    open_folder: Path, looker: Looker
):
    inside, outside = open_folder / "inside", open_folder / "outside"
    files = Files(inside)
    outside.mkdir()
    outside_file = chat_rows(outside / "rows.jsonl", 4)
    links = {"there": outside_file, "absent": outside / "none.jsonl", "folder": outside}
    for name, target in links.items():
        (inside / name).mkdir()
        (inside / name / "rows.jsonl").symlink_to(target)
    (inside / "globs").mkdir()
    (inside / "globs" / "link").symlink_to(outside)
    places = Places(data=(str(inside),), models=())
    runner = looker.make()
    for location in (
        str(outside_file),
        str(outside / "none.jsonl"),
        f"{inside}/there",
        f"{inside}/there/rows.jsonl",
        f"{inside}/absent",
        f"{inside}/absent/rows.jsonl",
        f"{inside}/folder/rows.jsonl",
        f"{inside}/globs/*/rows.jsonl",
        f"{inside}/globs/*/none.jsonl",
        "/etc/passwd",
        "etc/passwd",
        "s3://bucket/rows.jsonl",
    ):
        for request in (
            files.make_request(places, train=location),
            LookRequest(question="fingerprint_data", location=location, places=places),
        ):
            faults = list_faults(runner.submit("lab", request).result(WAIT_S))
            assert faults == [SENTENCE], location
    for name in ("rows.jsonl", "none.jsonl"):
        request = files.make_request(places, train=f"{inside}/../outside/{name}")
        (fault,) = list_faults(runner.submit("lab", request).result(WAIT_S))
        assert "has a part that is empty, '.' or '..'" in fault
    result = runner.submit("lab", files.make_request(places)).result(WAIT_S)
    assert result.faults == () and not result.store_error


@AS_ROOT
def test_a_folder_that_only_root_may_list_is_left_to_the_job(files: Files, looker: Looker):
    (files.folder / "closed").mkdir(mode=0o700)
    places = Places(data=(str(files.folder),))
    request = files.make_request(places, train=str(files.folder / "closed"))
    result = looker.make().submit("lab", request).result(WAIT_S)
    assert result.faults == () and "may not be read" in result.unchecked


def test_a_project_whose_credentials_cannot_be_had_may_be_looked_at_later(looker: Looker):
    homes = list[Path]()

    def fail(project: str, home: Path) -> dict[str, str]:
        homes.append(home)
        raise StoreUnreachable(f"the role of {project} can't be assumed")

    request = LookRequest(question="fingerprint_data", location="/rows")
    result = looker.make(make_environment=fail).submit("lab", request).result(WAIT_S)
    assert "the role of lab can't be assumed" in result.store_error
    assert not homes[0].exists()
