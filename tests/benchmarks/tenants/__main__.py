"""Let a hostile project try to reach another one, and count what it read, wrote or stopped.

    python -m tests.benchmarks.tenants [--short] [--json] [--parts attacks load]

A real `slora serve` on SQLite, a Ray head, and an S3 server with an identity for each project. The
project mallory has an ordinary submitter's token, its own S3 keys, a folder of this host, and jobs;
the project lab has an adapter, a run that is held, and a schedule of every minute. Each attack is
judged by lab's objects and rows afterwards, and by the secrets in what mallory was answered. Then
lab's requests are measured alone and beside mallory's load. The exit code is 1 if anything of lab's
was read, written or stopped, if the service fell ill, or if lab's requests or its schedule were
late. Not tried, and not promised: one job reading the memory or the files of another on the same
node, which is a matter of the cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.benchmarks.tenants.evidence import Attack, Watch
from tests.benchmarks.tenants.hostile_files import FileAttacks
from tests.benchmarks.tenants.hostile_keys import KeyAttacks, fill_lab, release
from tests.benchmarks.tenants.hostile_requests import PLAIN_ATTACKS, RequestAttacks
from tests.benchmarks.tenants.load_part import KINDS, MACHINE, LoadFigures, measure_load
from tests.benchmarks.tenants.tenant_world import PARKED, TenantWorld

LAST_LINES = 30
PARTS = ("attacks", "load")
ALONE_S, LOADED_S, SHORT_S = 70.0, 190.0, 70.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if nothing of lab's was reached and nothing of it was late."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--short", action="store_true", help="fewer files, and a minute of load")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args(arguments)
    attacks, figures = list[Attack](), None
    with tempfile.TemporaryDirectory(prefix="slora-tenants-") as folder, ExitStack() as stack:
        world = TenantWorld(Path(folder), stack, is_real=True)
        stack.push(lambda kind, *_: None if kind is None else log(read_log_end(world)))
        watch = Watch(world)
        watch.remember(fill_lab(world))
        if "attacks" in options.parts:
            attacks = attack_lab(world, watch, is_short=options.short)
        if "load" in options.parts:
            alone_s, loaded_s = (SHORT_S / 2, SHORT_S) if options.short else (ALONE_S, LOADED_S)
            figures = measure_load(world, alone_s=alone_s, loaded_s=loaded_s)
        attacks.append(judge_end(world, watch))
    report = describe(attacks, figures)
    print(json.dumps(report, indent=2) if options.json else format_report(attacks, figures))
    return 0 if report["good"] else 1


def attack_lab(world: TenantWorld, watch: Watch, *, is_short: bool = False) -> list[Attack]:
    """Run every attack, one after the other."""
    client = world.make_client(world.mallory)
    requests = RequestAttacks(world, watch, client)
    files, keys = FileAttacks(world, watch, client), KeyAttacks(world, watch, client)
    steps: list[Callable[[], Attack]] = [
        *(lambda name=name: requests.run(name) for name in PLAIN_ATTACKS),  # type: ignore[misc]
        keys.try_keys,
        keys.try_jobs,
        keys.try_forged_jobs,
        keys.try_revoked_stream,
        files.try_links,
        lambda: files.try_bombs(is_short=is_short),
    ]
    attacks = []
    for step in steps:
        attacks.append(step())
        log(f"{attacks[-1].name}: {'good' if attacks[-1].is_good else attacks[-1]}")
    return attacks


def judge_end(world: TenantWorld, watch: Watch) -> Attack:
    """Judge the whole: lab's held run ends well, mallory's prefix and the log have no secret."""
    attack = Attack("at the end")
    watch.judge(attack)
    if world.is_real:
        held = release(world, watch.names["held run of lab"])
        attack.count(f"lab's held run is {held['status']} in attempt {held['attempt']}")
        if (held["status"], held["attempt"]) != ("done", 1):
            attack.stops.append(f"lab's held run is {held}")
    stolen = watch.find_stolen()
    attack.reads += stolen
    text = world.log_file.read_text(errors="replace")
    attack.reads += [f"{leak} in the service's log" for leak in watch.find_leaks(text)
                     if leak in watch.secrets]  # fmt: skip
    errors = [line for line in text.splitlines() if "Traceback" in line]
    attack.count(f"{len(errors)} tracebacks in the service's log")
    attack.count(f"the service has the process id {world.process.pid}, as at the start")
    return attack


def describe(attacks: Sequence[Attack], figures: LoadFigures | None) -> dict[str, Any]:
    """Return the report as plain values."""
    totals = {
        kind: sum(len(getattr(attack, kind)) for attack in attacks)
        for kind in ("reads", "writes", "stops", "faults")
    }
    good = not any(totals.values()) and (figures is None or figures.is_good)
    return {
        "good": good,
        **totals,
        "attacks": [{**vars(attack), "good": attack.is_good} for attack in attacks],
        "load": None if figures is None else figures.describe(),
        "load_average": os.getloadavg()[0],
    }


def format_report(attacks: Sequence[Attack], figures: LoadFigures | None) -> str:
    """Return the table, the figures of the load, and everything that was reached."""
    lines = [f"{'attack':<52} {'tries':>6}  {'verdict':<8} what happened"]
    for attack in attacks:
        verdict = "nothing" if attack.is_good else "REACHED"
        lines.append(
            f"{attack.name:<52} {attack.tries:>6}  {verdict:<8} {attack.describe_outcomes()}"
        )
        for kind in ("reads", "writes", "stops", "faults"):
            lines += [f"    {kind}: {item}" for item in getattr(attack, kind)]
    if figures is not None:
        lines += _format_load(figures)
    report = describe(attacks, figures)
    totals = ", ".join(f"{report[kind]} {kind}" for kind in ("reads", "writes", "stops", "faults"))
    return "\n".join([*lines, f"{totals}: {'good' if report['good'] else 'NOT GOOD'}"])


def _format_load(figures: LoadFigures) -> list[str]:
    lines = [
        "",
        f"{'lab':<18} {'alone: median':>14} {'p99':>7}   {'loaded: median':>14} {'p99':>7}  x",
    ]
    report = figures.describe()
    for kind in (*KINDS, MACHINE):
        alone, loaded = figures.alone[kind], figures.loaded[kind]
        lines.append(
            f"{kind:<18} {alone['median']:>14} {alone['p99']:>7}   "
            f"{loaded['median']:>14} {loaded['p99']:>7}  {report['p99_ratio'][kind]}"
        )
    for name, late in (("alone", figures.late_alone_s), ("loaded", figures.late_loaded_s)):
        words = ", ".join(f"{seconds:.2f}" for seconds in late) or "none"
        lines.append(f"its schedule fired, {name}, after: {words} s")
    lines.append(f"mallory sent {figures.thrown}; it had {figures.queued}")
    return [*lines, *(f"    late: {fault}" for fault in report["faults"])]


def read_log_end(world: TenantWorld) -> str:
    """Return the last lines of the service's log, without those of the cluster that is away."""
    lines = world.log_file.read_text(errors="replace").splitlines()
    return "\n".join([line for line in lines if f"cluster {PARKED}" not in line][-LAST_LINES:])


def log(line: str) -> None:
    """Print progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
