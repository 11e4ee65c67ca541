"""The probe takes the fastest kernel that computes the right thing, and remembers it."""

from __future__ import annotations

import pytest
import torch

from slora.kernels import choice as choice_module
from slora.kernels.choice import KernelChoices, load_choices, probe_kernels
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


def test_a_kind_of_product_is_probed_once_and_small_ones_never(monkeypatch):
    clock = _Clock(monkeypatch, slabs=2.0, tiles=1.0)
    monkeypatch.setattr(choice_module, "list_kernels", lambda *_: clock.kernels)
    choices = KernelChoices()
    choices.compute(*_operands())
    assert clock.calls == []
    monkeypatch.setattr(choice_module, "MIN_PROBED_WORK", 0)
    choices.compute(*_operands())
    probed = len(clock.calls)
    for tokens in (15, 16):
        choices.compute(*_operands(tokens=tokens))
    assert clock.calls[probed:] == ["tiles", "tiles"]
    choices.compute(*_operands(tokens=17))
    assert len(clock.calls) > probed + 3


def test_saved_choices_serve_the_next_process(monkeypatch, tmp_path):
    clock = _Clock(monkeypatch, slabs=2.0, tiles=1.0)
    monkeypatch.setattr(choice_module, "list_kernels", lambda *_: clock.kernels)
    monkeypatch.setattr(choice_module, "MIN_PROBED_WORK", 0)
    first, path = KernelChoices(), tmp_path / "kernels" / "choices.json"
    first.compute(*_operands())
    first.save(path)
    clock.calls.clear()
    second = load_choices(path)
    second.compute(*_operands())
    assert clock.calls == ["tiles"]
    assert second.describe() == first.describe()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"a": 1}', '{"a": {"kernel": "gone", "more": 1}}', "\x00"]
)
def test_a_file_of_choices_that_is_not_ours_is_probed_again(tmp_path, text):
    path = tmp_path / "choices.json"
    path.write_text(text)
    assert load_choices(path).describe() == {}


def test_a_saved_kernel_that_this_machine_lacks_is_replaced(monkeypatch, tmp_path):
    clock = _Clock(monkeypatch, slabs=2.0, tiles=1.0)
    monkeypatch.setattr(choice_module, "MIN_PROBED_WORK", 0)
    monkeypatch.setattr(choice_module, "list_kernels", lambda *_: clock.kernels)
    path, choices = tmp_path / "choices.json", KernelChoices()
    choices.compute(*_operands())
    choices.save(path)
    del clock.kernels["tiles"]
    clock.kernels["other"] = clock.kernels["slabs"]
    loaded = load_choices(path)
    loaded.compute(*_operands())
    (kind,) = loaded.describe().values()
    assert kind["kernel"] in clock.kernels
