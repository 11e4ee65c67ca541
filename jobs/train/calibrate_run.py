"""The passes over a run's first rows: to score its weights for masks and inits, and to sketch the
inputs of its layers for the hand-off.
"""

from __future__ import annotations

from collections.abc import Callable

from jobs.train.comm.collectives import CALIBRATION, HANDOFF, WorkerContext
from jobs.train.data.calibration import make_calibration_pass, make_sketch_pass
from jobs.train.data.global_batches import Feed
from jobs.train.data.worker_feeds import make_calibration_feed
from jobs.train.engine.chunked_loss import LossChoice
from jobs.train.model.load_base import LoadedBase
from jobs.train.monitor.recorder import RunRecorder
from jobs.train.request import TrainingRequest
from slora.handoff.capture import CountedTokens


def make_run_calibration(
    request: TrainingRequest,
    base: LoadedBase,
    context: WorkerContext,
    recorder: RunRecorder,
    *,
    choice: LossChoice,
    passes: int,
) -> Callable[[], int]:
    """Return the function of one pass, which returns this rank's sequences.

    The function is a collective if the base is sharded. `passes`: how often it will be called, for
    the progress that is recorded.
    """
    calibrate = make_calibration_pass(
        base.model,
        _make_feed(request, base, context),
        batches=request.spec.method.calibration_batches,
        device=context.device,
        choice=choice,
        on_sequence=_track_sequences(request, context, recorder, "calibration sequences", passes),
    )
    shards = base.shards
    if shards is None:
        return calibrate

    def calibrate_gathered() -> int:
        with context.collectives.attribute_to(CALIBRATION), shards.gather_on_demand():
            return calibrate()

    return calibrate_gathered


def make_run_sketches(
    request: TrainingRequest,
    base: LoadedBase,
    context: WorkerContext,
    recorder: RunRecorder,
    choice: LossChoice,
    gradients: bool,
    passes: int,
) -> Callable[[CountedTokens], int]:
    """Return the function of one pass for the hand-off's sketches, as `make_run_calibration`."""
    run_pass = make_sketch_pass(
        base.model,
        _make_feed(request, base, context),
        batches=request.spec.method.calibration_batches,
        device=context.device,
        gradients=gradients,
        choice=choice,
        on_sequence=_track_sequences(request, context, recorder, "hand-off, sequences", passes),
    )
    shards = base.shards
    if shards is None:
        return run_pass

    def run_gathered(tokens: CountedTokens) -> int:
        with context.collectives.attribute_to(HANDOFF), shards.gather_on_demand():
            return run_pass(tokens)

    return run_gathered


def _make_feed(request: TrainingRequest, base: LoadedBase, context: WorkerContext) -> Feed:
    return make_calibration_feed(
        request, base.tokenizer, rank=context.rank, world_size=context.world_size
    )


def _track_sequences(
    request: TrainingRequest,
    context: WorkerContext,
    recorder: RunRecorder,
    name: str,
    passes: int,
) -> Callable[[], None]:
    """Return what is called after each sequence of a pass, to record the progress."""
    spec = request.spec
    sequences = spec.method.calibration_batches * spec.train.batch_size
    progress = recorder.track_progress(name, passes * -(-sequences // context.world_size))
    return progress.advance
