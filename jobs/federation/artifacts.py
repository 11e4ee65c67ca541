"""The files that only a federation has in its run's folder."""

from __future__ import annotations

from jobs.spec.kinds import KINDS

FEDERATION_FILE = KINDS["federate"].spec_file
"""The full spec of the run."""
