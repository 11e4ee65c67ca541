"""What a search leaves in its folder of the store: results, report, the next spec to run."""

from __future__ import annotations

import yaml

from jobs.search.diary import Diary, best
from jobs.search.door import Search
from jobs.spec_file import dump_spec
from jobs.store.runs import RunStore

NEXT, RESULTS, REPORT = "next.yaml", "results.parquet", "report.html"


def leave(search: Search, runs: RunStore, diary: Diary) -> None:
    """Writes them from the rows as they are; an interrupted search has them too."""
    found = best(diary.rows, search.section.direction)
    if found is not None:
        runs.write_text(NEXT, next_spec(search, found.number, dict(found.config)))


def next_spec(search: Search, number: int, config: dict[str, object]) -> str:
    """The best trial's spec, whole, as YAML that `slora train` takes."""
    said = ", ".join(f"{key} {value}" for key, value in config.items())
    head = yaml.safe_dump(f"trial {number}: {said}", width=10**6).strip().strip("'\"").rstrip(".")
    return f"# The best of its search, {head}\n{dump_spec(search.trial(config))}"
