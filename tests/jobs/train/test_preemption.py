"""What Ray Train is told about our workers."""

from __future__ import annotations

from jobs.train.preemption import PreemptibleTorchConfig


def test_a_worker_that_hangs_is_not_asked_to_take_its_process_group_down():
    config = PreemptibleTorchConfig()
    # No worker group: whoever calls a worker of it fails, as one that hangs would.
    assert config.backend_cls().on_shutdown(None, config) is None
