"""Runs through the service: submit, list, look, stop, follow what they log and what happens."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.client.errors import NotUnderstood
from orchestrator.client.feed import END, Waiting, followed
from orchestrator.client.pages import items
from orchestrator.client.values import Event, Foreseen, Run, reader
from orchestrator.client.wire import Wire, at


@dataclass(frozen=True)
class Submission:
    """A run that is asked for; `spec` as in its YAML, with whole paths."""

    spec: Mapping[str, Any]
    kind: str = "finetune"
    project: str | None = None
    cluster: str | None = None
    priority: int | None = None

    def body(self) -> dict[str, Any]:
        """As it is sent: what is not named is the service's to choose."""
        named = {"project": self.project, "cluster": self.cluster, "priority": self.priority}
        given = {key: value for key, value in named.items() if value is not None}
        return {"kind": self.kind, "spec": dict(self.spec), **given}


@dataclass(frozen=True)
class Piece:
    """A piece of a log, and where it ends; the last one has no text, and the run's final status."""

    text: str
    place: str | None
    status: str | None = None


class Runs:
    """The service's runs."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._read = reader(Run, wire.settings.service)

    def submit(self, asked: Submission, *, key: str | None = None) -> Run:
        """The run. However often it has to be sent: under one key it is one run."""
        once = key or secrets.token_hex(16)
        return self._read(self._wire.json("POST", at("runs"), body=asked.body(), key=once))

    def check(self, asked: Submission) -> Foreseen:
        """What would be submitted; nothing is written. Raises Refused with all faults."""
        path = at("runs", "check")
        answer = self._wire.json("POST", path, body=asked.body(), repeatable=True)
        return reader(Foreseen, self._wire.settings.service)(answer)

    def list(
        self,
        *,
        project: str | None = None,
        status: str | None = None,
        name: str | None = None,
        kind: str | None = None,
        most: int | None = None,
        within: float | None = None,
    ) -> Iterator[Run]:
        """The newest first."""
        filters = {"project": project, "status": status, "name": name, "kind": kind}
        return items(self._wire, at("runs"), self._read, most=most, within=within, **filters)

    def get(self, run: str, *, within: float | None = None) -> Run:
        """One run with its attempts. Raises NotThere."""
        return self._read(self._wire.json("GET", at("runs", run), within=within))

    def spec(self, run: str) -> str:
        """The YAML that its job reads."""
        return self._wire.ask("GET", at("runs", run, "spec")).text

    def stop(self, run: str) -> Run:
        """Asks for its end; a run that is over stays what it is."""
        return self._read(self._wire.json("POST", at("runs", run, "stop"), repeatable=True))

    def log(
        self, run: str, *, place: str | None = None, waiting: Waiting | None = None
    ) -> Iterator[Piece]:
        """The log from a place on, as it is written, to the run's end: no byte twice or lost."""
        for message in followed(self._wire, at("runs", run, "log"), last=place, waiting=waiting):
            place = message.id if message.id is not None else place
            if message.event == END:
                yield Piece("", place, self._text(message.data, "status"))
            else:
                yield Piece(self._text(message.data, "text"), place)

    def log_now(self, run: str) -> Iterator[str]:
        """The log as far as it is written."""
        return self._wire.text(at("runs", run, "log"), params={"follow": "false"})

    def events(
        self, run: str, *, last: str | None = None, waiting: Waiting | None = None
    ) -> Iterator[Event]:
        """What happened to it and what happens, to its end."""
        for message in followed(self._wire, at("runs", run, "events"), last=last, waiting=waiting):
            if message.event != END:
                yield reader(Event, self._wire.settings.service)(self._object(message.data))

    def _text(self, data: str, key: str) -> str:
        found = self._object(data).get(key)
        if not isinstance(found, str):
            raise NotUnderstood(self._wire.settings.service, f"an event came without its {key}")
        return found

    def _object(self, data: str) -> dict[str, Any]:
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise NotUnderstood(self._wire.settings.service, "an event came that is no JSON object")
        return found
