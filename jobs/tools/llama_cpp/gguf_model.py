"""Write a whole model with its tokenizer as one GGUF file: `llama-server --model model.gguf`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jobs.errors import Fault, InputError
from jobs.tools.llama_cpp.gguf_architecture import find_architecture
from jobs.tools.llama_cpp.gguf_lora import write_tensors
from jobs.tools.llama_cpp.gguf_vocabulary import add_vocabulary
from jobs.train.model.tokenizer import save_tokenizer


def write_gguf_model(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    dtype: str = "float16",
) -> None:
    """Write weights, sizes and tokenizer; a second copy of the weights as `dtype` is in memory.

    Raise InputError for a family or a tokenizer that is not written, and for weights that float16
    does not hold.
    """
    family = find_architecture(model.config)
    tensors = dict[str, Tensor]()
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        tensors[family.get_tensor_name(key)] = family.order_rows(key, tensor)
    tensors |= family.iter_extra_tensors()
    if dtype == "float16":
        _check_range(tensors)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    rows = int(model.get_input_embeddings().weight.shape[0])
    writer.add_vocab_size(rows)
    family.add_sizes(writer)
    with TemporaryDirectory(prefix="slora-tokenizer-") as scratch:
        save_tokenizer(tokenizer, scratch)
        add_vocabulary(writer, tokenizer, Path(scratch), rows=rows)
    write_tensors(writer, tensors, dtype)


def _check_range(tensors: dict[str, Tensor]) -> None:
    largest = float(np.finfo(np.float16).max)
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and float(tensor.abs().max()) > largest:
            problem = f"{name} has values above {largest:.0f}, which float16 does not hold"
            raise InputError([Fault("--dtype", problem, "Use --dtype float32.")])
