"""Every command in one table: where it lives and its line of help. Loads none of them."""

from __future__ import annotations

from dataclasses import dataclass

HERE = "On this machine"
SERVICE = "Through the service"
STORE = "The store"


@dataclass(frozen=True)
class Entry:
    """A command of the root: `module:name` is one of that module's, `module` a group of them."""

    where: str
    help: str
    """As its docstring, or its group, says: a test compares them."""
    panel: str


COMMANDS: dict[str, Entry] = {
    "plan": Entry(
        "orchestrator.commands.fine_tune:plan",
        "What a run would train, hold, send, take and cost; nothing is started.",
        HERE,
    ),
    "train": Entry(
        "orchestrator.commands.fine_tune:train",
        "Run a fine-tune, retraining or federation here: on a local Ray, or one started for it.",
        HERE,
    ),
    "search": Entry(
        "orchestrator.commands.fine_tune:search",
        "Search for the best adapter here: a spec with a search: section, on a local Ray.",
        HERE,
    ),
    "chat": Entry(
        "orchestrator.commands.trained:chat",
        "Talk to a base model with its adapter; the answers stream.",
        HERE,
    ),
    "evaluate": Entry(
        "orchestrator.commands.trained:evaluate", "Measure an adapter on held-out rows.", HERE
    ),
    "schema": Entry(
        "orchestrator.commands.schema:schema",
        "The spec's JSON Schema, for editors and programs; with search:, retrain: and federation:.",
        HERE,
    ),
    "submit": Entry(
        "orchestrator.commands.submit:submit",
        "Submit a spec to the service: a fine-tune, or what its section (search: ...) makes of it.",
        SERVICE,
    ),
    "runs": Entry(
        "orchestrator.commands.runs:runs",
        "The service's runs, the newest first; with RUN: its attempts, why it ended, what next.",
        SERVICE,
    ),
    "logs": Entry(
        "orchestrator.commands.logs:logs",
        "What a run prints; -f follows it, over restarts of the service too.",
        SERVICE,
    ),
    "stop": Entry(
        "orchestrator.commands.runs:stop",
        "Ask a run to end; it keeps its checkpoints, and one that is over stays what it is.",
        SERVICE,
    ),
    "schedule": Entry(
        "orchestrator.commands.schedule", "Runs that the service makes by itself.", SERVICE
    ),
    "clusters": Entry(
        "orchestrator.commands.clusters:clusters",
        "The Ray clusters that the service submits to, and what of them is free.",
        SERVICE,
    ),
    "projects": Entry("orchestrator.commands.projects", "What runs and tokens belong to.", SERVICE),
    "tokens": Entry("orchestrator.commands.tokens", "Who may ask the service for what.", SERVICE),
    "adapters": Entry("orchestrator.commands.adapters", "Adapters in the store.", STORE),
    "report": Entry(
        "orchestrator.commands.papers:report",
        "What a run came to, from its own papers.",
        STORE,
    ),
    "audit": Entry(
        "orchestrator.commands.papers:audit",
        "A run's plan beside its ledger, line by line; exit code 1 where a promise is broken.",
        STORE,
    ),
    "reproduce": Entry(
        "orchestrator.commands.papers:reproduce",
        "Run an adapter's run again from its own papers, and compare what comes out.",
        STORE,
    ),
    "serve": Entry(
        "orchestrator.commands.serve:serve",
        "Run the service: it submits, follows, schedules and answers; Ctrl-C ends it.",
        SERVICE,
    ),
    "registry": Entry(
        "orchestrator.registry.commands", "The registry of runs and adapters.", STORE
    ),
}
"""In the order in which `slora --help` tells them."""
