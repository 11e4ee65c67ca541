"""Answers to the questions about a model that a plan asks: see `jobs.inspect.inspection_client`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from jobs.errors import Fault, InputError
from jobs.inspect.model_description import dump_description
from jobs.train.model.base_model import choose_model_class
from jobs.train.model.describe_model import describe_model
from jobs.train.model.dtype_probe import measure_products


def answer_quietly(request: Mapping[str, Any]) -> bytes:
    """Return the answer from a process with other work: what it prints and draws stays its own."""
    with _silence_library(), torch.random.fork_rng(devices=[]):
        return answer_question(request)


def answer_question(request: Mapping[str, Any]) -> bytes:
    """Return `{"answer": ...}` or `{"faults": [...]}`, as JSON."""
    folder = request["folder"]
    try:
        answer = _ANSWERS[request["question"]](request)
    except InputError as error:
        return dump_faults(*error.faults)
    except MemoryError:
        raise
    except Exception as error:  # code of all kinds of models runs here
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        problem = f"transformers cannot build the model of {folder} ({text})"
        return dump_faults(Fault("model.path", problem, "Use another model."))
    return json.dumps({"answer": answer}).encode()


def dump_faults(*faults: Fault) -> bytes:
    """Return the answer that the model cannot be used."""
    return json.dumps({"faults": [dataclasses.asdict(fault) for fault in faults]}).encode()


def _describe(request: Mapping[str, Any]) -> Any:
    return dump_description(describe_model(Path(request["folder"]), request["task"]))


def _probe_packing(request: Mapping[str, Any]) -> Any:
    # Imported here: a description needs none of it.
    from jobs.train.model.packing_probe import answer_probe

    config = transformers.AutoConfig.from_pretrained(
        request["folder"], local_files_only=True, trust_remote_code=False
    )
    model_class = choose_model_class(config, "causal-lm")
    kernel = request["kernel"]
    options = {"attn_implementation": kernel} if kernel else {}
    build = partial(model_class._from_config, **options)
    return dataclasses.asdict(answer_probe(config, build))


def _probe_dtype(request: Mapping[str, Any]) -> Any:
    sizes = {name: request[name] for name in ("tokens", "rows", "columns")}
    return measure_products(**sizes)


def _find_peft_loss(request: Mapping[str, Any]) -> Any:
    # Imported here: PEFT takes seconds to load.
    from jobs.train.model.peft_probe import find_planned_loss

    return find_planned_loss(
        request["folder"],
        request["task"],
        targets=request["targets"],
        head_modules=request["head_modules"],
        labels=request["labels"],
        trains_tokens=request["trains_tokens"],
    )


_ANSWERS = {
    "describe": _describe,
    "probe_packing": _probe_packing,
    "probe_dtype": _probe_dtype,
    "find_peft_loss": _find_peft_loss,
}


@contextmanager
def _silence_library() -> Iterator[None]:
    logging = transformers.utils.logging
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    silence_library()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def silence_library() -> None:
    """Let transformers write errors only."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
