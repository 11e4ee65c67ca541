"""Training with the loss in chunks: the losses of 20 steps are those of the plain loss, on one
worker and on two, with a base that is complete, sharded, or trained itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.ranks import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]
STEPS, TOLERANCE = 20, 1e-5


def _make_model(kind: str) -> Any:
    from slora.layers.install import freeze, install_lora
    from slora.layers.lora import init_factors
    from slora.layers.token_rows import install_token_rows
    from tests.jobs.train.test_chunked_loss import make_llama

    model = make_llama(tie_word_embeddings=kind == "tied")
    if kind == "full":
        freeze(model, trainable=[model])
        return model
    freeze(model)
    install_token_rows(model, [7, 100])
    names = [f"model.layers.0.self_attn.{name}_proj" for name in "qv"]
    factors = {name: init_factors(seed=0, name=name, shape=(16, 16), rank=2) for name in names}
    install_lora(model, factors, scale=2.0)
    return model


def _make_step(number: int, rank: int, world_size: int) -> Any:
    from jobs.train.data.global_batches import Step
    from jobs.train.data.tokenization import IGNORE_INDEX
    from tests.jobs.train.test_chunked_loss import VOCABULARY
    from tests.zoo.loss import make_batch

    batches = []
    for worker in range(world_size):
        batch = make_batch(VOCABULARY, seed=2 * number + worker)
        if number == 3 and worker == 1:
            # What fills up a last batch: this worker has no target, and the others have.
            batch.labels.fill_(IGNORE_INDEX)
            batch = replace(batch, targets=0)
        batches.append(batch)
    targets = sum(batch.targets for batch in batches)
    own = batches[rank]
    return Step(micros=(own,), targets=targets, tokens=own.tokens, rows=2)


def _train(rank: int, world_size: int, kind: str, sharding: str, *, chunked: bool) -> list[float]:
    from jobs.train.comm.collectives import make_worker_context
    from jobs.train.engine.chunked_loss import PLAIN_LOSS
    from jobs.train.engine.engine import CompactEngine, EngineOptions
    from jobs.train.engine.full_engine import FullEngine
    from jobs.train.engine.learning_rate import StepRates
    from jobs.train.engine.step import take_step
    from jobs.train.model.base_shards import BaseShards
    from jobs.train.model.settle_loss import settle_loss
    from tests.jobs.train.test_chunked_loss import CHUNK, _make_spec

    cpu = torch.device("cpu")
    context = make_worker_context(rank, world_size, cpu, machine="here")
    model = _make_model(kind)
    shards = None
    if kind != "full" and sharding != "replicate":
        shards = BaseShards(model, sharding, context)
    choice = PLAIN_LOSS
    if chunked:
        choice = settle_loss(_make_spec(), model, context, shards=shards, chunk_bytes=CHUNK)
        assert choice.is_chunked, choice.reason
    options = EngineOptions(sharding, False, 2, 1, weight_decay=0.0, max_grad_norm=1.0)
    engine: Any = (
        FullEngine(model, options, context)
        if kind == "full"
        else CompactEngine(model, options, context, shards)
    )
    losses = []
    for number in range(STEPS):
        step = _make_step(number, rank, world_size)
        exchange = take_step(engine, step, rates=StepRates(1e-2, 1e-2), device=cpu, choice=choice)
        losses += exchange.losses
    engine.close()
    return losses


def _train_both(
    rank: int, world_size: int, cases: list[tuple[str, str]]
) -> dict[str, tuple[list[float], list[float]]]:
    return {
        f"{kind} {sharding}": (
            _train(rank, world_size, kind, sharding, chunked=False),
            _train(rank, world_size, kind, sharding, chunked=True),
        )
        for kind, sharding in cases
    }


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.long)])
def test_twenty_steps_have_the_losses_of_the_plain_loss(world_size: int):
    cases = [("tied", "replicate"), ("untied", "replicate"), ("full", "replicate")]
    if world_size > 1:
        cases += [("untied", "node"), ("tied", "node"), ("full", "cluster")]
    for results in run_ranks(_train_both, world_size, world_size, cases):
        for name, (plain, chunked) in results.items():
            assert len(plain) == STEPS, name
            assert chunked == pytest.approx(plain, rel=TOLERANCE), name
