"""The pass over a run's first rows that scores its weights for masks and inits."""

from __future__ import annotations

from collections.abc import Callable

from jobs.train.comm.collectives import CALIBRATION, WorkerContext
from jobs.train.data.calibration import make_calibration_pass
from jobs.train.data.worker_feeds import make_calibration_feed
from jobs.train.engine.chunked_loss import LossChoice
from jobs.train.model.load_base import LoadedBase
from jobs.train.monitor.recorder import RunRecorder
from jobs.train.request import TrainingRequest


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
    spec = request.spec
    batches = spec.method.calibration_batches
    feed = make_calibration_feed(
        request, base.tokenizer, rank=context.rank, world_size=context.world_size
    )
    per_pass = -(-batches * spec.train.batch_size // context.world_size)
    progress = recorder.track_progress("calibration sequences", passes * per_pass)
    calibrate = make_calibration_pass(
        base.model,
        feed,
        batches=batches,
        device=context.device,
        choice=choice,
        on_sequence=progress.advance,
    )
    shards = base.shards
    if shards is None:
        return calibrate

    def calibrate_gathered() -> int:
        with context.collectives.attribute_to(CALIBRATION), shards.gather_on_demand():
            return calibrate()

    return calibrate_gathered
