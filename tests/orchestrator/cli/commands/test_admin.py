"""`slora tokens`, `projects` and `clusters`: permissions, limits and capacity."""

from __future__ import annotations

import json
from pathlib import Path

from tests.orchestrator.cli.commands.conftest import CommandHarness


def test_a_token_is_shown_only_at_its_creation_and_works(cli: CommandHarness):
    result = cli.ask("tokens", "create", "ci", "--scope", "viewer", "--days", "1")
    words = result.stdout.strip()
    assert result.exit_code == 0 and words.startswith("slora_") and words not in result.stderr
    me = cli.api.client.get("/v1/me", headers={"Authorization": f"Bearer {words}"}).json()
    assert (me["label"], me["scope"], me["project"]) == ("ci", "viewer", None)
    listed = cli.ask("tokens", "list")
    assert me["id"] in listed.stdout and words not in listed.output


def test_a_token_may_go_to_a_file_that_only_its_owner_reads(cli: CommandHarness, tmp_path: Path):
    file = tmp_path / "token"
    words = ("tokens", "create", "ci", "--project", "other", "--to", str(file))
    result = cli.ask(*words, "--json")
    secret = file.read_text().strip()
    assert file.stat().st_mode & 0o777 == 0o600 and secret.startswith("slora_")
    assert secret not in result.output and "secret" not in json.loads(result.stdout)
    again = cli.ask(*words)
    assert again.exit_code == 2 and file.read_text().strip() == secret


def test_a_token_that_can_t_be_saved_is_revoked(cli: CommandHarness, tmp_path: Path):
    (tmp_path / "file").write_text("")
    nowhere = tmp_path / "file" / "token"
    result = cli.ask("tokens", "create", "lost", "--to", str(nowhere))
    assert result.exit_code == 2 and str(nowhere) in result.stderr.replace("\n", "")
    listed = cli.ask("tokens", "list").stdout.splitlines()
    assert "revoked" in next(line for line in listed if "lost" in line)


def test_a_revoked_token_is_rejected_and_listed_as_revoked(cli: CommandHarness):
    created = json.loads(cli.ask("tokens", "create", "ci", "--json").stdout)
    result = cli.ask("tokens", "revoke", created["id"], "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"revoked": created["id"]})
    bearer = {"Authorization": f"Bearer {created['secret']}"}
    assert cli.api.client.get("/v1/me", headers=bearer).status_code == 401
    line = next(x for x in cli.ask("tokens", "list").stdout.splitlines() if created["id"] in x)
    assert "revoked 20" in line


def test_only_an_admin_makes_tokens(cli: CommandHarness):
    result = cli.ask("tokens", "create", "mine", scope="submitter")
    assert result.exit_code == 3 and "requires the scope admin" in result.stderr


def test_the_limits_of_a_project_are_set_separately(cli: CommandHarness):
    result = cli.ask("projects", "add", "lab", "--max-runs", "4", "--max-workers", "16")
    assert result.stdout == "Created project lab: 4 runs, 16 workers.\n"
    result = cli.ask("projects", "set", "lab", "--max-runs", "none", "--max-tokens-a-day", "5000")
    assert result.stdout == "Changed project lab: 16 workers, 5,000 tokens a day.\n"
    lines = cli.ask("projects", "list").stdout.splitlines()
    assert any(
        line.split() == ["lab", "16", "workers,", "5,000", "tokens", "a", "day"] for line in lines
    )


def test_all_limits_of_a_project_are_read_at_80_columns(cli: CommandHarness):
    limits = {
        "--max-runs": "4", "--max-queued": "200", "--max-workers": "16", "--max-cpus": "64",
        "--max-gpus": "0", "--max-tokens-a-day": "1000000000", "--max-stored-bytes": "5000000000",
        "--max-schedules": "20", "--max-priority": "-5",
    }  # fmt: skip
    result = cli.ask("projects", "add", "lab", *(word for pair in limits.items() for word in pair))
    assert result.exit_code == 0, result.output
    text = cli.ask("projects", "list").stdout
    assert all(len(line) <= 80 for line in text.splitlines())
    assert " ".join(text.split()).endswith(
        "lab 4 runs, 200 queued, 16 workers, 64 CPUs, 0 GPUs, 1,000,000,000 tokens a day, "
        "5.0 GB stored, 20 schedules, priority up to -5 other no limits"
    )
    value = json.loads(cli.ask("projects", "show", "lab", "--json").stdout)
    assert (value["max_priority"], value["max_stored_bytes"]) == (-5, 5_000_000_000)


def test_a_project_is_shown_with_what_it_uses(cli: CommandHarness):
    cli.ask("projects", "set", "default", "--max-queued", "2", "--max-stored-bytes", "1000")
    cli.api.submit()
    text = cli.ask("projects", "show", "default").stdout
    rows = {line[:18].strip(): line[18:].split() for line in text.splitlines()}
    assert all(len(line) <= 80 for line in text.splitlines())
    assert rows["runs not ended"] == ["1", "2"]
    assert rows["stored adapters"] == ["0", "B", "1.0", "kB"]
    assert rows["CPUs at once"] == ["0", "no", "limit"]
    missing = cli.ask("projects", "show", "nowhere")
    assert missing.exit_code == 2 and "'nowhere'" in missing.stderr


def test_invalid_limits_are_refused_together(cli: CommandHarness):
    result = cli.ask("projects", "add", "lab", "--max-runs", "many", "--max-workers", "-1")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 2
    assert cli.ask("projects", "set", "default").exit_code == 2
    result = cli.ask("projects", "set", "nowhere", "--max-runs", "1")
    assert result.exit_code == 2 and "The project 'nowhere' is not" in result.stderr
    assert cli.ask("projects", "add", "default").exit_code == 1


def test_clusters_are_listed_with_their_free_capacity(cli: CommandHarness):
    lines = cli.ask("clusters").stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].split()[:6] == ["default", "up", "1", "6", "of", "8"]
    assert json.loads(cli.ask("clusters", "--json").stdout)["clusters"][0]["capacity"]["cpus"] == 8


def test_an_unreachable_cluster_is_reported(cli: CommandHarness):
    cli.api.cluster.is_unreachable = True
    assert "does not answer" in cli.ask("clusters").stdout
