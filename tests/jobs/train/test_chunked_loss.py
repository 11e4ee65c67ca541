"""The loss in chunks: equal to the plain one, with gradients, and never all logits at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jobs.train.data.collate import Batch
from jobs.train.data.tokenization import IGNORE_INDEX
from jobs.train.engine.chunked_loss import PLAIN_LOSS, LossChoice
from jobs.train.engine.loss import compute_loss
from jobs.train.model.settle_loss import probe_loss, settle_loss
from tests.zoo.loss import compute_gradients, make_batch

CPU = torch.device("cpu")
VOCABULARY, WIDTH, ROWS = 300, 16, 4
CHUNK = ROWS * VOCABULARY * 4


def make_llama(**options: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, **options,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def choose(model: Any, kind: str = "tokens") -> LossChoice:
    choice = probe_loss(model, CPU, kind=kind, chunk_bytes=CHUNK)
    assert choice.is_chunked, choice.reason
    return choice


def require_equal(model: Any, *, kind: str = "tokens", tolerance: float = 1e-6) -> None:
    choice, batch = choose(model, kind), make_batch(VOCABULARY, kind)
    plain, gradients = compute_gradients(model, batch, PLAIN_LOSS)
    own, own_gradients = compute_gradients(model, batch, choice)
    assert own == pytest.approx(plain, rel=tolerance)
    assert gradients.keys() == own_gradients.keys() and gradients
    # Some gradients are zero but for rounding, such as that of a key's bias.
    floor = 0.01 * max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        difference = (own_gradients[name] - gradient).norm() / gradient.norm().clamp_min(floor)
        assert difference <= tolerance, f"{name}: {difference}"


@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_projection_gets_its_gradient(tied: bool):
    require_equal(make_llama(tie_word_embeddings=tied))


def test_a_bias_of_the_projection_is_a_part_of_the_logits_and_gets_its_gradient():
    model = make_llama(tie_word_embeddings=False)
    model.lm_head = nn.Linear(WIDTH, VOCABULARY)
    require_equal(model)
    model.lm_head.weight.requires_grad_(False)
    require_equal(model)


@pytest.mark.parametrize("tied", [True, False])
def test_trained_rows_of_tokens_get_their_gradient(tied: bool):
    from slora.layers.install import freeze
    from slora.layers.token_rows import install_token_rows

    model = make_llama(tie_word_embeddings=tied)
    freeze(model)
    known = make_batch(VOCABULARY).inputs["input_ids"][0, 3:7].tolist()
    install_token_rows(model, [*dict.fromkeys(known), 299])
    require_equal(model)


@pytest.mark.parametrize("kind", ["lora", "sparse"])
def test_an_adapted_projection_gets_the_gradients_of_its_adapter(kind: str):
    from slora.layers.install import freeze, install_lora, install_sparse
    from slora.layers.lora import init_factors
    from slora.masks.mask import draw_random_mask

    model, shape = make_llama(tie_word_embeddings=False), (VOCABULARY, WIDTH)
    freeze(model)
    if kind == "lora":
        a_RI, b_OR = init_factors(seed=0, name="lm_head", shape=shape, rank=2)
        install_lora(model, {"lm_head": (a_RI, torch.randn(b_OR.shape))}, scale=1.0)
    else:
        mask = draw_random_mask(seed=0, name="lm_head", shape=shape, density=0.1)
        install_sparse(model, {"lm_head": mask})
    require_equal(model)


def test_a_bias_of_the_logits_beside_the_projection_is_read_off_the_model():
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 16)
    config = BartConfig(vocab_size=VOCABULARY, d_model=WIDTH, dropout=0.0, **sizes)
    model = BartForConditionalGeneration(config).eval()
    model.final_logits_bias.normal_()
    assert choose(model, "completion").transform.bias_V is not None
    require_equal(model, kind="completion")


@pytest.mark.parametrize("options", [{"final_logit_softcapping": 2.0}, {"logits_scaling": 13.0}])
def test_capped_and_scaled_logits_are_read_off_the_model(options: dict[str, float]):
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = "gemma2" if "final_logit_softcapping" in options else "granite"
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, **options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(100)
    transform = choose(model).transform
    assert (transform.cap, transform.scale) in ((2.0, 1.0), (None, 1 / 13))
    require_equal(model)


def test_in_bfloat16_the_softmax_and_the_sum_are_float32():
    model = make_llama(tie_word_embeddings=False).bfloat16()
    choice, batch = choose(model), make_batch(VOCABULARY)
    plain, own = (compute_loss(model, batch, one, device=CPU) for one in (PLAIN_LOSS, choice))
    assert own.dtype == torch.float32
    assert float(own.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    require_equal(model, tolerance=1e-2)


def test_under_autocast_the_loss_is_the_plain_one():
    model = make_llama(tie_word_embeddings=False)
    choice, batch = choose(model), make_batch(VOCABULARY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, own = (compute_loss(model, batch, one, device=CPU) for one in (PLAIN_LOSS, choice))
    assert float(own.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)


def test_a_batch_of_filler_alone_has_a_loss_of_zero_and_a_gradient():
    model = make_llama(tie_word_embeddings=False)
    batch = make_batch(VOCABULARY)
    batch.labels.fill_(IGNORE_INDEX)
    loss, gradients = compute_gradients(model, batch, choose(model))
    assert loss == 0.0 and set(gradients) == {name for name, _ in model.named_parameters()}
    assert not any(gradient.any() for gradient in gradients.values())


class _Largest(TorchDispatchMode):
    """Notes the most rows of the vocabulary's width that a tensor has, the weights left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.rows, self._width = 0, VOCABULARY
        self._weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor) and tensor.ndim > 1 and tensor.shape[-1] == self._width:
                # An expanded tensor takes the memory of its storage.
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._weights:
                    rows = storage.nbytes() // tensor.element_size() // self._width
                    self.rows = max(self.rows, rows)
        return results


@pytest.mark.parametrize("transform", ["none", "cap"])
def test_no_tensor_has_the_logits_of_more_than_a_chunk(transform: str):
    from slora.layers.install import freeze

    model = make_llama(tie_word_embeddings=False)
    freeze(model, trainable=[model.model])
    choice, batch = choose(model), make_batch(VOCABULARY)
    if transform == "cap":
        choice = replace(choice, transform=replace(choice.transform, cap=5.0))
    with _Largest(model) as largest:
        compute_loss(model, batch, choice, device=CPU).backward()
    assert largest.rows == ROWS
    with _Largest(model) as largest:
        compute_loss(model, batch, PLAIN_LOSS, device=CPU).backward()
    assert largest.rows > ROWS


Tail = Callable[[Any, Tensor], Tensor]


class Odd(nn.Module):
    """A language model whose logits pass through a tail of its own."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.gain, self.tail = nn.Parameter(torch.ones(())), tail
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=250))
        self.dtype = torch.float32

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.tail(self, self.embed(input_ids)))


ODD: dict[str, tuple[Tail, str]] = {
    "trained": (lambda m, x: m.head(x) * m.gain, "trained weights after its output projection"),
    "mixed": (lambda m, x: m.head(x).cumsum(1), "changes its logits in a way of its own"),
    "sorted": (lambda m, x: m.head(x).flip(-1), "changes its logits in a way of its own"),
    "squared": (lambda m, x: m.head(x) ** 3, "changes its logits in a way of its own"),
    "twice": (lambda m, x: m.head(x) + m.head(x), "calls its output projection 2 times"),
    "functional": (lambda m, x: x @ m.head.weight.t(), "calls its output projection 0 times"),
    "flat": (
        lambda m, x: m.head(x.flatten(0, 1)).unflatten(0, x.shape[:2]),
        "does not pass one hidden state a token",
    ),
    "two paths": (lambda m, x: m.head(x) + x.sum(), "trained weights after its output projection"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_model_whose_logits_are_anything_else_keeps_the_plain_loss_and_says_why(name: str):
    tail, reason = ODD[name]
    choice = probe_loss(Odd(tail), CPU, chunk_bytes=CHUNK)
    assert not choice.is_chunked and reason in choice.reason
    assert choice.describe()["mode"] == "plain"


def test_a_model_of_its_own_with_a_known_tail_is_computed_in_chunks():
    model = Odd(lambda m, x: 3.0 * m.head(x))
    choice = choose(model)
    assert choice.transform.scale == 3.0
    model.gain.requires_grad_(False)
    require_equal(model)


def _make_spec(**changes: Any) -> Any:
    train = SimpleNamespace(micro_batch_size=2)
    spec = SimpleNamespace(target_kind="tokens", train=train, data=SimpleNamespace(max_length=8))
    return SimpleNamespace(**{**vars(spec), **changes})


def test_a_loss_of_one_chunk_and_that_of_a_classifier_stay_plain():
    from jobs.train.comm.collectives import WorkerContext

    model, context = make_llama(), WorkerContext(0, 1, CPU)
    assert not settle_loss(_make_spec(), model, context).is_chunked
    assert settle_loss(_make_spec(), model, context, chunk_bytes=CHUNK).is_chunked
    of_class = settle_loss(_make_spec(target_kind="class"), model, context, chunk_bytes=CHUNK)
    assert of_class.reason == "a classifier has few logits"


@contextmanager
def _own_forward(module: nn.Module) -> Iterator[Callable[..., Any]]:
    own = module.forward
    module.forward = lambda *args: own(*args)
    try:
        yield module.forward
    finally:
        del module.forward


def test_the_projection_is_as_before_after_a_loss_even_if_it_fails():
    model = make_llama()
    choice, batch = choose(model), make_batch(VOCABULARY)
    compute_loss(model, batch, choice, device=CPU)
    assert "forward" not in vars(model.lm_head) and not model.lm_head._forward_hooks
    bad = Batch(batch.inputs, batch.labels[:1], targets=0, tokens=0)
    with _own_forward(model.lm_head) as own:
        with pytest.raises(RuntimeError, match="do not fit labels"):
            compute_loss(model, bad, choice, device=CPU)
        assert model.lm_head.forward is own and not model.lm_head._forward_hooks
