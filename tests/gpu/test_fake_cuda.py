"""Tensors that claim to be on a GPU: devices that are mixed and wrong dtypes show without one.

Torch for CPUs can't run autograd on such tensors, so the products' forward and backward are called
themselves, and models run without gradients.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

from slora.layers.install import install_lora, install_sparse
from slora.layers.lora import LoraLinear, _LowRankProduct, init_factors
from slora.layers.sparse import SparseLinear, _BlockProduct, _EntriesProduct
from slora.layers.targets import find_targets
from slora.masks.mask import BlockMask, draw_random_mask

CUDA = torch.device("cuda:0")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
MASKS = {
    "entries": draw_random_mask(seed=0, name="x", shape=(12, 8), density=0.2),
    "block": BlockMask((12, 8), torch.arange(3), torch.arange(2, 6)),
}


class IndexingByOperations(TorchFunctionMode):
    """Indexes and copies by operations: torch's own methods ask a GPU's driver for its state."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.contiguous:
            return args[0].clone(memory_format=torch.contiguous_format)
        if function is not torch.Tensor.__getitem__:
            return function(*args, **(kwargs or {}))
        tensor, index = args
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(part, torch.Tensor) for part in parts):
            return torch.ops.aten.index.Tensor(tensor, list(parts))
        dimension = 0
        missing = tensor.dim() - sum(part is not None and part is not ... for part in parts)
        for part in parts:
            if part is None:
                tensor, dimension = tensor.unsqueeze(dimension), dimension + 1
            elif part is ...:
                dimension += missing
            elif isinstance(part, int):
                tensor = tensor.select(dimension, part)
            else:
                bounds = part.indices(tensor.shape[dimension])
                tensor = torch.ops.aten.slice.Tensor(tensor, dimension, *bounds)
                dimension += 1
        return tensor


@pytest.fixture
def mode():
    return FakeTensorMode()


@contextmanager
def computing(mode):
    with mode, IndexingByOperations(), torch.no_grad():
        yield


def _move(mode, tensor):
    return FakeTensor(mode, tensor.detach().to("meta"), CUDA)


def _move_module(mode, module):
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = _move(mode, parameter)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _move(mode, buffer)
    return module


def _make_linear(dtype):
    return torch.nn.Linear(8, 12, dtype=dtype).requires_grad_(False)


class _Context(SimpleNamespace):
    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors


def _run_product(function, mode, layer, parameters, dtype):
    context = _Context(needs_input_grad=(True,) * (len(parameters) + 2))
    x, grad = (_move(mode, torch.empty(5, side, dtype=dtype)) for side in (8, 12))
    with computing(mode):
        y = function.forward(context, x, *parameters, layer.bias, layer)
        return y, function.backward.__wrapped__(context, grad)


@DTYPES
@pytest.mark.parametrize("kind", MASKS)
def test_the_sparse_product_stays_on_the_gpu_in_its_dtype(kind, dtype, mode):
    layer = SparseLinear(_make_linear(dtype), MASKS[kind])
    _move_module(mode, layer)
    function = _BlockProduct if kind == "block" else _EntriesProduct
    y, (grad_x, grad_values, grad_bias, _) = _run_product(
        function, mode, layer, (layer.values,), dtype
    )
    assert {t.device for t in (y, grad_x, grad_values, grad_bias)} == {CUDA}
    assert (y.dtype, grad_x.dtype, grad_values.dtype) == (dtype, dtype, torch.float32)


@DTYPES
def test_the_low_rank_product_stays_on_the_gpu_in_its_dtype(dtype, mode):
    a, b = init_factors(seed=0, name="x", shape=(12, 8), rank=2)
    layer = LoraLinear(_make_linear(dtype), a_RI=a, b_OR=b, scale=2.0)
    _move_module(mode, layer)
    y, (grad_x, grad_a, grad_b, grad_bias, _) = _run_product(
        _LowRankProduct, mode, layer, (layer.a_RI, layer.b_OR), dtype
    )
    assert {t.device for t in (y, grad_x, grad_a, grad_b, grad_bias)} == {CUDA}
    assert (y.dtype, grad_x.dtype, grad_a.dtype) == (dtype, dtype, torch.float32)
    assert (grad_a.shape, grad_b.shape) == (a.shape, b.shape)


@DTYPES
@pytest.mark.parametrize("kind", ["sparse", "lora"])
def test_a_model_with_the_methods_layers_runs_on_the_gpu(kind, dtype, mode):
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=64, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).requires_grad_(False)
    shapes = {
        name: (layer.out_features, layer.in_features)
        for name, layer in find_targets(model, "all-linear", head=[model.lm_head]).items()
    }
    if kind == "sparse":
        install_sparse(model, {
            name: draw_random_mask(seed=0, name=name, shape=shape, density=0.1)
            for name, shape in shapes.items()
        })  # fmt: skip
    else:
        install_lora(model, {
            name: init_factors(seed=0, name=name, shape=shape, rank=2)
            for name, shape in shapes.items()
        }, scale=2.0)  # fmt: skip
    _move_module(mode, model)
    ids = _move(mode, torch.zeros(2, 6, dtype=torch.int64))
    with computing(mode):
        logits = model(input_ids=ids).logits
    assert (logits.device, logits.dtype, logits.shape) == (CUDA, dtype, (2, 6, 64))


def test_a_tensor_left_on_the_cpu_is_caught(mode):
    layer = SparseLinear(_make_linear(torch.float32), MASKS["entries"])
    _move_module(mode, layer)
    layer.storage_positions = FakeTensor(
        mode, layer.storage_positions.to("meta"), torch.device("cpu")
    )
    values = FakeTensor(mode, torch.empty(layer.values.shape, device="meta"), torch.device("cpu"))
    with computing(mode), pytest.raises(RuntimeError, match="same device"):
        layer.write_entries(values)
