"""Run a spec of any kind on a local Ray, as the same job that `ray job submit` runs."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.federation.check import ValidatedFederation
from jobs.plan.handover import write_validated
from jobs.plan.preflight import ValidatedRun
from jobs.retrain.detect import NoNewData, snapshot_state
from jobs.search.search_artifacts import pin_search
from jobs.spec.kinds import get_kind
from jobs.spec.load import dump_spec
from jobs.spec.schema import RetrainSpec, RunSpec, SearchSpec
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore, make_run_id
from jobs.train.cluster.ray_address import read_ray_address
from jobs.train.monitor.phases import find_process_start
from jobs.train.monitor.run_report import collect_outcome, render_summary
from orchestrator.cli.console import note, out_console, print_json
from orchestrator.cli.follow_local import follow_run, open_display
from orchestrator.cli.local_job import locate_run_file, run_local_job
from orchestrator.cli.search_local import count_search_cpus, show_search, watch_search

INTERRUPTED = 130
Validated = ValidatedRun | ValidatedFederation


def run_spec(spec: RunSpec, validated: Validated, *, resume: str | None, json: bool) -> int:
    """Run a validated spec to its end, show the result, and return the command's exit code.

    A retraining without new rows starts no job.
    """
    if isinstance(spec, RetrainSpec) and isinstance(validated, ValidatedRun):
        sha256 = str(validated.train_scan.sha256)
        state = snapshot_state(open_store(spec.store), spec, spec.section.start, sha256)
        if isinstance(state, NoNewData):
            return _show_no_new_data(state, json=json)
    run_store = run_to_end(spec, validated, resume=resume)
    if run_store is None:
        return INTERRUPTED
    if isinstance(spec, SearchSpec):
        show_search(spec, run_store, json=json)
    else:
        _show_outcome(run_store, spec.store, json=json)
    return 0


def run_to_end(
    spec: RunSpec,
    validated: Validated,
    *,
    resume: str | None = None,
    files: Mapping[str, bytes] | None = None,
) -> RunStore | None:
    """Return the run's files once its job is done; None after Ctrl-C. Raise TrainingFailed.

    `files` by name are in the run's folder at first. Progress is reported on stderr, and nothing is
    written to stdout. Nothing is written to the store if RAY_ADDRESS is not an address.
    """
    read_ray_address()
    kind = get_kind(spec)
    run_store = _open_run(spec, resume)
    for name, data in (files or {}).items():
        run_store.store.put(run_store.key(name), data)
    _hand_over(validated, run_store)
    arguments = [kind.module, "--spec", locate_run_file(run_store, kind.spec_file)]
    arguments += ["--resume" if resume else "--run", run_store.run_id]
    is_search = isinstance(spec, SearchSpec)
    finished = run_local_job(
        arguments,
        run_store,
        submitted=find_process_start(),
        # A search that is resumed gets another job.
        job_id=f"{run_store.run_id}-{secrets.token_hex(2) if is_search else 0}",
        cpus=_count_cpus(spec),
        watch=lambda is_alive: _watch(spec, run_store, is_alive),
    )
    if finished:
        return run_store
    resumption = f"`slora search SPEC --resume {run_store.run_id}` resumes it"
    restart = "Run the command again to start a new run"
    note(f"Interrupted: the job was stopped. {resumption if is_search else restart}.")
    return None


def _open_run(spec: RunSpec, resume: str | None) -> RunStore:
    """Write the spec to the files of a new run, or check it against those of a resumed search."""
    is_search = isinstance(spec, SearchSpec)
    name = f"{spec.name[:40]}-search" if is_search else spec.name
    run_store = RunStore(open_store(spec.store), resume or make_run_id(name, datetime.now(UTC)))
    if isinstance(spec, SearchSpec):
        pin_search(spec, run_store, resumed=resume is not None)
    else:
        run_store.write_text(get_kind(spec).spec_file, dump_spec(spec))
    note(f"{'search' if is_search else 'run'} {run_store.run_id}")
    return run_store


def _hand_over(validated: Validated, run_store: RunStore) -> None:
    """Write what the job reuses of the validation: its result, and a federation's partition."""
    if isinstance(validated, ValidatedFederation):
        validated.keep_partition(run_store)
        validated = validated.site_run
    write_validated(validated, run_store)


def _count_cpus(spec: RunSpec) -> int:
    if isinstance(spec, SearchSpec):
        return count_search_cpus(spec)
    return spec.workers * spec.cluster.cpus_per_worker


def _watch(spec: RunSpec, run_store: RunStore, is_alive: Callable[[], bool]) -> None:
    if isinstance(spec, SearchSpec):
        watch_search(spec, run_store, is_alive)
        return
    with open_display() as display:
        follow_run(run_store, display, is_alive)


def _show_no_new_data(state: NoNewData, *, json: bool) -> int:
    if json:
        decision = {"event": "no_new_data", "adapter": state.adapter, "why": state.reason}
        print_json({"decision": decision})
    else:
        out_console.print(f"no new data: {state.reason}")
    return 0


def _show_outcome(run_store: RunStore, store: str, *, json: bool) -> None:
    outcome = collect_outcome(run_store)
    if json:
        print_json(outcome)
        return
    out_console.print(render_summary(run_store))
    if "adapter" in outcome:
        _print_next_commands(outcome, store)


def _print_next_commands(outcome: dict[str, Any], store: str) -> None:
    """Print commands to copy that use the adapter."""
    adapter, run = outcome["adapter"], outcome["run"]
    name = adapter.partition("@")[0]
    flag = "" if store.endswith("/.cache/store") else f" --store {shlex.quote(store)}"
    is_causal = "perplexity" in next(iter(outcome["evaluations"].values()), {"perplexity": 0})
    lines = [f"slora chat --adapter {name}{flag}"] if is_causal else []
    export_commands = {
        "peft": f"slora adapters pull {adapter} ./{name}{flag}   # a PEFT folder",
        "compact": f"slora adapters export {adapter} ./{name} --energy 0.9{flag}   # as PEFT",
        "model": f"slora adapters pull {adapter} ./{name}{flag}   # a complete model",
    }
    lines += [f"slora adapters show {adapter}{flag}", export_commands[outcome["form"]]]
    if not store.startswith("s3://"):
        # A bucket holds no TensorBoard files, which have to be appended to.
        lines.append(f"tensorboard --logdir {_locate_tensorboard(store, run)}")
    out_console.print("next:", style="bold")
    for line in lines:
        out_console.print(f"  {line}", soft_wrap=True)


def _locate_tensorboard(store: str, run: str) -> str:
    folder = Path(store.removeprefix("file://")) / "runs" / run / "tensorboard"
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
