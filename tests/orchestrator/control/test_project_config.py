"""The credentials and secrets of projects are checked when the service starts, all together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from orchestrator.control.config import parse_config
from orchestrator.control.projects.private_file import read_keys, read_secret
from orchestrator.control.projects.role_session import build_session_policy

NEAR = {"address": "http://127.0.0.1:1"}
ROLE = "arn:aws:iam::123456789012:role/slora-lab"
INI = "[default]\naws_access_key_id = AKIA1\naws_secret_access_key = s3cr3t/canary+\n"


def write_file(file: Path, text: str, mode: int = 0o600) -> str:
    file.touch(mode)
    file.write_text(text)
    file.chmod(mode)
    return str(file)


def parse(**project: Any) -> Any:
    return parse_config({"clusters": {"near": NEAR}, "projects": {"lab": project}})


def list_faults(raw: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InputError) as error:
        parse_config({"clusters": {"near": NEAR}, **raw})
    assert "canary" not in str(error.value)
    return {fault.key: fault.problem for fault in error.value.faults}


def test_all_faults_are_reported_together_and_quote_no_secret(tmp_path: Path):
    keys = write_file(tmp_path / "open", INI, 0o644)
    projects = {
        "lab": {"credentials_file": keys, "session_s": 60},
        "vision": {"credentials_file": str(tmp_path / "none")},
        "audio": {"credentials_file": write_file(tmp_path / "half", "[default]\nx = canary\n")},
        "text": {"credentials_file": write_file(tmp_path / "bad", '{"canary"')},
        "both": {"role_arn": ROLE, "credentials_file": keys},
        "role": {"role_arn": "slora-lab"},
        "typo": {"role": ROLE},
        "secret": {
            "secrets": {
                "HF_TOKEN": write_file(tmp_path / "group", "canary", 0o640),
                "EMPTY": write_file(tmp_path / "empty", "\n"),
                "LINES": write_file(tmp_path / "lines", "canary\nx"),
                "DOLLAR": write_file(tmp_path / "dollar", "canary$HOME"),
            }
        },
    }
    jobs = {"url": "http://service:8321", "key_file": write_file(tmp_path / "short", "canary")}
    faults = list_faults({"projects": projects, "jobs": jobs, "speed": 1})
    expected = {
        "projects.lab.credentials_file": "is open to others (mode 0644): chmod 600 it",
        "projects.lab.session_s": "greater than or equal to 1800",
        "projects.vision.credentials_file": "can't be read: No such file",
        "projects.audio.credentials_file": "has no aws_access_key_id and no aws_secret_access_key",
        "projects.text.credentials_file": "is not valid JSON",
        "projects.both": "exclude each other",
        "projects.role.role_arn": "should match pattern",
        "projects.typo.role": "Extra inputs",
        "projects.secret.secrets.HF_TOKEN": "is open to others (mode 0640)",
        "projects.secret.secrets.EMPTY": "is empty",
        "projects.secret.secrets.LINES": "more than one line",
        "projects.secret.secrets.DOLLAR": "has a $",
        "jobs.key_file": "fewer than 32 characters",
        "speed": "Extra inputs",
    }
    assert set(faults) == set(expected)
    assert all(problem in faults[key] for key, problem in expected.items())


@pytest.mark.parametrize(
    "name",
    ["PATH", "LD_PRELOAD", "PYTHONPATH", "RAY_AUTH_TOKEN", "AWS_PROFILE", "SLORA_CACHE", "HOME",
     "hf_token", "A-B", "", "A=B", "1A", "HTTPS_PROXY"],
)  # fmt: skip
def test_a_secret_may_not_change_how_a_process_runs(tmp_path: Path, name: str):
    secret = write_file(tmp_path / "secret", "canary")
    faults = list_faults({"projects": {"lab": {"secrets": {name: secret}}}})
    assert any(key.startswith("projects.lab.secrets") for key in faults)


def test_sessions_are_renewed_over_tls_or_on_this_machine_only(tmp_path: Path):
    key = write_file(tmp_path / "key", "k" * 32)
    faults = list_faults({"jobs": {"url": "http://service:8321", "key_file": key}})
    assert "would be unencrypted" in faults["jobs"]
    for url in ("https://service:8321", "http://127.0.0.1:8321"):
        parse_config({"clusters": {"near": NEAR}, "jobs": {"url": url, "key_file": key}})


def test_keys_are_read_from_a_profile_or_json_and_never_shown(tmp_path: Path):
    profile = write_file(tmp_path / "profile", INI.replace("default", "lab"))
    keys = {"aws_access_key_id": "AKIA1", "aws_secret_access_key": "s3cr3t/canary+"}
    document = write_file(tmp_path / "json", json.dumps(keys))
    assert read_keys(profile) == read_keys(document)
    assert "AKIA1" not in repr(read_keys(profile)) and "canary" not in str(read_keys(profile))
    assert "canary" not in repr(parse(credentials_file=profile))
    assert read_secret(write_file(tmp_path / "token", "hf_abc\n")) == "hf_abc"


def test_a_profile_must_be_unique(tmp_path: Path):
    text = INI.replace("default", "a") + INI.replace("default", "b")
    with pytest.raises(ValueError, match="has 2 profiles"):
        read_keys(write_file(tmp_path / "profiles", text))


def test_a_session_policy_reaches_whole_folders_without_wildcards_of_names():
    policy = build_session_policy(
        ROLE.replace(":aws:", ":aws-cn:"),
        ["s3://b/store/projects/lab", "file:///store/projects/lab"],
        ["s3://data/lab*/", "s3://data/one.jsonl", "/data/lab"],
    )
    assert "arn:aws-cn:s3:::b/store/projects/lab/*" in policy
    assert '"s3:prefix":["store/projects/lab/*"]' in policy
    assert '"arn:aws-cn:s3:::data/lab${*}/*"' in policy
    assert '"arn:aws-cn:s3:::data/one.jsonl"' in policy
    assert "file:" not in policy and "/data/lab" not in policy.replace("data/lab$", "")
