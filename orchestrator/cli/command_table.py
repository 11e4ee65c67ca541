"""Every command in one table: where it lives and its line of help. Loads none of them."""

from __future__ import annotations

from dataclasses import dataclass

LOCAL_PANEL = "On this machine"
SERVICE_PANEL = "Through the service"
STORE_PANEL = "The store"


@dataclass(frozen=True)
class CommandEntry:
    """A command of the root: `module:name` is one of that module's, `module` a group of them."""

    target: str
    help: str
    """As its docstring, or its group, says: a test compares them."""
    panel: str


COMMANDS: dict[str, CommandEntry] = {
    "plan": CommandEntry(
        "orchestrator.cli.commands.train:plan",
        "What a run would train, hold, send, take and cost; nothing is started.",
        LOCAL_PANEL,
    ),
    "train": CommandEntry(
        "orchestrator.cli.commands.train:train",
        "Run a fine-tune, retraining or federation here: on a local Ray, or one started for it.",
        LOCAL_PANEL,
    ),
    "search": CommandEntry(
        "orchestrator.cli.commands.train:search",
        "Search for the best adapter here: a spec with a search: section, on a local Ray.",
        LOCAL_PANEL,
    ),
    "chat": CommandEntry(
        "orchestrator.cli.commands.adapter_jobs:chat",
        "Talk to a base model with its adapter; the answers stream.",
        LOCAL_PANEL,
    ),
    "evaluate": CommandEntry(
        "orchestrator.cli.commands.adapter_jobs:evaluate",
        "Measure an adapter on held-out rows.",
        LOCAL_PANEL,
    ),
    "schema": CommandEntry(
        "orchestrator.cli.commands.schema:schema",
        "The spec's JSON Schema, for editors and programs; with search:, retrain: and federation:.",
        LOCAL_PANEL,
    ),
    "submit": CommandEntry(
        "orchestrator.cli.commands.submit:submit",
        "Submit a spec to the service: a fine-tune, or what its section (search: ...) makes of it.",
        SERVICE_PANEL,
    ),
    "runs": CommandEntry(
        "orchestrator.cli.commands.runs:runs",
        "The service's runs, the newest first; with RUN: its attempts, why it ended, what next.",
        SERVICE_PANEL,
    ),
    "logs": CommandEntry(
        "orchestrator.cli.commands.logs:logs",
        "What a run prints; -f follows it, over restarts of the service too.",
        SERVICE_PANEL,
    ),
    "stop": CommandEntry(
        "orchestrator.cli.commands.runs:stop",
        "Ask a run to end; it keeps its checkpoints, and one that is over stays what it is.",
        SERVICE_PANEL,
    ),
    "schedule": CommandEntry(
        "orchestrator.cli.commands.schedules",
        "Runs that the service makes by itself.",
        SERVICE_PANEL,
    ),
    "clusters": CommandEntry(
        "orchestrator.cli.commands.clusters:clusters",
        "The Ray clusters that the service submits to, and what of them is free.",
        SERVICE_PANEL,
    ),
    "projects": CommandEntry(
        "orchestrator.cli.commands.projects", "What runs and tokens belong to.", SERVICE_PANEL
    ),
    "tokens": CommandEntry(
        "orchestrator.cli.commands.tokens", "Who may ask the service for what.", SERVICE_PANEL
    ),
    "adapters": CommandEntry(
        "orchestrator.cli.commands.adapters", "Adapters in the store.", STORE_PANEL
    ),
    "report": CommandEntry(
        "orchestrator.cli.commands.reports:report",
        "What a run came to, from its own papers.",
        STORE_PANEL,
    ),
    "audit": CommandEntry(
        "orchestrator.cli.commands.reports:audit",
        "A run's plan beside its ledger, line by line; exit code 1 where a promise is broken.",
        STORE_PANEL,
    ),
    "reproduce": CommandEntry(
        "orchestrator.cli.commands.reports:reproduce",
        "Run an adapter's run again from its own papers, and compare what comes out.",
        STORE_PANEL,
    ),
    "serve": CommandEntry(
        "orchestrator.cli.commands.serve:serve",
        "Run the service: it submits, follows, schedules and answers; Ctrl-C ends it.",
        SERVICE_PANEL,
    ),
    "registry": CommandEntry(
        "orchestrator.cli.commands.registry", "The registry of runs and adapters.", STORE_PANEL
    ),
}
"""In the order in which `slora --help` tells them."""
