"""The loss of a served adapter, by the server's log-probabilities of the tokens that we learn.

The rows become the same tokens as in our own evaluation, and the same ones are targets, so the two
losses are comparable. A row is asked for alone: packing changes nothing in a loss.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.errors import Fault, InputError
from jobs.plan.token_tally import TokenTally
from jobs.spec.schema import RunSpec
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.adapters.serving_options import find_task, read_adapter_config
from jobs.store.base import ObjectStore
from jobs.tools.adapter_base import find_base
from jobs.tools.adapter_rows import load_adapter_spec, scan_adapter_rows
from jobs.tools.endpoint.completions_client import CompletionsClient
from jobs.train.data.run_encoder import make_encoder
from jobs.train.data.token_pass import make_token_inputs, write_table
from jobs.train.data.token_table import TokenTable
from jobs.train.data.tokenization import IGNORE_INDEX, Sample
from jobs.train.data.tokenize_run import include_scan_faults
from jobs.train.model.tokenizer import load_tokenizer

MAX_EXPONENT = 700.0
"""As in our own evaluation: beyond it no float holds a perplexity."""

OverrideSpec = Callable[[RunSpec, argparse.Namespace], RunSpec]


def evaluate_endpoint(
    store: ObjectStore, options: argparse.Namespace, override_spec: OverrideSpec
) -> tuple[str, dict[str, float], TokenTally]:
    """Return the adapter's label, its metrics by the server at `options.endpoint`, and a tally.

    Raise Unreachable, NotInStore, and InputError for rows, a base or a server that do not fit.
    """
    manifest = resolve_adapter(store, options.adapter)
    check_task(store, manifest)
    with CompletionsClient(options.endpoint) as server:
        model = choose_model(server, options.served_as or options.adapter)
        spec = override_spec(load_adapter_spec(store, manifest, options, task="causal-lm"), options)
        with _open_samples(store, manifest, spec, options) as (samples, tally):
            metrics = compute_metrics(server, model, samples)
    return manifest.label, metrics, tally


def compute_metrics(
    server: CompletionsClient, model: str, samples: Iterable[Sample]
) -> dict[str, float]:
    """Return loss per target, perplexity and targets, as our own evaluation does."""
    losses, targets = list[float](), 0
    # One at a time: vLLM 0.32 with --enable-lora on CPUs ends when it scores two prompts at once.
    for sample in samples:
        scores = server.score_tokens(model, sample.input_ids)
        labelled = zip(scores, sample.labels[1:], strict=True)
        learnt = [score for score, label in labelled if label != IGNORE_INDEX]
        losses.append(-math.fsum(learnt))
        targets += len(learnt)
    if not targets:
        raise InputError([Fault("--data", "no row has a target", "Increase --max-length.")])
    mean = math.fsum(losses) / targets
    return {"loss": mean, "perplexity": math.exp(min(mean, MAX_EXPONENT)), "tokens": float(targets)}


def choose_model(server: CompletionsClient, name: str) -> str:
    """Return the name if the server answers to it. Raise InputError with those that it has."""
    models = server.list_models()
    if name not in models:
        problem = f"{server.url} does not serve {name!r}; it has {', '.join(models) or 'none'}"
        remedy = "Load the adapter there, or name it with --served-as."
        raise InputError([Fault("--endpoint", problem, remedy)])
    return name


def check_task(store: ObjectStore, manifest: Manifest) -> None:
    """Raise InputError for an adapter that is no language model."""
    task = find_task(read_adapter_config(store, manifest))
    if task != "causal-lm":
        problem = f"{manifest.label} has the task {task}, and servers score language models only"
        raise InputError([Fault("--endpoint", problem, "Evaluate it without --endpoint.")])


@contextmanager
def _open_samples(
    store: ObjectStore, manifest: Manifest, spec: RunSpec, options: argparse.Namespace
) -> Iterator[tuple[Iterator[Sample], TokenTally]]:
    """Tokenise the rows into a table that exists inside the block. Raise InputError with all faults
    of rows.
    """
    scan = scan_adapter_rows(spec, options.data, ())
    with tempfile.TemporaryDirectory(prefix="slora-tokens-") as scratch:
        folder = _find_tokenizer(store, manifest, spec, options, Path(scratch) / "adapter")
        encoder = make_encoder(spec, folder, load_tokenizer(str(folder)), ())
        inputs = make_token_inputs(spec, Path(scratch), scan, ())
        with include_scan_faults(scan):
            tally = write_table(Path(scratch) / "table", inputs, encoder)
        table = TokenTable(Path(scratch) / "table")
        samples = (table[index] for index in range(len(table)))
        yield (sample for sample in samples if sample.targets), tally


def _find_tokenizer(
    store: ObjectStore,
    manifest: Manifest,
    spec: RunSpec,
    options: argparse.Namespace,
    scratch: Path,
) -> Path:
    """Return the folder with the tokenizer: the base's, unless the adapter brings its own."""
    if manifest.kind == "full" or spec.method.train_tokens:
        return pull(store, manifest, scratch)
    return find_base(manifest, options.base)
