"""What a training imports and builds on its way, done once for all ranks of a test session.

A rank is forked from a process that has this module: by itself it would work on the imports for
longer than on its training.
"""

from __future__ import annotations

import gc
from importlib import import_module

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

for name in (
    "datasets.packaged_modules.generator.generator",
    "deepspeed.module_inject.auto_ep_config",
    "deepspeed.ops.op_builder.all_ops",
    "jobs.plan.preflight",
    "jobs.store.adapters.outbox",
    "jobs.train.comm.deepspeed_comm",
    "jobs.train.evaluate_adapters",
    "jobs.train.fine_tuning",
    "jobs.train.loop",
    "jobs.train.samples",
    "peft",
    "setuptools",
    "slora.formats.peft_check",
    "slora.kernels.tile_kernel",
    "tests.training_runs",
    "torch.utils.tensorboard.writer",
    "transformers.generation.candidate_generator",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
):
    import_module(name)

# A thousand regular expressions, compiled when the first model is loaded.
get_checkpoint_conversion_mapping("llama")

# A rank looks through none of this for garbage, and writes on none of its pages.
gc.freeze()
