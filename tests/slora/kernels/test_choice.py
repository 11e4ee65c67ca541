"""The probe takes the fastest kernel that computes the right thing, and remembers it."""

from __future__ import annotations

import json

import pytest
import torch

from slora.kernels import choice as choice_module
from slora.kernels.choice import KernelChoices, probe_kernels, read_choices
from slora.kernels.pattern import compress_rows
from slora.kernels.torch_kernels import multiply_by_slabs
from slora.masks.mask import draw_random_mask


def _operands(dtype=torch.float32, tokens=16):
    mask = draw_random_mask(seed=1, name="x", shape=(8, 8), density=0.5)
    torch.manual_seed(0)
    grad, x = torch.randn(tokens, 8, dtype=dtype), torch.randn(tokens, 8, dtype=dtype)
    return grad, x, compress_rows(mask)


class _Clock:
    """Kernels that compute the right product and take the seconds that the script says."""

    def __init__(self, monkeypatch, **seconds):
        self.now, self.calls = 0.0, []
        self.kernels = {name: self._make_kernel(name, cost) for name, cost in seconds.items()}
        monkeypatch.setattr(choice_module.time, "perf_counter", lambda: self.now)

    def _make_kernel(self, name, cost):
        def kernel(*operands):
            self.now += cost
            self.calls.append(name)
            return multiply_by_slabs(*operands)

        return kernel


@pytest.mark.parametrize(
    ("dtype", "seconds", "fastest"),
    [
        (torch.float32, {"slabs": 3.0, "sampled": 2.0, "tiles": 1.0}, "tiles"),
        (torch.float32, {"slabs": 1.0, "sampled": 2.0, "tiles": 1.1}, "slabs"),
        (torch.bfloat16, {"slabs": 1.0, "tiles": 1.05}, "tiles"),
        (torch.bfloat16, {"slabs": 1.0, "tiles": 1.2}, "slabs"),
    ],
    ids=["fastest", "slabs", "exact-preferred", "rounded-but-much-faster"],
)
def test_the_fastest_kernel_is_chosen(monkeypatch, dtype, seconds, fastest):
    clock = _Clock(monkeypatch, **seconds)
    choice = probe_kernels(clock.kernels, *_operands(dtype))
    assert choice.kernel == fastest
    assert choice.milliseconds == pytest.approx({n: 1e3 * s for n, s in seconds.items()})


def test_one_undisturbed_run_is_enough_for_the_fastest(monkeypatch):
    clock = _Clock(monkeypatch, slabs=2.0, tiles=1.0)
    undisturbed, delays = clock.kernels["tiles"], iter((9.0, 9.0, 9.0, 0.0))

    def disturbed(*operands):
        clock.now += next(delays)
        return undisturbed(*operands)

    clock.kernels["tiles"] = disturbed
    assert probe_kernels(clock.kernels, *_operands()).kernel == "tiles"


def test_a_kernel_that_fails_or_is_wrong_is_left_out_with_the_reason(monkeypatch):
    clock = _Clock(monkeypatch, slabs=3.0, wrong=1.0, broken=1.0)

    def fail(*operands):
        raise RuntimeError("no compiler")

    right = clock.kernels["wrong"]
    clock.kernels |= {"wrong": lambda *operands: right(*operands) * 1.1, "broken": fail}
    choice = probe_kernels(clock.kernels, *_operands())
    assert choice.kernel == "slabs"
    assert choice.unavailable["broken"] == "no compiler"
    assert "differs by" in choice.unavailable["wrong"]


@pytest.fixture
def probing(monkeypatch):
    """Two kernels that are probed for products of any size."""
    clock = _Clock(monkeypatch, slabs=2.0, tiles=1.0)
    monkeypatch.setattr(choice_module, "list_kernels", lambda *_: clock.kernels)
    monkeypatch.setattr(choice_module, "MIN_PROBED_WORK", 0)
    return clock


def _choose(known=None, *, tokens=16, dtype=torch.float32):
    *_, pattern = _operands()
    return (known or KernelChoices()).choose([pattern], tokens=tokens, dtype=dtype)


def test_small_products_are_never_probed(monkeypatch):
    clock = _Clock(monkeypatch, slabs=2.0, tiles=1.0)
    monkeypatch.setattr(choice_module, "list_kernels", lambda *_: clock.kernels)
    assert _choose().describe() == {}
    assert clock.calls == []


def test_a_kind_is_probed_once_and_products_of_any_length_use_its_kernel(probing):
    choices = _choose()
    assert _choose(choices).describe() == choices.describe()
    probed = len(probing.calls)
    for tokens in (15, 16, 400):
        choices.compute(*_operands(tokens=tokens))
    assert probing.calls[probed:] == ["tiles"] * 3


def test_what_was_not_chosen_is_computed_by_slabs(probing):
    choices = _choose(dtype=torch.bfloat16)
    probed = len(probing.calls)
    for other in (choices, KernelChoices()):
        product = other.compute(*_operands())
        assert torch.equal(product, multiply_by_slabs(*_operands()))
    assert len(probing.calls) == probed


def test_choices_are_read_back(probing):
    first = _choose()
    second = read_choices(json.loads(json.dumps(first.describe())))
    probed = len(probing.calls)
    second.compute(*_operands())
    assert probing.calls[probed:] == ["tiles"]
    assert second.describe() == first.describe()


@pytest.mark.parametrize(
    "saved", [None, [], "x", {"a": 1}, {"a": {"kernel": "gone", "more": 1}}, {"a": {"kernel": []}}]
)
def test_what_is_not_ours_is_probed_again(saved):
    assert read_choices(saved).describe() == {}


def test_a_saved_kernel_that_this_machine_lacks_is_probed_anew_or_replaced(probing):
    choices = _choose()
    del probing.kernels["tiles"]
    probing.kernels["other"] = probing.kernels["slabs"]
    choices.compute(*_operands())
    (kind,) = _choose(choices).describe().values()
    assert kind["kernel"] in probing.kernels
