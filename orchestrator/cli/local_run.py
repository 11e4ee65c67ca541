"""`slora train`: the same job that `ray job submit` runs, submitted to a local Ray and followed."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from jobs.errors import JobsError, TrainingFailed, Unreachable
from jobs.plan.handover import write_validated
from jobs.plan.preflight import ValidatedRun
from jobs.spec.load import dump_spec
from jobs.spec.schema import RunSpec
from jobs.store.open import open_store
from jobs.store.runs.run_store import SPEC, RunStore, make_run_id
from jobs.train.monitor.run_report import collect_outcome, render_summary
from orchestrator.cli.console import note, out_console, print_json
from orchestrator.cli.follow_local import follow_run, make_display
from orchestrator.cli.local_ray import connect_ray

RAY_CLIENT_ERRORS = (RuntimeError, requests.RequestException)
"""What Ray's client raises when the dashboard answers wrongly, or not at all."""
RAY_SILENCE_TIMEOUT_S = 30.0
"""Seconds that Ray may fail to answer before it is given up."""
STATUS_INTERVAL_S = 1.0
"""Seconds between two questions to Ray whether the job still runs."""
AGENT_TIMEOUT_S = 60.0
"""Seconds that a Ray which has just started may take until it accepts a job."""
INTERRUPTED = 130
STOP_TIMEOUT_S = 30.0
"""Seconds that a stopped job has to end; Ray itself kills it after three."""


def run_training(checked: ValidatedRun, *, json: bool) -> int:
    """Runs the job to its end and shows what came of it. Returns the command's exit code."""
    run_store = run_training_job(checked)
    if run_store is None:
        note("stopped; nothing of it runs on, and the same command starts anew")
        return INTERRUPTED
    show_outcome(run_store, checked.spec.store, json=json)
    return 0


def run_training_job(checked: ValidatedRun) -> RunStore | None:
    """The run's papers once its job is done; None where Ctrl-C stopped it. Raises TrainingFailed.

    Says what happens on stderr, and nothing on stdout.
    """
    run_store = create_run(checked.spec)
    run_store.write_text(SPEC, dump_spec(checked.spec))
    write_validated(checked, run_store)
    return run_store if run_spec_job("jobs.finetune", SPEC, run_store, checked.spec) else None


def create_run(spec: RunSpec) -> RunStore:
    """The papers of a run that begins now."""
    run_store = RunStore(open_store(spec.store), make_run_id(spec.name, datetime.now(UTC)))
    note(f"run {run_store.run_id}")
    return run_store


def run_spec_job(module: str, spec_file: str, run_store: RunStore, spec: RunSpec) -> bool:
    """A run's job, followed until it is done. False where Ctrl-C stopped it."""

    def watch(is_alive: Callable[[], bool]) -> None:
        with make_display() as display:
            follow_run(run_store, display, is_alive)

    arguments = [module, "--spec", locate_run_file(run_store, spec_file), "--run", run_store.run_id]
    cpus = spec.workers * spec.cluster.cpus_per_worker
    return run_local_job(
        arguments, run_store, job_id=f"{run_store.run_id}-0", cpus=cpus, watch=watch
    )


def run_local_job(
    arguments: Sequence[str],
    run_store: RunStore,
    *,
    job_id: str,
    cpus: int,
    watch: Callable[[Callable[[], bool]], None],
) -> bool:
    """A module of ours as a job of a local Ray, watched to its end. False where Ctrl-C stopped it.

    Raises TrainingFailed with the job's own reason.
    """
    # As an exception, so that the job is stopped and Ray ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with connect_ray(cpus=cpus) as client:
        _submit_job(client, shlex.join([sys.executable, "-m", *arguments]), job_id)
        try:
            watch(_JobPoller(client, job_id))
        except BaseException as interruption:
            _stop_job(client, job_id, run_store)
            if isinstance(interruption, KeyboardInterrupt):
                return False
            raise
        code = _read_exit_code(client, job_id)
        if code:
            raise _make_error(client, job_id, run_store, code, arguments)
    return True


def locate_run_file(run_store: RunStore, file_name: str) -> str:
    """Where a job finds one of the run's papers: only names of ours are on its command line."""
    return run_store.store.url(run_store.key(file_name)).removeprefix("file://")


def _submit_job(client: Any, entrypoint: str, job_id: str) -> str:
    """Submits, waiting for the agent that takes jobs: it registers some seconds after Ray is up.

    A busy dashboard may break a request off, heard or unheard.
    """
    deadline, was_unanswered = time.monotonic() + AGENT_TIMEOUT_S, False
    while True:
        try:
            return str(client.submit_job(entrypoint=entrypoint, submission_id=job_id))
        except requests.ConnectionError as connection_error:
            was_unanswered, refusal = True, str(connection_error)
        except RuntimeError as error:
            refusal = str(error)
            if was_unanswered and "already exists" in refusal:
                return job_id
            if "No available agent" not in refusal:
                raise
        if time.monotonic() > deadline:
            raise Unreachable(f"Ray took no job within {AGENT_TIMEOUT_S:.0f} s: {refusal}")
        time.sleep(STATUS_INTERVAL_S / 2)


class _JobPoller:
    """Whether the job still runs; asks Ray once a second, however often it is asked.

    A Ray that does not answer for a while is not a job that ended. Raises Unreachable when it has
    not answered for SILENCE_S.
    """

    def __init__(self, client: Any, job_id: str) -> None:
        self._client, self._job_id = client, job_id
        self._last_poll, self._last_answer, self._is_running = 0.0, time.monotonic(), True

    def __call__(self) -> bool:
        if self._is_running and time.monotonic() - self._last_poll >= STATUS_INTERVAL_S:
            self._last_poll = time.monotonic()
            try:
                self._is_running = not self._client.get_job_status(self._job_id).is_terminal()
                self._last_answer = time.monotonic()
            except RAY_CLIENT_ERRORS as error:
                if time.monotonic() - self._last_answer > RAY_SILENCE_TIMEOUT_S:
                    raise Unreachable(
                        f"Ray has not answered for {RAY_SILENCE_TIMEOUT_S:.0f} s ({type(error).__name__}). The "
                        "run's checkpoints are kept: `python -m jobs.finetune` (`.search`, "
                        "`.federate`) with its spec and its id (--run) goes on from them."
                    ) from error
        return self._is_running


def _stop_job(client: Any, job_id: str, run_store: RunStore) -> None:
    note("stopping the job ...")
    # A Ray that is gone runs no job.
    with suppress(*RAY_CLIENT_ERRORS):
        client.stop_job(job_id)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not client.get_job_status(job_id).is_terminal() and time.monotonic() < deadline:
            time.sleep(STATUS_INTERVAL_S / 5)
    run_store.events.append({"event": "stopped", "time": time.time(), "why": "interrupted"})


def _read_exit_code(client: Any, job_id: str) -> int:
    info = client.get_job_info(job_id)
    if info.status == "SUCCEEDED":
        return 0
    return info.driver_exit_code if info.driver_exit_code in (1, 2, 3) else 1


def _make_error(
    client: Any, job_id: str, run_store: RunStore, code: int, arguments: Sequence[str]
) -> JobsError:
    """One message: the run's own reason, or the last lines of the job's log and how to go on."""
    events, _ = run_store.events.tail(0)
    reasons = [event["why"] for event in events if event.get("event") == "failed"]
    if reasons:
        error = TrainingFailed(f"run {run_store.run_id}", reasons[-1].rstrip("."))
    else:
        # It had no time to say why: what killed it may not be there the next time.
        log = client.get_job_logs(job_id).strip().splitlines()
        log_tail = "\n".join(log[-20:]).rstrip(".")
        # A search goes on only where it is told that it is the same one.
        resumed = ["--resume" if argument == "--run" and arguments[0] == "jobs.search" else argument
                   for argument in arguments]  # fmt: skip
        command = shlex.join([sys.executable, "-m", *resumed])
        error = TrainingFailed(
            f"run {run_store.run_id}",
            log_tail,
            f"What it has saved is kept, and goes on with:\n{command}",
        )
    error.exit_code = code
    return error


def show_outcome(run_store: RunStore, store: str, *, json: bool) -> None:
    """What came of a run that committed an adapter."""
    if json:
        print_json(collect_outcome(run_store))
        return
    out_console.print(render_summary(run_store))
    result = collect_outcome(run_store)
    print_next_commands(result, store)


def print_next_commands(result: dict[str, Any], store: str) -> None:
    """What one may do with the adapter, as commands to copy."""
    adapter, run = result["adapter"], result["run"]
    name = adapter.partition("@")[0]
    flag = "" if store.endswith("/.cache/store") else f" --store {shlex.quote(store)}"
    is_causal = "perplexity" in next(iter(result["evaluations"].values()), {"perplexity": 0})
    lines = [f"slora chat --adapter {name}{flag}"] if is_causal else []
    export_commands = {
        "peft": f"slora adapters pull {adapter} ./{name}{flag}   # a PEFT folder",
        "compact": f"slora adapters export {adapter} ./{name} --energy 0.9{flag}   # as PEFT",
        "model": f"slora adapters pull {adapter} ./{name}{flag}   # a whole model",
    }
    lines += [
        f"slora adapters show {adapter}{flag}",
        export_commands[result["form"]],
    ]
    # A bucket holds no TensorBoard files: they are appended to.
    lines += (
        []
        if store.startswith("s3://")
        else [f"tensorboard --logdir {_locate_tensorboard(store, run)}"]
    )
    out_console.print("next:", style="bold")
    for line in lines:
        out_console.print(f"  .venv/bin/{line}", soft_wrap=True)


def _locate_tensorboard(store: str, run: str) -> str:
    folder = Path(store.removeprefix("file://")) / "runs" / run / "tensorboard"
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
