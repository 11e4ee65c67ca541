"""Leave LoRA out of the logits of a vLLM worker on a CPU.

vLLM 0.32 applies a LoRA of the output layer to the log-probabilities of a prompt with one row for
each request instead of one for each token, also where no adapter has such a LoRA. With two requests
in the batch the shapes differ, and the engine ends. The plug-in takes no LoRA of the output layer.
"""

from __future__ import annotations

from typing import Any


def skip_lora_logits() -> None:
    """Replace vLLM's product by nothing. Repeatable."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    def add_nothing(self: Any, *tensors: Any, **options: Any) -> None:
        """Leave the logits as they are."""

    PunicaWrapperCPU.add_lora_logits = add_nothing
