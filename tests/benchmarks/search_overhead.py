"""`python -m tests.benchmarks.search_overhead [--json]`: what a trial of a search costs beside its
training.

The same trials three times: as a search on a warm Ray, one after the other by the training alone in
one warm process, and one after the other by `jobs.finetune` on that Ray, as bare Ray Train would.
They differ in their seed, so that nothing can be shared. Of each way, the seconds of the second and
later trials count, medians; a search's overhead is its seconds less those of the warm process. With
`--profile` it also prints where a trial's seconds went. Exit code 1 above the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.ranks import run_ranks
from tests.ray_head import Head, ray_head
from tests.tiny import chat_rows, merge_spec, tiny_chat_model, tiny_spec

TRIALS, LIMIT_S = 6, 4.0
STEPS = 20


def main() -> int:
    """Exit code 1 where a trial costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--profile", action="store_true", help="where a trial's seconds went")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slora-overhead-") as made:
        found = _measured(Path(made), asked.trials)
    if asked.json:
        print(json.dumps({name: found[name] for name in ("overhead_s", "ray_train_s")}))
    else:
        _show(found, profile=asked.profile)
    return int(found["overhead_s"] > LIMIT_S)


def _measured(folder: Path, trials: int) -> dict[str, Any]:
    tiny_chat_model(folder / "model")
    chat_rows(folder / "train.jsonl", 60)
    chat_rows(folder / "eval.jsonl", 6)
    spec = tiny_spec(
        folder, data={"eval": str(folder / "eval.jsonl")}, train={"steps": STEPS, "eval_every": 5}
    )
    with ray_head(folder / "ray") as head:
        search, events = _searched(head, folder, spec, trials)
        trained = [_finetuned(head, folder, spec, seed) for seed in range(trials)]
    [alone] = run_ranks(_alone, 1, str(folder), spec, trials, spawned=True)
    warm = statistics.median(alone[1:])
    return {
        "search": search, "warm": alone, "finetune": trained, "events": events,
        "warm_s": warm,
        "overhead_s": statistics.median(search[1:]) - warm,
        "ray_train_s": statistics.median(trained[1:]) - warm,
    }  # fmt: skip


def _searched(
    head: Head, folder: Path, spec: dict[str, Any], trials: int
) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds from one trial's end to the next one's, the first from the search's start."""
    space = {"train.seed": {"grid": list(range(trials))}}
    section = {"space": space, "scheduler": "none", "max_concurrent": 1}
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump({**spec, "search": section}))
    began = time.time()
    driver = head.run("jobs.search", "--spec", str(path), "--run", "search")
    said, _ = driver.communicate(timeout=600)
    if driver.returncode:
        raise RuntimeError(f"the search failed:\n{said}")
    store = DirectoryStore(folder / "store")
    events, _ = RunStore(store, "search").events.tail(0)
    trials_done = [
        e for e in events if e.get("event") == "trial" and e["record"]["status"] == "done"
    ]
    ends = [e["time"] for e in trials_done]
    taken = [end - start for start, end in zip([began, *ends], ends, strict=False)]
    return taken, _phases(store, events, trials)


def _phases(
    store: DirectoryStore, events: list[dict[str, Any]], trials: int
) -> dict[str, list[float]]:
    """Of the second and later trials: from proposal to loading, to the first step, to the end."""
    found: dict[str, list[float]] = {
        "until it loads": [],
        "until it trains": [],
        "until it ends": [],
    }
    for number in range(1, trials):
        rows = [e for e in events if e.get("event") == "trial" and e["record"]["number"] == number]
        told, _ = RunStore(store, f"search-t{number:03d}").events.tail(0)
        at = {event["event"]: event["time"] for event in reversed(told)}
        found["until it loads"].append(at["loading"] - rows[0]["time"])
        found["until it trains"].append(at["stage"] - at["loading"])
        found["until it ends"].append(rows[-1]["time"] - at["stage"])
    return found


def _finetuned(head: Head, folder: Path, spec: dict[str, Any], seed: int) -> float:
    path = folder / "alone.yaml"
    path.write_text(yaml.safe_dump(merge_spec(spec, {"name": "alone", "train": {"seed": seed}})))
    began = time.perf_counter()
    driver = head.run("jobs.finetune", "--spec", str(path))
    said, _ = driver.communicate(timeout=600)
    if driver.returncode:
        raise RuntimeError(f"the run failed:\n{said}")
    return time.perf_counter() - began


def _alone(rank: int, folder: str, spec: dict[str, Any], trials: int) -> list[float]:
    from tests.training_runs import TrainingCase, train_several

    taken = []
    for seed in range(trials):
        one = merge_spec(spec, {"name": f"warm{seed}", "train": {"seed": seed}})
        began = time.perf_counter()
        train_several(rank, [TrainingCase(f"warm{seed}", one)], 1)
        taken.append(time.perf_counter() - began)
    return taken


def _show(found: dict[str, Any], *, profile: bool) -> None:
    for name, words in (("search", "a trial of a search"), ("warm", "the training, warm process"),
                        ("finetune", "jobs.finetune by Ray Train")):  # fmt: skip
        seconds = found[name]
        median = statistics.median(seconds[1:])
        print(f"{words:28} {median:6.2f} s  (median of {len(seconds) - 1}, first {seconds[0]:.1f})")
    print(f"overhead of a trial: {found['overhead_s']:.2f} s (limit {LIMIT_S:g} s), "
          f"of Ray Train: {found['ray_train_s']:.2f} s")  # fmt: skip
    if profile:
        for phase, seconds in found["events"].items():
            print(f"  {phase:16} {statistics.median(seconds):6.2f} s")


if __name__ == "__main__":
    sys.exit(main())
