"""The commands of the root in one table: module, line of help, panel. It imports none of them."""

from __future__ import annotations

from dataclasses import dataclass

LOCAL_PANEL = "On this machine"
SERVICE_PANEL = "Through the service"
STORE_PANEL = "The store"

_PACKAGE = "orchestrator.cli.commands"


@dataclass(frozen=True)
class CommandEntry:
    """A command of the root. `MODULE:NAME` is one of a module's commands, `MODULE` a group."""

    target: str
    help: str
    """First line of the command's help: a test compares them."""
    panel: str


COMMANDS: dict[str, CommandEntry] = {
    name: CommandEntry(f"{_PACKAGE}.{target}", text, panel)
    for name, target, text, panel in (
        ("plan", "train:plan",
         "Show a run's parameters, memory, traffic, time and cost, without starting it.",
         LOCAL_PANEL),
        ("train", "train:train",
         "Run a spec of any kind from this machine, on a running Ray or a new one.",
         LOCAL_PANEL),
        ("search", "train:search",
         "Search for the best adapter, or run another kind of spec, on a running Ray or a new one.",
         LOCAL_PANEL),
        ("data", "data", "Show what a model learns from the rows of a spec, token by token.",
         LOCAL_PANEL),
        ("chat", "adapter_jobs:chat",
         "Chat with a base model and its adapter; answers are streamed.", LOCAL_PANEL),
        ("evaluate", "adapter_jobs:evaluate",
         "Evaluate an adapter on held-out rows, read and packed as in its run.", LOCAL_PANEL),
        ("serve-model", "serving.serve_model:serve-model",
         "Answer with a base model and adapters through vLLM on this machine; Ctrl-C stops it.",
         LOCAL_PANEL),
        ("deploy", "serving.deploy:deploy",
         "Let a name on an inference server answer with an adapter, and follow its promotions.",
         STORE_PANEL),
        ("deployments", "serving.deployments",
         "List deployments, show one, roll it back or remove it.", STORE_PANEL),
        ("schema", "schema:schema",
         "Print the JSON Schema of a spec, with all its sections, for editors and programs.",
         LOCAL_PANEL),
        ("submit", "submit:submit", "Submit a spec of any kind to the service.", SERVICE_PANEL),
        ("runs", "runs", "List the runs of the service, newest first, or show one run.",
         SERVICE_PANEL),
        ("logs", "logs:logs",
         "Print the output of a run; -f follows it, even across restarts of the service.",
         SERVICE_PANEL),
        ("stop", "stop:stop",
         "Stop a run; it keeps its checkpoints. A finished run is not changed.", SERVICE_PANEL),
        ("schedules", "schedules", "Manage runs that the service submits on a cron schedule.",
         SERVICE_PANEL),
        ("clusters", "clusters:clusters",
         "List the Ray clusters of the service and their free capacity.", SERVICE_PANEL),
        ("projects", "projects", "Manage projects and their limits.", SERVICE_PANEL),
        ("tokens", "tokens", "Manage access tokens of the service.", SERVICE_PANEL),
        ("audit-log", "audit_log_listing:audit-log",
         "List who changed what in the service, newest first.",
         SERVICE_PANEL),
        ("adapters", "adapters", "Manage adapters in the store.", STORE_PANEL),
        ("report", "reports:report", "Show the outcome of a run, from its files in the store.",
         STORE_PANEL),
        ("audit", "reports:audit",
         "Compare a run's plan with its ledger; exit with 1 if a tolerance is exceeded.",
         STORE_PANEL),
        ("reproduce", "reports:reproduce",
         "Repeat the run of an adapter from its recorded spec, and compare the results.",
         STORE_PANEL),
        ("serve", "serve:serve",
         "Run the service and its API in the foreground; Ctrl-C stops it.", SERVICE_PANEL),
        ("gc", "gc:gc",
         "List what is kept too long, and files of runs without a row; --apply deletes them.",
         STORE_PANEL),
        ("registry", "registry", "Maintain the registry of runs.", STORE_PANEL),
    )
}  # fmt: skip
"""The commands in the order of `slora --help`."""
