"""Ray Train's settings for workers that may be preempted, or hang."""

from __future__ import annotations

from jobs.train.preemption import PreemptibleTorchConfig


def test_a_worker_that_hangs_is_not_asked_to_shut_its_process_group_down():
    config = PreemptibleTorchConfig()
    # Without a worker group every call of a worker fails, as a hung one would.
    assert config.backend_cls().on_shutdown(None, config) is None
