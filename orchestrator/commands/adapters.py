"""`slora adapters` whole: what reads the store, what changes it, what runs a job on it."""

from __future__ import annotations

from orchestrator import upkeep
from orchestrator.adapters import app
from orchestrator.commands import trained

upkeep.add_commands(app)
trained.add_commands(app)
