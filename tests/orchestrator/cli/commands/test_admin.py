"""`slora tokens`, `projects` and `clusters`: who may what, how much, and where."""

from __future__ import annotations

import json
from pathlib import Path

from tests.orchestrator.cli.commands.conftest import Desk


def test_a_token_is_told_once_and_works(desk: Desk):
    result = desk.ask("tokens", "create", "ci", "--scope", "viewer", "--days", "1")
    words = result.stdout.strip()
    assert result.exit_code == 0 and words.startswith("slora_") and words not in result.stderr
    me = desk.door.client.get("/v1/me", headers={"Authorization": f"Bearer {words}"}).json()
    assert (me["label"], me["scope"], me["project"]) == ("ci", "viewer", None)
    listed = desk.ask("tokens", "list")
    assert me["id"] in listed.stdout and words not in listed.output


def test_a_token_may_go_to_a_file_that_only_its_owner_reads(desk: Desk, tmp_path: Path):
    file = tmp_path / "token"
    words = ("tokens", "create", "ci", "--project", "other", "--to", str(file))
    result = desk.ask(*words, "--json")
    secret = file.read_text().strip()
    assert file.stat().st_mode & 0o777 == 0o600 and secret.startswith("slora_")
    assert secret not in result.output and "secret" not in json.loads(result.stdout)
    again = desk.ask(*words)
    assert again.exit_code == 2 and file.read_text().strip() == secret


def test_a_token_that_can_t_be_written_down_opens_nothing(desk: Desk, tmp_path: Path):
    (tmp_path / "file").write_text("")
    nowhere = tmp_path / "file" / "token"
    result = desk.ask("tokens", "create", "lost", "--to", str(nowhere))
    assert result.exit_code == 2 and str(nowhere) in result.stderr.replace("\n", "")
    listed = desk.ask("tokens", "list").stdout.splitlines()
    assert "revoked" in next(line for line in listed if "lost" in line)


def test_a_revoked_token_opens_nothing_and_is_listed_as_such(desk: Desk):
    made = json.loads(desk.ask("tokens", "create", "ci", "--json").stdout)
    told = desk.ask("tokens", "revoke", made["id"], "--json")
    assert (told.exit_code, json.loads(told.stdout)) == (0, {"revoked": made["id"]})
    bearer = {"Authorization": f"Bearer {made['secret']}"}
    assert desk.door.client.get("/v1/me", headers=bearer).status_code == 401
    line = next(x for x in desk.ask("tokens", "list").stdout.splitlines() if made["id"] in x)
    assert "revoked 20" in line


def test_only_an_admin_makes_tokens(desk: Desk):
    result = desk.ask("tokens", "create", "mine", scope="submitter")
    assert result.exit_code == 3 and "needs the scope admin" in result.stderr


def test_a_projects_limits_are_set_one_by_one(desk: Desk):
    result = desk.ask("projects", "add", "lab", "--max-runs", "4", "--max-workers", "16")
    assert result.stdout == "project lab is made: 4 runs, 16 workers.\n"
    result = desk.ask("projects", "set", "lab", "--max-runs", "none", "--max-tokens-a-day", "5000")
    assert result.stdout == "project lab: 16 workers, 5,000 tokens a day.\n"
    shown = desk.ask("projects", "list").stdout.splitlines()
    assert next(line.split() for line in shown if line.startswith("lab")) == [
        "lab", "-", "16", "5,000",
    ]  # fmt: skip


def test_what_is_no_limit_is_refused_with_all_its_faults(desk: Desk):
    result = desk.ask("projects", "add", "lab", "--max-runs", "many", "--max-workers", "-1")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 2
    assert desk.ask("projects", "set", "default").exit_code == 2
    result = desk.ask("projects", "set", "nowhere", "--max-runs", "1")
    assert result.exit_code == 2 and "no project 'nowhere'" in result.stderr
    assert desk.ask("projects", "add", "default").exit_code == 1


def test_clusters_tell_what_is_free(desk: Desk):
    shown = desk.ask("clusters").stdout.splitlines()
    assert all(len(line) <= 80 for line in shown)
    assert shown[1].split()[:6] == ["default", "up", "1", "6", "of", "8"]
    assert json.loads(desk.ask("clusters", "--json").stdout)["clusters"][0]["capacity"]["cpus"] == 8


def test_a_cluster_that_is_gone_is_told_so(desk: Desk):
    desk.door.cluster.is_unreachable = True
    assert "does not answer" in desk.ask("clusters").stdout
