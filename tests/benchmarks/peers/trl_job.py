"""The peer: TRL's SFTTrainer with PEFT's LoRA, as its documentation has it, on one rank.

Run by torchrun in the venv of `venv.py`, with the path of a JSON file of options.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from datasets import load_dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


class StepTimer(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.ends: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Note the start of a step."""
        self.starts.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the end of a step."""
        self.ends.append(time.perf_counter())


def main() -> None:
    """Train, save the adapter, and write the losses and the seconds of each step."""
    options = json.loads(Path(sys.argv[1]).read_text())
    output = Path(options["output"])
    timer = StepTimer()
    trainer = SFTTrainer(
        model=options["model"],
        args=SFTConfig(
            output_dir=str(output),
            model_init_kwargs={"dtype": options["dtype"]},
            bf16=options["dtype"] == "bfloat16",
            use_cpu=True,
            max_steps=options["steps"],
            per_device_train_batch_size=options["micro_batch_size"],
            learning_rate=options["learning_rate"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=options["max_length"],
            # Its default recomputes the activations in the backward, which ours does not.
            gradient_checkpointing=False,
            ddp_find_unused_parameters=False,
            train_sampling_strategy="sequential",
            seed=options["seed"],
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=load_dataset("json", data_files=options["rows"], split="train"),
        peft_config=LoraConfig(
            r=options["rank"],
            lora_alpha=options["alpha"],
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[timer],
    )
    loaded = set_peft_model_state_dict(trainer.model, load_file(options["factors"]))
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    trainer.train()
    trainer.save_model()
    if trainer.is_world_process_zero():
        pairs = zip(timer.starts, timer.ends, strict=True)
        report = {
            "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
            "seconds": [end - start for start, end in pairs],
        }
        (output / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
