"""`slora adapters`: the commands that read the store, change it, or run a job on an adapter."""

from __future__ import annotations

from orchestrator.cli import adapter_maintenance
from orchestrator.cli.adapters_local import app
from orchestrator.cli.commands import adapter_jobs

adapter_maintenance.add_commands(app)
adapter_jobs.add_commands(app)
