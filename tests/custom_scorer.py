"""Mask strategies of another package, which the entry points of tests/plugins name."""

from __future__ import annotations

import os
import signal

from torch import Tensor

from slora.masks.strategy import Scorer


def _unit(weight_OI: Tensor, gradient_OI: Tensor) -> Tensor:
    return gradient_OI.abs() * weight_OI.abs().sqrt()


def _score(weight_OI: Tensor, total_OI: Tensor | None, units: int) -> Tensor:
    assert total_OI is not None
    return total_OI


LOUDEST = Scorer("loudest", finish=_score, unit=_unit)


def _fail(weight_OI: Tensor, total_OI: Tensor | None, units: int) -> Tensor:
    raise ArithmeticError("this score never works")


BROKEN = Scorer("broken", finish=_fail)


def _die(weight_OI: Tensor, total_OI: Tensor | None, units: int) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


DEADLY = Scorer("deadly", finish=_die)
"""As a worker that takes too much memory, and is killed without a word."""


def _fail_alone(weight_OI: Tensor, total_OI: Tensor | None, units: int) -> Tensor:
    if os.environ.get("RANK") == "1":
        raise ArithmeticError("this score fails one worker of two")
    return weight_OI.abs()


LONELY = Scorer("lonely", finish=_fail_alone)
"""One worker fails, and the others wait for it in a collective."""
