"""Attacks by files in mallory's own folder: what the service looks at must not hurt it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.benchmarks.tenants.evidence import Attack, Watch
from tests.benchmarks.tenants.tenant_world import TenantWorld
from tests.tiny import chat_rows, hollow_model

BOMB_MIB = 256
SPARSE_BYTES = 1 << 43
LOOK_S = 60.0
"""A look ends after 30 s; a busy machine starts its process late."""
FINAL = ("done", "failed", "stopped")
ENDLESS = "{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}"
UNDEFINED_SECRET = "{{ cycler.__init__.__globals__.os.environ }}{{ messages }}"
Change = tuple[str, Any]


class FileAttacks:
    """Mallory's models and data sets, each hostile in one way."""

    def __init__(self, world: TenantWorld, watch: Watch, client: httpx.Client) -> None:
        self._world, self._watch, self._client = world, watch, client
        self._folder = world.mallory.folder

    def try_links(self, *, is_short: bool = False) -> Attack:
        """Link from its own place to lab's files and the host's; the link is checked at a look."""
        attack = Attack("links out of its place")
        service, lab = self._world.folder / "service", self._world.lab.folder
        targets = [
            lab / "rows.jsonl", lab, Path("/etc/passwd"), Path("/no/such/file"), lab / "absent",
            service / "service-token", service / "registry.db", Path("/proc/self/environ"),
            Path("/"),
        ]  # fmt: skip
        if is_short:
            targets = targets[2:6]
        runs = []
        for number, target in enumerate(targets):
            link = self._folder / f"link-{number}.jsonl"
            link.symlink_to(target)
            runs.append(self._submit(attack, f"links-{number}", data={"train": str(link)}))
        model = self._folder / "linked-model"
        hollow_model(model)
        (model / "config.json").unlink()
        (model / "config.json").symlink_to(lab / "rows.jsonl")
        runs.append(self._submit(attack, "links-model", model={"path": str(model)}))
        texts = self._wait(attack, runs, LOOK_S * 2)
        self._compare_sentences(attack, texts[: len(targets)])
        self._watch.judge(attack)
        return attack

    def try_bombs(self, *, is_short: bool = False) -> Attack:
        """Let the service look at files without an end or a size."""
        attack = Attack("bombs, FIFOs, endless templates")
        runs = [
            self._submit(attack, f"bombs-{name.replace(' ', '-')}", **changes)
            for name, changes in self._make_bombs()
            if not is_short or name in ("fifo", "endless template")
        ]
        self._wait(attack, runs, LOOK_S * 5)
        self._watch.judge(attack)
        return attack

    def _make_bombs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        makers: dict[str, Callable[[Path], None]] = {
            "gzip bomb": _write_bomb,
            "sparse giant": _write_sparse,
            "fifo": os.mkfifo,
            "device": lambda path: path.symlink_to("/dev/zero"),
            "one endless line": lambda path: path.write_bytes(b"x" * (96 << 20)),
            "deep row": lambda path: path.write_text('{"a":' * 100_000 + "\n"),
        }
        for name, write in makers.items():
            suffix = ".jsonl.gz" if name == "gzip bomb" else ".jsonl"
            path = self._folder / f"{name.replace(' ', '-')}{suffix}"
            write(path)
            yield name, {"data": {"train": str(path)}}
        for name, template in (
            ("endless template", ENDLESS),
            ("template of secrets", UNDEFINED_SECRET),
        ):
            model = self._folder / name.replace(" ", "-")
            hollow_model(model)
            settings = json.loads((model / "tokenizer_config.json").read_text())
            settings["chat_template"] = template
            (model / "tokenizer_config.json").write_text(json.dumps(settings))
            yield name, {"model": {"path": str(model)}}
        model = self._folder / "giant-header"
        hollow_model(model)
        (model / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
        yield "giant header", {"model": {"path": str(model)}}

    def _submit(self, attack: Attack, name: str, **changes: Any) -> str:
        spec = self._world.make_spec(self._world.mallory, name)
        for key, values in changes.items():
            spec[key] = {**spec[key], **values}
        response = self._watch.send(self._client, attack, "POST", "/v1/runs", json={"spec": spec})
        return str(response.json()["id"]) if response.status_code == 201 else ""

    def _wait(self, attack: Attack, runs: list[str], seconds: float) -> list[str]:
        """Wait until the service has decided about each run, and stop the others."""
        until, texts = time.monotonic() + seconds, list[str]()
        for run in filter(None, runs):
            while True:
                row = self._watch.send(self._client, Attack(""), "GET", f"/v1/runs/{run}").json()
                if row["status"] != "planned" or time.monotonic() > until:
                    break
                time.sleep(0.5)
            attack.count(row["status"] if row["status"] in FINAL else "looked at, left to the job")
            if row["status"] == "planned":
                attack.faults.append(f"no look ended for {run}: {row['wait_reason']}")
            if row["status"] not in FINAL:
                self._watch.send(self._client, attack, "POST", f"/v1/runs/{run}/stop")
            text = httpx_text(self._client, run)
            attack.reads += [f"{leak} in {run}" for leak in self._watch.find_leaks(text)]
            texts.append(row["detail"])
        return texts

    def _compare_sentences(self, attack: Attack, texts: list[str]) -> None:
        """The sentence about a file outside must not tell whether it exists."""
        if len(set(texts)) > 1:
            attack.reads.append(f"what exists is told: {sorted(set(texts))}")


def httpx_text(client: httpx.Client, run: str) -> str:
    """Return all that a project can read of a run: its row, spec and log."""
    paths = (f"/v1/runs/{run}", f"/v1/runs/{run}/spec", f"/v1/runs/{run}/log?follow=false")
    return "".join(client.get(path).text for path in paths)


def _write_bomb(path: Path) -> None:
    """Write a row of hundreds of MiB that takes little space."""
    with gzip.open(path, "wb", compresslevel=1) as bomb:
        bomb.write(b'{"text": "')
        for _ in range(BOMB_MIB):
            bomb.write(b"\0" * (1 << 20))


def _write_sparse(path: Path) -> None:
    chat_rows(path, 2)
    with path.open("ab") as file:
        try:
            file.truncate(SPARSE_BYTES)
        except OSError:
            file.truncate(shutil.disk_usage(path.parent).total)
