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
from jobs.preflight import Checked
from jobs.report import outcome, summary
from jobs.spec import Spec
from jobs.spec_file import dump_spec
from jobs.store.objects import open_store
from jobs.store.runs import SPEC, RunStore, new_run_id
from orchestrator.console import note, print_json, results
from orchestrator.follow import follow, teller
from orchestrator.local_ray import ray_jobs

GONE = (RuntimeError, requests.RequestException)
"""What Ray's client raises when the dashboard answers wrongly, or not at all."""
SILENCE_S = 30.0
"""Seconds that Ray may fail to answer before it is given up."""
STATUS_S = 1.0
"""Seconds between two questions to Ray whether the job still runs."""
AGENT_S = 60.0
"""Seconds that a Ray which has just started may take until it accepts a job."""
INTERRUPTED = 130
STOP_S = 30.0
"""Seconds that a stopped job has to end; Ray itself kills it after three."""


def train(checked: Checked, *, json: bool) -> int:
    """Runs the job to its end and shows what came of it. Returns the command's exit code."""
    runs = run_to_end(checked)
    if runs is None:
        note("stopped; nothing of it runs on, and the same command starts anew")
        return INTERRUPTED
    show(runs, checked.spec.store, json=json)
    return 0


def run_to_end(checked: Checked) -> RunStore | None:
    """The run's papers once its job is done; None where Ctrl-C stopped it. Raises TrainingFailed.

    Says what happens on stderr, and nothing on stdout.
    """
    runs = new_run(checked.spec)
    runs.write_text(SPEC, dump_spec(checked.spec))
    return runs if to_end("jobs.finetune", SPEC, runs, checked.spec) else None


def new_run(spec: Spec) -> RunStore:
    """The papers of a run that begins now."""
    runs = RunStore(open_store(spec.store), new_run_id(spec.name, datetime.now(UTC)))
    note(f"run {runs.run_id}")
    return runs


def to_end(module: str, paper: str, runs: RunStore, spec: Spec) -> bool:
    """A run's job, followed until it is done. False where Ctrl-C stopped it."""

    def watch(alive: Callable[[], bool]) -> None:
        with teller() as telling:
            follow(runs, telling, alive)

    words = [module, "--spec", paper_at(runs, paper), "--run", runs.run_id]
    cpus = spec.workers * spec.cluster.cpus_per_worker
    return run_here(words, runs, job_id=f"{runs.run_id}-0", cpus=cpus, watch=watch)


def run_here(
    words: Sequence[str],
    runs: RunStore,
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
    with ray_jobs(cpus=cpus) as client:
        _submitted(client, shlex.join([sys.executable, "-m", *words]), job_id)
        try:
            watch(_Alive(client, job_id))
        except BaseException as end:
            _stop(client, job_id, runs)
            if isinstance(end, KeyboardInterrupt):
                return False
            raise
        code = _exit_code(client, job_id)
        if code:
            raise _failure(client, job_id, runs, code, words)
    return True


def paper_at(runs: RunStore, part: str) -> str:
    """Where a job finds one of the run's papers: only names of ours are on its command line."""
    return runs.store.url(runs.key(part)).removeprefix("file://")


def _submitted(client: Any, entrypoint: str, job_id: str) -> str:
    """Submits, waiting for the agent that takes jobs: it registers some seconds after Ray is up.

    A busy dashboard may break a request off, heard or unheard.
    """
    until, unanswered = time.monotonic() + AGENT_S, False
    while True:
        try:
            return str(client.submit_job(entrypoint=entrypoint, submission_id=job_id))
        except requests.ConnectionError as gone:
            unanswered, refused = True, str(gone)
        except RuntimeError as said:
            refused = str(said)
            if unanswered and "already exists" in refused:
                return job_id
            if "No available agent" not in refused:
                raise
        if time.monotonic() > until:
            raise Unreachable(f"Ray took no job within {AGENT_S:.0f} s: {refused}")
        time.sleep(STATUS_S / 2)


class _Alive:
    """Whether the job still runs; asks Ray once a second, however often it is asked.

    A Ray that does not answer for a while is not a job that ended. Raises Unreachable when it has
    not answered for SILENCE_S.
    """

    def __init__(self, client: Any, job_id: str) -> None:
        self._client, self._job_id = client, job_id
        self._asked, self._heard, self._answer = 0.0, time.monotonic(), True

    def __call__(self) -> bool:
        if self._answer and time.monotonic() - self._asked >= STATUS_S:
            self._asked = time.monotonic()
            try:
                self._answer = not self._client.get_job_status(self._job_id).is_terminal()
                self._heard = time.monotonic()
            except GONE as gone:
                if time.monotonic() - self._heard > SILENCE_S:
                    raise Unreachable(
                        f"Ray has not answered for {SILENCE_S:.0f} s ({type(gone).__name__}). The "
                        "run's checkpoints are kept: `python -m jobs.finetune` (`.search`, "
                        "`.federate`) with its spec and its id (--run) goes on from them."
                    ) from gone
        return self._answer


def _stop(client: Any, job_id: str, runs: RunStore) -> None:
    note("stopping the job ...")
    # A Ray that is gone runs no job.
    with suppress(*GONE):
        client.stop_job(job_id)
        until = time.monotonic() + STOP_S
        while not client.get_job_status(job_id).is_terminal() and time.monotonic() < until:
            time.sleep(STATUS_S / 5)
    runs.events.append({"event": "stopped", "time": time.time(), "why": "interrupted"})


def _exit_code(client: Any, job_id: str) -> int:
    info = client.get_job_info(job_id)
    if info.status == "SUCCEEDED":
        return 0
    return info.driver_exit_code if info.driver_exit_code in (1, 2, 3) else 1


def _failure(
    client: Any, job_id: str, runs: RunStore, code: int, words: Sequence[str]
) -> JobsError:
    """One message: the run's own reason, or the last lines of the job's log and how to go on."""
    events, _ = runs.events.tail(0)
    reasons = [event["why"] for event in events if event.get("event") == "failed"]
    if reasons:
        failed = TrainingFailed(f"run {runs.run_id}", reasons[-1].rstrip("."))
    else:
        # It had no time to say why: what killed it may not be there the next time.
        log = client.get_job_logs(job_id).strip().splitlines()
        why = "\n".join(log[-20:]).rstrip(".")
        # A search goes on only where it is told that it is the same one.
        resumed = ["--resume" if word == "--run" and words[0] == "jobs.search" else word
                   for word in words]  # fmt: skip
        again = shlex.join([sys.executable, "-m", *resumed])
        failed = TrainingFailed(
            f"run {runs.run_id}", why, f"What it has saved is kept, and goes on with:\n{again}"
        )
    failed.exit_code = code
    return failed


def show(runs: RunStore, store: str, *, json: bool) -> None:
    """What came of a run that committed an adapter."""
    if json:
        print_json(outcome(runs))
        return
    results.print(summary(runs))
    found = outcome(runs)
    next_commands(found, store)


def next_commands(found: dict[str, Any], store: str) -> None:
    """What one may do with the adapter, as commands to copy."""
    adapter, run = found["adapter"], found["run"]
    name = adapter.partition("@")[0]
    flag = "" if store.endswith("/.cache/store") else f" --store {shlex.quote(store)}"
    causal = "perplexity" in next(iter(found["evaluations"].values()), {"perplexity": 0})
    lines = [f"slora chat --adapter {name}{flag}"] if causal else []
    out = {
        "peft": f"slora adapters pull {adapter} ./{name}{flag}   # a PEFT folder",
        "compact": f"slora adapters export {adapter} ./{name} --energy 0.9{flag}   # as PEFT",
        "model": f"slora adapters pull {adapter} ./{name}{flag}   # a whole model",
    }
    lines += [
        f"slora adapters show {adapter}{flag}",
        out[found["form"]],
    ]
    # A bucket holds no TensorBoard files: they are appended to.
    lines += [] if store.startswith("s3://") else [f"tensorboard --logdir {_board(store, run)}"]
    results.print("next:", style="bold")
    for line in lines:
        results.print(f"  .venv/bin/{line}", soft_wrap=True)


def _board(store: str, run: str) -> str:
    folder = Path(store.removeprefix("file://")) / "runs" / run / "tensorboard"
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
